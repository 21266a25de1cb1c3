"""Targets: forward returns, their ranks among the training returns, and shuffled-label controls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from robust_fin.errors import ConfigError, TransformError
from robust_fin.features.history import contract_rows
from robust_fin.market.schema import bar_starts


class Labels(NamedTuple):
    """One entry a bar.

    Attributes:
        outcome: forward return, as a fraction; NaN where the future is not there or not wanted.
        label_end: datetime64[ns], end of the last bar the return needs; NaT where there is none.
        over_gap: whether a label exists but jumps a break longer than allowed.
    """

    outcome: Float[np.ndarray, " rows"]
    label_end: np.ndarray
    over_gap: np.ndarray


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
        """Refuse a horizon that looks at the present or the past."""
        if not isinstance(self.horizon, int) or self.horizon < 1:
            raise ConfigError(
                f"target.horizon={self.horizon} must be a whole number of bars, at least 1"
            )
        if self.max_gap is not None and self.max_gap <= 0:
            raise ConfigError(f"target.max_gap={self.max_gap} must be above 0 minutes, or null")

    def label(self, bars: pd.DataFrame, *, bar: pd.Timedelta) -> Labels:
        """Label every bar.

        Args:
            bars: the table of `robust_fin.market.sources.Bars`, in the order of time.
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
            over_gap[now] = self._jumps(time[rows])
        outcome[over_gap] = np.nan
        label_end[over_gap] = np.datetime64("NaT")
        return Labels(outcome, label_end, over_gap)

    def _jumps(self, time: np.ndarray) -> np.ndarray:
        if self.max_gap is None:
            return np.zeros(max(0, time.size - self.horizon), dtype=bool)
        long = np.diff(time) > np.timedelta64(round(self.max_gap * 60e9), "ns")
        seen = np.concatenate([[0], np.cumsum(long)])
        return seen[self.horizon :] > seen[: -self.horizon]


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


KEPT, SHUFFLED, SWAPPED = "kept", "shuffled", "swapped"


def controlled(rank: Rows, outcome: Rows, *, labels: str, seed: int) -> tuple[Rows, Rows]:
    """The labels that a span is trained or chosen on.

    Shuffled, nothing is left to learn, and a run that still shows skill on the true labels of test
    leaks. Swapped, high for low, a run must order test as well as ever, the wrong way round; a loss
    that pairs forecasts and labels wrongly would not notice.

    Args:
        rank: of the forward returns, in [0, 1].
        outcome: the returns, as fractions.
        labels: kept, shuffled or swapped.
        seed: of the shuffling.

    Raises:
        ConfigError: `labels` is none of them.
    """
    if labels == KEPT:
        return rank, outcome
    if labels == SHUFFLED:
        order = np.random.default_rng([seed, rank.size]).permutation(rank.size)
        return rank[order], outcome[order]
    if labels == SWAPPED:
        return 1 - rank, -outcome
    raise ConfigError(f"debug.labels={labels} is none of {KEPT}, {SHUFFLED}, {SWAPPED}")
