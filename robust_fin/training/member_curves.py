"""Curves of a population: the mean over members, and the band that holds 95 % of them."""

from collections.abc import Sequence

import torch
from lightning.pytorch.loggers import Logger

from robust_fin.training.steps import StepResult, points_due

BAND = ("mean", "low", "high")


class MemberCurves:
    """Draws the points of the training curves that fall due within a window."""

    def draw(
        self,
        loggers: Sequence[Logger],
        results: Sequence[StepResult],
        *,
        first: int,
        count: int,
        every: int,
    ) -> None:
        """Draw a window.

        Args:
            loggers: of the Trainer.
            results: of the members that took all their steps.
            first: optimizer steps done before the window, on the scale of the largest data set.
            count: steps of the window on that scale.
            every: steps between two points; 0 draws none.
        """
        if not results or not loggers:
            return
        for at in points_due(first, count, every=every):
            point = _point(results, at, count)
            for logger in loggers:
                logger.log_metrics(point, step=first + at)


def _point(results: Sequence[StepResult], at: int, count: int) -> dict[str, float]:
    """Mean and band at step `at` of a window of `count`, in whose course each did its own."""
    places = [at * len(one.loss) // count for one in results]
    loss = torch.stack([one.loss[at] for one, at in zip(results, places, strict=True)]).double()
    norm = torch.stack([one.gradient_norm[at] for one, at in zip(results, places, strict=True)])
    edges = torch.quantile(loss, torch.tensor([0.025, 0.975], dtype=loss.dtype))
    values = (loss.mean(), edges[0], edges[1])
    band = {f"members/train/objective_{k}": float(v) for k, v in zip(BAND, values, strict=True)}
    return band | {
        "train/objective": float(loss.mean()),
        "train/gradient_norm": float(norm.mean()),
        "members/train/gradient_norm_max": float(norm.max()),
    }
