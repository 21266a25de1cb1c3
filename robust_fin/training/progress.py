"""The progress bar of a fit."""

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from robust_fin.progress import is_watched


class FitProgress(RichProgressBar):
    """Lightning's rich bar with the objective and, where there is a val span, its skill.

    Args:
        refresh_rate: batches between two updates.
    """

    def __init__(self, *, refresh_rate: int) -> None:
        """Leave the finished bars of all epochs out of the scroll."""
        super().__init__(refresh_rate=refresh_rate, console_kwargs={"stderr": True})

    @property
    def is_enabled(self) -> bool:
        """Only where a terminal looks on."""
        return super().is_enabled and is_watched()

    @property
    def is_disabled(self) -> bool:
        """The opposite."""
        return not self.is_enabled

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar; the logger's version is no figure of the run."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
