"""The rank target: a return's place among the training returns."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from robust_fin.errors import TransformError

Rows = Float[np.ndarray, " rows"]


@dataclass(frozen=True, slots=True)
class RankTarget:
    """Forward return -> its rank among the training returns, in [0, 1].

    On the training rows this is (rank - 1) / (n - 1) with ties at their mean rank. Kept as distinct
    values and counts, because a tick grid leaves few of them.

    Attributes:
        values: distinct training returns, increasing.
        counts: how often each occurs.
    """

    values: Float[np.ndarray, " distinct"]
    counts: Int[np.ndarray, " distinct"]

    @classmethod
    def fit(cls, train: Rows) -> "RankTarget":
        """Learn the distribution of the training returns.

        Raises:
            TransformError: fewer than two distinct returns.
        """
        values, counts = np.unique(train, return_counts=True)
        if values.size < 2:
            raise TransformError(
                f"the forward return takes {values.size} distinct value on {train.size} training "
                "rows; there is nothing to rank. Use bars whose prices move"
            )
        return cls(values, counts.astype(np.int64))

    @property
    def rows(self) -> int:
        """Training rows."""
        return int(self.counts.sum())

    @property
    def median(self) -> float:
        """Median of the target over the training rows: the best constant under absolute loss."""
        middle = [(self.rows - 1) // 2, self.rows // 2]
        held = self.values[np.searchsorted(np.cumsum(self.counts), middle, side="right")]
        return float(self.transform(held).mean())

    @property
    def mean(self) -> float:
        """Mean of the target over the training rows: the best constant under squared loss."""
        return float(np.average(self.transform(self.values), weights=self.counts))

    def transform(self, returns: Rows) -> Rows:
        """Ranks in [0, 1]; ties take the middle rank, the unseen is clipped, NaN stays NaN."""
        last = self.rows - 1
        upto = np.concatenate([[0], np.cumsum(self.counts)])
        place = np.searchsorted(self.values, returns, side="left")
        seen = self.values[np.minimum(place, self.values.size - 1)] == returns
        ranks = np.clip((upto[place] + upto[place + seen] - 1) / 2, 0, last) / last
        return np.where(np.isnan(returns), np.nan, ranks)

    def rank_of(self, forecast: Float[np.ndarray, "*rows"]) -> Float[np.ndarray, "*rows"]:
        """Ranks of returns that are forecast: a training return has its own, as `transform` says.

        Between two of them it is interpolated. `transform` has one rank for all that lies between,
        and forecasts for a minute lie nearly all within a tick of 0: their order would be lost.
        """
        return np.interp(forecast, self.values, self.transform(self.values))

    def inverse(self, ranks: Rows) -> Rows:
        """The training return at a rank, interpolated between neighbours.

        Exact on the training rows: `inverse(transform(r)) == r`.
        """
        last = self.rows - 1
        place = np.clip(np.asarray(ranks, dtype=np.float64), 0, 1) * last
        half = np.round(2 * place) / 2
        place = np.where(np.abs(place - half) < 1e-6, half, place)  # undo the division's rounding
        below = np.floor(place)
        upto = np.cumsum(self.counts)
        low = self.values[np.searchsorted(upto, below, side="right")]
        high = self.values[np.searchsorted(upto, np.minimum(below + 1, last), side="right")]
        return low + (place - below) * (high - low)

    def arrays(self) -> dict[str, np.ndarray]:
        """Distinct values and counts."""
        return {"values": self.values, "counts": self.counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "RankTarget":
        """The target that `arrays` came from."""
        return cls(arrays["values"], arrays["counts"])
