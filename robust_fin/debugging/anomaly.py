"""Which operation makes the first gradient that is no number? Torch's anomaly detection says."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from robust_fin.data.datamodule import BarDataModule
from robust_fin.debugging.check import plainly
from robust_fin.errors import NonFiniteError
from robust_fin.evaluation.console import RESULT, show
from robust_fin.training.fitting import FitPlan, fit

_NAN = "returned nan values"  # of torch's own message


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Trains as the config says, every backward pass watched; some times slower.

    Attributes:
        max_steps: optimizer steps; None takes as many as the config says.
    """

    max_steps: int | None

    def look(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Train.

        Raises:
            NonFiniteError: a backward pass made NaN; the warning before it has the line that the
                operation was called from.
        """
        watched = plainly(config)
        OmegaConf.update(watched, "trainer.detect_anomaly", True)
        try:
            done = fit(
                watched, data, FitPlan(folder, stage="", max_steps=self.max_steps, resume=False)
            )
        except RuntimeError as error:
            if _NAN not in str(error):
                raise
            raise NonFiniteError(
                f"{error} The warning before this names the line of the forward pass that it "
                "belongs to"
            ) from error
        show(
            f"No backward pass made NaN in {done.summary.steps:,} steps; the largest gradient norm "
            f"was {done.summary.gradient_norm_max:.4g}.",
            loudness=RESULT,
        )
