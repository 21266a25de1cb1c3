"""The progress bar of a fit, and of the compilation before it."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text


class FitProgress(RichProgressBar):
    """Lightning's rich bar with the objective and, where there is a val span, its skill.

    Args:
        refresh_rate: batches between two updates.
    """

    def __init__(self, *, refresh_rate: int) -> None:
        """Leave the finished bars of all epochs out of the scroll."""
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar; the logger's version is no figure of the run."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class _Seconds(ProgressColumn):
    """`compiling, once: 12 s`."""

    def render(self, task: Task) -> Text:
        """What was written when the task began, and the seconds since."""
        return Text(f"{task.description}: {task.elapsed or 0:.0f} s")


@contextmanager
def shown_seconds(what: str, *, show: bool, console: Console | None = None) -> Iterator[None]:
    """A line that counts the seconds of something whose end is not known; gone when it is done.

    Args:
        what: such as `compiling, once`.
        show: False, or a console that is no terminal, shows nothing.
        console: where; None takes standard output.
    """
    console = console or Console()
    bar = Progress(
        SpinnerColumn(),
        _Seconds(),
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    )
    with bar:
        bar.add_task(what, total=None)
        yield
