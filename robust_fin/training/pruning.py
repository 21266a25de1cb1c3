"""Ends a trial early that does worse on val than the other trials of its study did by then."""

import math
import os

import lightning as L

from robust_fin.errors import Pruned
from robust_fin.hardware.group import is_first, share_first
from robust_fin.training.study_link import VARIABLE, LinkedTrial

FIGURE = "val/skill"  # what a search maximises, and nothing else


class PruneOnVal(L.Callback):
    """Reports val/skill after each validation, and stops where the study's pruner says so.

    Rank 0 reports and decides for all processes. A figure that is no number is not reported: what
    became of such a run is told by its end.

    Args:
        trial: of this process; None where it belongs to no study, or in all ranks but the first.
    """

    def __init__(self, trial: LinkedTrial | None) -> None:
        """Nothing reported yet."""
        self._trial = trial

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Report, and stop all processes together.

        Raises:
            Pruned: says when, and at which figure.
        """
        if trainer.sanity_checking:
            return
        skill = float(trainer.callback_metrics[FIGURE])
        said = share_first(self._verdict(skill, trainer) if is_first() else None)
        if said is not None:
            raise Pruned(said)

    def _verdict(self, skill: float, trainer: L.Trainer) -> str | None:
        """Why to stop; None to go on."""
        if self._trial is None or not math.isfinite(skill):
            return None
        self._trial.report(skill, step=trainer.global_step)
        if not self._trial.should_end():
            return None
        link, best = self._trial.link, max(self._trial.trial.intermediate_values.values())
        return (
            f"trial {link.trial} of {link.study} was pruned in epoch {trainer.current_epoch + 1}, "
            f"at step {trainer.global_step}: its best {FIGURE} so far, {best:.6f}, is behind the "
            "other trials' by then"
        )


def pruning_callbacks(*, has_val: bool) -> list[L.Callback]:
    """Those of a fit that is a trial of a study; none for any other.

    Args:
        has_val: else there is nothing to compare, as in a refit.
    """
    if not has_val or VARIABLE not in os.environ:
        return []
    return [PruneOnVal(LinkedTrial.found() if is_first() else None)]
