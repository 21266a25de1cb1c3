"""The forecasts of one span: mean and spread over members, and the figures of each of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from robust_fin.bundle.daily_losses import DailyLosses
from robust_fin.bundle.nets import Nets
from robust_fin.bundle.predictions import Forecast, MemberMean
from robust_fin.metrics import Yardstick

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class SpanForecast:
    """What a population says about a span, in one pass over its members.

    Attributes:
        forecast: mean and spread.
        members: figures of each member.
        kept: scores of the first members.
        losses: of each member by trading date; no columns where they were not asked for.
    """

    forecast: Forecast
    members: tuple[Figures, ...]
    kept: Float[np.ndarray, "kept rows"]
    losses: Float[np.ndarray, "members dates"]

    @classmethod
    def of(
        cls,
        nets: Nets,
        x: Float[Tensor, "rows features"],
        yardstick: Yardstick,
        *,
        keep: int,
        daily: DailyLosses | None = None,
    ) -> "SpanForecast":
        """Score a span.

        Args:
            nets: one, or the members.
            x: transformed features, float32, on the CPU.
            yardstick: of the span.
            keep: members whose single scores are kept, in float16.
            daily: what losses by trading date are measured with.
        """
        mean, figures, kept = MemberMean(), list[Figures](), list[np.ndarray]()
        losses: list[np.ndarray] = []
        for block in nets.scores(x):
            mean.add(block)
            exact = block.astype(np.float64)
            figures += [yardstick.figures(score) for score in exact]
            losses += [] if daily is None else [daily.of(score) for score in exact]
            kept += [score.astype(np.float16) for score in block[: max(0, keep - len(kept))]]
        whole = np.stack(kept) if kept else np.zeros((0, len(x)), np.float16)
        by_date = np.stack(losses) if losses else np.zeros((len(figures), 0))
        return cls(mean.forecast(), tuple(figures), whole, by_date)


def spread(members: tuple[Figures, ...]) -> Figures:
    """Mean, standard deviation and the 95 % interval over members of each figure.

    Args:
        members: figures of each; at least two, or the deviation is NaN.

    Returns:
        NAME_mean, NAME_std (one degree of freedom less), NAME_low and NAME_high (the 2.5 and 97.5
        percentiles).
    """
    found: Figures = {}
    for name in members[0]:
        values = np.array([one[name] for one in members])
        low, high = np.percentile(values, [2.5, 97.5])
        std = float(values.std(ddof=1)) if values.size > 1 else float("nan")
        found |= {f"{name}_mean": float(values.mean()), f"{name}_std": std}
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found
