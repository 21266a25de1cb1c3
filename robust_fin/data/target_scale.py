"""What the net is trained on: the rank of the forward return, or the return itself.

Whatever it is trained on, its forecasts are judged in rank units: `to_rank` brings them there, on
val, on test and in predict alike.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from robust_fin.data.rank_target import RankTarget
from robust_fin.errors import ConfigError

Rows = Float[np.ndarray, " rows"]
Scores = Float[np.ndarray, "*rows"]


@runtime_checkable
class TargetScale(Protocol):
    """Between the forward return, what the net is trained on, and the ranks it is judged in.

    Attributes:
        start: the forecast of a net that knows nothing yet; model.head_start takes it from here.
    """

    start: float

    def trained(self, *, outcome: Rows, rank: Rows) -> Rows:
        """What the net is to forecast.

        Args:
            outcome: forward returns, as fractions.
            rank: their ranks among the training returns, in [0, 1].
        """
        ...

    def to_rank(self, forecast: Scores, *, target: RankTarget) -> Scores:
        """Forecasts in rank units.

        Args:
            forecast: of the net, after the link.
            target: fitted on the training rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class RankScale:
    """The net forecasts the rank itself.

    Attributes:
        start: see `TargetScale`.
    """

    start: float

    def trained(self, *, outcome: Rows, rank: Rows) -> Rows:  # noqa: ARG002
        """The rank."""
        return rank

    def to_rank(self, forecast: Scores, *, target: RankTarget) -> Scores:  # noqa: ARG002
        """As they are."""
        return forecast


@dataclass(frozen=True, slots=True)
class ReturnScale:
    """The net forecasts the forward return, fat tails and all.

    Attributes:
        unit: return that counts as 1, as a fraction; a loss with a delta has it in these units.
        start: see `TargetScale`.
    """

    unit: float
    start: float

    def __post_init__(self) -> None:
        """Refuse a unit that is no size."""
        if not (self.unit > 0 and math.isfinite(self.unit)):
            raise ConfigError(
                f"target_scale.unit={self.unit} must be a finite return above 0, such as 1.0 for "
                "fractions or 0.0001 for basis points"
            )

    def trained(self, *, outcome: Rows, rank: Rows) -> Rows:  # noqa: ARG002
        """The return, in units."""
        return outcome / self.unit

    def to_rank(self, forecast: Scores, *, target: RankTarget) -> Scores:
        """The rank that such a return has among the training returns."""
        return target.rank_of(np.asarray(forecast, dtype=np.float64) * self.unit)
