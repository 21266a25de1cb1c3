"""Metrics of a span, gathered over batches and processes."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from robust_fin.metrics import span_metrics

Scores = Float[np.ndarray, " rows"]


class SpanScores(Metric):
    """The thin state around `robust_fin.metrics.span_metrics`.

    It keeps whole vectors, because a rank correlation of parts is not the rank correlation of the
    whole; processes gather them, so the figures are exact under DDP.

    Args:
        train_median: of the target over the training rows, in rank units.
        train_mean: likewise.
        to_rank: forecast -> rank units; None where the net forecasts ranks.
    """

    full_state_update = False
    score: list[Tensor]
    target: list[Tensor]
    outcome: list[Tensor]

    def __init__(
        self,
        *,
        train_median: float,
        train_mean: float,
        to_rank: Callable[[Scores], Scores] | None = None,
    ) -> None:
        """Start empty."""
        super().__init__()
        self.train_median, self.train_mean, self.to_rank = train_median, train_mean, to_rank
        for name in ("score", "target", "outcome"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        score: Float[Tensor, " batch"],
        target: Float[Tensor, " batch"],
        outcome: Float[Tensor, " batch"],
    ) -> None:
        """Append a batch."""
        self.score.append(score)
        self.target.append(target)
        self.outcome.append(outcome)

    def forecasts(self) -> Scores:
        """Those gathered so far in this process, in rank units."""
        score = dim_zero_cat(self.score).double().cpu().numpy()
        return score if self.to_rank is None else self.to_rank(score)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """The figures of the span, float32 scalars by name."""
        vectors = (self.score, self.target, self.outcome)
        score, target, outcome = (dim_zero_cat(v).double().cpu().numpy() for v in vectors)
        score = score if self.to_rank is None else self.to_rank(score)
        found = span_metrics(
            score, target, outcome, train_median=self.train_median, train_mean=self.train_mean
        )
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in found.items()}
