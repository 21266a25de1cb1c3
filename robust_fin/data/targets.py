"""Targets: forward returns, their ranks among the training returns, and shuffled-label controls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from robust_fin.errors import ConfigError, TransformError
from robust_fin.features.history import contract_rows
from robust_fin.market.schema import bar_starts


class Labels(NamedTuple):
    """Labels of a table, one entry per bar.

    Attributes:
        outcome: forward return, a fraction; NaN if unknown or excluded.
        label_end: datetime64[ns], end of the last bar the return needs; NaT without a label.
        over_gap: True for labels excluded because they jump a break longer than allowed.
    """

    outcome: Float[np.ndarray, " rows"]
    label_end: Shaped[np.ndarray, " rows"]
    over_gap: Bool[np.ndarray, " rows"]


@dataclass(frozen=True, slots=True)
class ForwardReturn:
    """close[t + horizon] / close[t] - 1 within one contract.

    Attributes:
        horizon: in bars of the contract, at least 1.
        max_gap: longest time in minutes between the starts of successive bars that a label may
            span; None allows any (nights, weekends).
    """

    horizon: int
    max_gap: float | None

    def __post_init__(self) -> None:
        if not isinstance(self.horizon, int) or self.horizon < 1:
            raise ConfigError(
                f"target.horizon={self.horizon} must be an integer number of bars, >= 1"
            )
        if self.max_gap is not None and self.max_gap <= 0:
            raise ConfigError(f"target.max_gap={self.max_gap} must be > 0 minutes, or null")

    def label(self, bars: pd.DataFrame, *, bar: pd.Timedelta) -> Labels:
        """Label every bar.

        Args:
            bars: the table of `robust_fin.market.sources.Bars`, in time order.
            bar: length of a bar.
        """
        outcome = np.full(len(bars), np.nan)
        label_end = np.full(len(bars), np.datetime64("NaT"), dtype="datetime64[ns]")
        over_gap = np.zeros(len(bars), dtype=bool)
        close = bars["close"].to_numpy()
        time = bar_starts(bars)
        for rows in contract_rows(bars):
            now, then = rows[: -self.horizon], rows[self.horizon :]
            outcome[now] = close[then] / close[now] - 1
            label_end[now] = time[then] + bar.to_timedelta64()
            over_gap[now] = self._jumps_gap(time[rows])
        outcome[over_gap] = np.nan
        label_end[over_gap] = np.datetime64("NaT")
        return Labels(outcome, label_end, over_gap)

    def _jumps_gap(self, time: Shaped[np.ndarray, " bars"]) -> Bool[np.ndarray, " labels"]:
        if self.max_gap is None:
            return np.zeros(max(0, time.size - self.horizon), dtype=bool)
        long = np.diff(time) > np.timedelta64(round(self.max_gap * 60e9), "ns")
        gaps = np.concatenate([[0], np.cumsum(long)])
        return gaps[self.horizon :] > gaps[: -self.horizon]


Rows = Float[np.ndarray, " rows"]


@dataclass(frozen=True, slots=True)
class RankTarget:
    """Forward return -> its rank among the training returns, in [0, 1].

    On the training rows this is (rank - 1) / (n - 1) with ties at their mean rank. It is stored as
    distinct values and counts, as prices on a tick grid leave few distinct returns.

    Attributes:
        values: distinct training returns, increasing.
        counts: occurrences of each.
    """

    values: Float[np.ndarray, " distinct"]
    counts: Int[np.ndarray, " distinct"]

    @classmethod
    def fit(cls, train: Rows) -> "RankTarget":
        """Fit the distribution of the training returns.

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
        """Number of training rows."""
        return int(self.counts.sum())

    @property
    def median(self) -> float:
        """Median of the target over the training rows: the best constant under absolute loss."""
        middle = [(self.rows - 1) // 2, self.rows // 2]
        returns = self.values[np.searchsorted(np.cumsum(self.counts), middle, side="right")]
        return float(self.transform(returns).mean())

    @property
    def mean(self) -> float:
        """Mean of the target over the training rows: the best constant under squared loss."""
        return float(np.average(self.transform(self.values), weights=self.counts))

    def transform(self, returns: Rows) -> Rows:
        """Return ranks in [0, 1]; ties get the middle rank, NaN stays NaN, the rest is clipped."""
        last = self.rows - 1
        below = np.concatenate([[0], np.cumsum(self.counts)])
        index = np.searchsorted(self.values, returns, side="left")
        known = self.values[np.minimum(index, self.values.size - 1)] == returns
        ranks = np.clip((below[index] + below[index + known] - 1) / 2, 0, last) / last
        return np.where(np.isnan(returns), np.nan, ranks)

    def rank_of(self, forecast: Float[np.ndarray, "*rows"]) -> Float[np.ndarray, "*rows"]:
        """Return ranks of forecast returns, interpolated between the training returns.

        `transform` gives all values between two training returns the same rank. Forecasts of
        one-minute returns nearly all lie within one tick of 0, so their order would be lost.
        """
        return np.interp(forecast, self.values, self.transform(self.values))

    def inverse(self, ranks: Rows) -> Rows:
        """Return the training return at each rank, interpolated between neighbours.

        Exact on the training rows: `inverse(transform(r)) == r`.
        """
        last = self.rows - 1
        position = np.clip(np.asarray(ranks, dtype=np.float64), 0, 1) * last
        half = np.round(2 * position) / 2
        position = np.where(np.abs(position - half) < 1e-6, half, position)  # undo rounding
        below = np.floor(position)
        ends = np.cumsum(self.counts)
        low = self.values[np.searchsorted(ends, below, side="right")]
        high = self.values[np.searchsorted(ends, np.minimum(below + 1, last), side="right")]
        return low + (position - below) * (high - low)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fitted arrays."""
        return {"values": self.values, "counts": self.counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "RankTarget":
        """Restore a target from its `arrays`."""
        return cls(arrays["values"], arrays["counts"])


Scores = Float[np.ndarray, "*rows"]


@runtime_checkable
class TargetScale(Protocol):
    """Conversion between the forward return, the training target and rank units.

    Attributes:
        start: forecast of an untrained net; model.head_start uses it.
    """

    start: float

    def training_target(self, *, outcome: Rows, rank: Rows) -> Rows:
        """Return what the net is trained to forecast.

        Args:
            outcome: forward returns, as fractions.
            rank: their ranks among the training returns, in [0, 1].
        """
        ...

    def to_rank(self, forecast: Scores, *, target: RankTarget) -> Scores:
        """Convert forecasts to rank units.

        Args:
            forecast: output of the net, after the link.
            target: fitted on the training rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class RankScale:
    """Scale of a net that forecasts the rank.

    Attributes:
        start: see `TargetScale`.
    """

    start: float

    def training_target(self, *, outcome: Rows, rank: Rows) -> Rows:  # noqa: ARG002
        """Return the rank."""
        return rank

    def to_rank(self, forecast: Scores, *, target: RankTarget) -> Scores:  # noqa: ARG002
        """Return the forecast unchanged."""
        return forecast


@dataclass(frozen=True, slots=True)
class ReturnScale:
    """Scale of a net that forecasts the forward return, including its fat tails.

    Attributes:
        unit: return that counts as 1, as a fraction; the delta of a loss is in these units.
        start: see `TargetScale`.
    """

    unit: float
    start: float

    def __post_init__(self) -> None:
        if not (self.unit > 0 and math.isfinite(self.unit)):
            raise ConfigError(
                f"target_scale.unit={self.unit} must be a finite return > 0, for example 1.0 for "
                "fractions or 0.0001 for basis points"
            )

    def training_target(self, *, outcome: Rows, rank: Rows) -> Rows:  # noqa: ARG002
        """Return the forward return in units."""
        return outcome / self.unit

    def to_rank(self, forecast: Scores, *, target: RankTarget) -> Scores:
        """Return the ranks of the forecast returns among the training returns."""
        return target.rank_of(np.asarray(forecast, dtype=np.float64) * self.unit)


KEPT, SHUFFLED, SWAPPED = "kept", "shuffled", "swapped"


def apply_label_control(rank: Rows, outcome: Rows, *, labels: str, seed: int) -> tuple[Rows, Rows]:
    """Return the labels of a span for training and validation.

    With shuffled labels nothing can be learnt: a run that still has skill on the true labels of
    test leaks. With swapped labels (high for low) a run must order test as well as before, in
    reverse; a loss that pairs forecasts with the wrong labels would not notice.

    Args:
        rank: ranks of the forward returns, in [0, 1].
        outcome: forward returns, as fractions.
        labels: kept, shuffled or swapped.
        seed: of the shuffling.

    Raises:
        ConfigError: `labels` is not one of them.
    """
    if labels == KEPT:
        return rank, outcome
    if labels == SHUFFLED:
        order = np.random.default_rng([seed, rank.size]).permutation(rank.size)
        return rank[order], outcome[order]
    if labels == SWAPPED:
        return 1 - rank, -outcome
    raise ConfigError(f"debug.labels={labels} must be one of {KEPT}, {SHUFFLED}, {SWAPPED}")
