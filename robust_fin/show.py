"""Tables and lines on the console."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.table import Table

NOTHING, RESULT, USUAL, DETAILS = range(-1, 3)
_loudness = ContextVar("loudness", default=USUAL)
_LEAST_WIDTH = 110  # columns of a file or pipe, which has no width of its own


@contextmanager
def talking(loudness: int) -> Iterator[None]:
    """Show what matters so much and no less; within NOTHING, nothing.

    Args:
        loudness: NOTHING, RESULT (the verdict alone), USUAL or DETAILS.
    """
    silent = _loudness.get() == NOTHING
    before = _loudness.set(NOTHING if silent else loudness)
    try:
        yield
    finally:
        _loudness.reset(before)


def show(*parts: Table | str, loudness: int = USUAL) -> None:
    """Write tables and lines to the console.

    Args:
        parts: to be written.
        loudness: RESULT is shown also where little is.
    """
    if loudness > _loudness.get():
        return
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, _LEAST_WIDTH)
    for part in parts:
        console.print(part, highlight=False, markup=False)
