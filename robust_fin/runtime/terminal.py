"""Console output: tables and lines, hints to paste, progress bars, and how much of it is shown."""

import logging
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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

NOTHING, RESULT, USUAL, DETAILS = range(-1, 3)  # levels of console output
QUIET, NORMAL, DETAILED = 0, 1, 2  # values of the config key `verbose`
_LEVELS = {QUIET: RESULT, NORMAL: USUAL, DETAILED: DETAILS}
_MIN_WIDTH = 110  # columns assumed for a file or pipe
_level = ContextVar("level", default=USUAL)
_hide_requests = ContextVar("hide_requests", default=0)  # open `hide_progress` contexts

_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}/)[\w./:+-]*", re.ASCII)  # needs no quotes in Hydra
_KEYWORDS = ("null", "true", "false", "nan", "inf")

Advance = Callable[[float], None]


def show(*parts: Table | str, level: int = USUAL) -> None:
    """Print tables and lines to standard output.

    Args:
        parts: printed one after the other.
        level: printed only where the current level is at least this.
    """
    if level > _level.get():
        return
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, _MIN_WIDTH)
    for part in parts:
        console.print(part, highlight=False, markup=False)


def hydra_text(text: str) -> str:
    """Write a text as the value of an override; it is quoted where Hydra's grammar needs it."""
    if _PLAIN.fullmatch(text) and text.lower() not in _KEYWORDS:
        return text
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), text)
    return '"' + escaped.replace("${", "\\${") + '"'


def command_hint(command: str, key: str, value: object) -> str:
    """Format a command with one override, to be pasted into a shell.

    Args:
        command: such as train.
        key: of the override.
        value: its value, such as the path of a run folder.
    """
    return f"python -m robust_fin.{command} {shlex.quote(f'{key}={hydra_text(str(value))}')}"


def tensorboard_hint(folder: object) -> str:
    """Format the command that shows a folder in TensorBoard, to be pasted into a shell."""
    return f"tensorboard --logdir {shlex.quote(str(folder))}"


@contextmanager
def console_level(level: int) -> Iterator[None]:
    """Set the level up to which `show` prints; NOTHING cannot be raised by an inner context.

    Args:
        level: NOTHING, RESULT (the verdict only), USUAL or DETAILS.
    """
    silent = _level.get() == NOTHING
    token = _level.set(NOTHING if silent else level)
    try:
        yield
    finally:
        _level.reset(token)


@contextmanager
def verbosity(verbose: int) -> Iterator[None]:
    """Set console level, progress, log levels and warnings; restore them on exit.

    Args:
        verbose: QUIET, NORMAL or DETAILED.
    """
    with ExitStack() as stack:
        stack.enter_context(console_level(_LEVELS[verbose]))
        stack.enter_context(hide_progress(when=verbose == QUIET))
        if verbose == DETAILED:
            stack.enter_context(_log_level(logging.getLogger("robust_fin"), logging.DEBUG))
        if verbose == QUIET:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for handler in logging.getLogger().handlers:
                if not isinstance(handler, logging.FileHandler):
                    stack.enter_context(_log_level(handler, logging.ERROR))
        yield


@contextmanager
def _log_level(target: logging.Logger | logging.Handler, level: int) -> Iterator[None]:
    previous = target.level
    target.setLevel(level)
    try:
        yield
    finally:
        target.setLevel(previous)


def stderr_console() -> Console:
    """Return a console on standard error."""
    return Console(stderr=True)


def progress_is_shown(console: Console | None = None) -> bool:
    """Return whether standard error is a terminal and progress is not hidden.

    Files, pipes and notebooks show no progress, so that they get no control characters.
    """
    return _hide_requests.get() == 0 and (console or stderr_console()).is_terminal


@contextmanager
def hide_progress(*, when: bool = True) -> Iterator[None]:
    """Hide progress within the context.

    Args:
        when: False changes nothing.
    """
    _hide_requests.set(_hide_requests.get() + when)
    try:
        yield
    finally:
        _hide_requests.set(_hide_requests.get() - when)


@contextmanager
def progress_bar(
    description: str, *, total: float | None, console: Console | None = None
) -> Iterator[Advance]:
    """Show a transient progress bar with the time left.

    Args:
        description: such as `features`.
        total: amount of work in any unit; None where unknown.
        console: None means standard error.

    Yields:
        A callable that takes the additional amount of work done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with _progress(columns, console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def progress_seconds(
    description: str, *, usual: float, console: Console | None = None
) -> Iterator[None]:
    """Show the elapsed seconds of a step whose progress is unknown.

    Args:
        description: such as `compiling, once`.
        usual: seconds that the step usually takes, for the estimate of the time left.
        console: None means standard error.
    """
    with _progress((SpinnerColumn(), _Seconds(usual)), console) as bar:
        bar.add_task(description, total=None)
        yield


class _Seconds(ProgressColumn):
    """Column such as `compiling, once: 4 s, about 8 s left`."""

    def __init__(self, usual: float) -> None:
        super().__init__()
        self.usual = usual

    def render(self, task: Task) -> Text:
        """Format the elapsed seconds and the estimate."""
        elapsed = task.elapsed or 0.0
        left = self.usual - elapsed
        estimate = f"about {left:.0f} s left" if left > 0 else f"usually takes {self.usual:.0f} s"
        return Text(f"{task.description}: {elapsed:.0f} s, {estimate}")


@contextmanager
def _progress(columns: tuple[ProgressColumn, ...], console: Console | None) -> Iterator[Progress]:
    """Show one bar at a time: a step within another step shows none."""
    console = console or stderr_console()
    shown = progress_is_shown(console)
    bar = Progress(*columns, console=console, transient=True, disable=not shown)
    with bar, hide_progress():
        yield bar
