"""Console output: tables and lines, progress bars, and how much of either is shown."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

NOTHING, RESULT, USUAL, DETAILS = range(-1, 3)
_loudness = ContextVar("loudness", default=USUAL)
_LEAST_WIDTH = 110  # columns of a file or pipe, which has no width of its own


@contextmanager
def console_level(loudness: int) -> Iterator[None]:
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


_hidden = ContextVar("hide_progress", default=0)  # how many ask for it, in whatever order they end

Advance = Callable[[float], None]


class _Seconds(ProgressColumn):
    """`compiling, once: 4 s, about 8 s left`."""

    def __init__(self, usual: float) -> None:
        """Seconds that it usually takes."""
        super().__init__()
        self.usual = usual

    def render(self, task: Task) -> Text:
        """What it is, the seconds since it began, and what is left of the usual ones."""
        passed = task.elapsed or 0.0
        left = self.usual - passed
        said = (
            f"about {left:.0f} s left" if left > 0 else f"and it usually takes {self.usual:.0f} s"
        )
        return Text(f"{task.description}: {passed:.0f} s, {said}")


def stderr_console() -> Console:
    """Standard error."""
    return Console(stderr=True)


def progress_is_shown(console: Console | None = None) -> bool:
    """Whether a terminal looks on, and nothing has asked for silence."""
    return _hidden.get() == 0 and (console or stderr_console()).is_terminal


@contextmanager
def hide_progress(*, when: bool = True) -> Iterator[None]:
    """No progress is shown within.

    Args:
        when: False leaves it as it is.
    """
    _hidden.set(_hidden.get() + when)
    try:
        yield
    finally:
        _hidden.set(_hidden.get() - when)


@contextmanager
def progress_bar(
    what: str, *, total: float | None, console: Console | None = None
) -> Iterator[Advance]:
    """A bar with the time left; gone when it is done.

    Args:
        what: such as `features`.
        total: how much there is to do, in any unit; None where that is not known.
        console: where; None takes standard error.

    Yields:
        To be called with how much more was done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with _line(columns, console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def progress_seconds(what: str, *, usual: float, console: Console | None = None) -> Iterator[None]:
    """A line that counts the seconds of something that cannot say how far it is; gone when done.

    Args:
        what: such as `compiling, once`.
        usual: seconds that it usually takes, which the time left is told by.
        console: where; None takes standard error.
    """
    with _line((SpinnerColumn(), _Seconds(usual)), console) as bar:
        bar.add_task(what, total=None)
        yield


@contextmanager
def _line(columns: tuple[ProgressColumn, ...], console: Console | None) -> Iterator[Progress]:
    """One line at a time: a step within a step shows none of its own."""
    console = console or stderr_console()
    bar = Progress(
        *columns, console=console, transient=True, disable=not progress_is_shown(console)
    )
    with bar, hide_progress():
        yield bar


QUIET, NORMAL, DETAILED = 0, 1, 2
_LOUDNESS = {QUIET: RESULT, NORMAL: USUAL, DETAILED: DETAILS}
_OURS = "robust_fin"


@contextlib.contextmanager
def verbosity(verbosity: int) -> Iterator[None]:
    """Say so much and no more, and leave loggers and warnings as they were.

    Args:
        verbosity: QUIET, NORMAL or DETAILED.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(console_level(_LOUDNESS[verbosity]))
        stack.enter_context(hide_progress(when=verbosity == QUIET))
        if verbosity == DETAILED:
            stack.enter_context(_level(logging.getLogger(_OURS), logging.DEBUG))
        if verbosity == QUIET:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for handler in logging.getLogger().handlers:
                if not isinstance(handler, logging.FileHandler):
                    stack.enter_context(_level(handler, logging.ERROR))
        yield


@contextlib.contextmanager
def _level(one: logging.Logger | logging.Handler, level: int) -> Iterator[None]:
    before = one.level
    one.setLevel(level)
    try:
        yield
    finally:
        one.setLevel(before)
