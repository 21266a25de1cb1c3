"""Bootstrap intervals over trading dates, from sums kept per date."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import norm as normal
from scipy.stats import rankdata
from scipy.stats import t as student

from robust_fin.metrics import huber_terms

Statistic = Callable[[Float[np.ndarray, "draws sums"]], Float[np.ndarray, " draws"]]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; NaN where it could not be computed."""

    estimate: float
    low: float
    high: float

    def is_above(self, value: float) -> bool:
        """Whether the whole interval lies above `value`; False where it is NaN."""
        return self.low > value

    def is_below(self, value: float) -> bool:
        """Whether the whole interval lies below `value`; False where it is NaN."""
        return self.high < value


@dataclass(frozen=True, slots=True)
class DateBootstrap:
    """Samples of trading dates, shared by all that is compared, so that differences are paired.

    Attributes:
        weights: how often each date occurs in each sample.
        block: mean length of a block, in dates.
    """

    weights: Float[np.ndarray, "draws dates"]
    block: float

    @classmethod
    def for_series(
        cls, *series: Float[np.ndarray, " dates"], draws: int, seed: int
    ) -> "DateBootstrap":
        """Blocks as long as the most persistent of these series wants them.

        Args:
            series: one value a trading date, in the order of time.
            draws: number of samples.
            seed: of the draws.
        """
        block = max(block_length(one) for one in series)
        return cls(date_weights(series[0].size, draws=draws, seed=seed, block=block), block)

    def interval(self, sums: Float[np.ndarray, "dates sums"], statistic: Statistic) -> Interval:
        """The statistic of all dates, and an interval that holds the truth 95 times in 100.

        Samples of few blocks vary too little; the percentiles move outwards by as much as Student's
        law is wider than the normal one (expanded percentiles), with blocks for observations.

        Args:
            sums: kept per date, so that a sample costs a weighted sum.
            statistic: of sums over dates.

        Source: Hesterberg (2015), What teachers should know about the bootstrap, section 5.2.
        """
        estimate = float(statistic(sums.sum(axis=0, keepdims=True))[0])
        drawn = statistic(self.weights @ sums)
        if len(sums) < 2 or not np.isfinite(drawn).all():
            return Interval(estimate, math.nan, math.nan)
        tail = 100 * expanded_tail(len(sums) / self.block)
        low, high = np.percentile(drawn, [tail, 100 - tail])
        return Interval(estimate, float(low), float(high))


def expanded_tail(blocks: float, *, tail: float = 0.025) -> float:
    """Share of the samples to leave out on each side.

    Args:
        blocks: that a sample is made of, on average; fewer than 2 count as 2.
        tail: share wanted outside on each side.
    """
    count = max(blocks, 2.0)
    reach = math.sqrt(count / (count - 1)) * student.ppf(1 - tail, count - 1)
    return float(normal.cdf(-reach))


def block_length(series: Float[np.ndarray, " dates"]) -> float:
    """Mean length of the blocks that resample a series with the least error, at least 1.

    The longer its values depend on each other, the longer. 1 for a series that never changes.

    Args:
        series: in the order of time.

    Source: Politis and White (2004), Automatic block-length selection for the dependent bootstrap,
    with the correction of Patton, Politis and White (2009).
    """
    size = series.size
    if size < 2 or np.ptp(series) == 0:
        return 1.0
    run = max(5, int(math.log10(size)))  # so many correlations in a row must be small
    lags = min(math.ceil(math.sqrt(size)) + run, size - 2)
    if lags < run:
        return 1.0
    covariance, correlation = _dependence(series - series.mean(), lags)
    small = correlation < 2 * math.sqrt(math.log10(size) / size)
    quiet = [lag for lag in range(lags - run + 1) if small[lag : lag + run].all()]
    reach = min(2 * max(quiet[0], 1) if quiet else lags, lags)
    lag = np.arange(1, reach + 1)
    taper = np.where(lag <= reach / 2, 1.0, 2 * (1 - lag / reach))
    spread = covariance[0] + 2 * float(taper @ covariance[1 : reach + 1])
    slope = 2 * float((taper * lag) @ covariance[1 : reach + 1])
    best = (slope**2 / spread**2 * size) ** (1 / 3) if spread else 1.0
    return float(np.clip(best, 1.0, math.ceil(min(3 * math.sqrt(size), size / 3))))


def _dependence(
    apart: Float[np.ndarray, " dates"], lags: int
) -> tuple[Float[np.ndarray, " lags"], Float[np.ndarray, " lags"]]:
    """Autocovariances at lags 0..lags, and the sizes of the autocorrelations of the overlap."""
    size = apart.size
    crossed = np.array([apart[lag:] @ apart[: size - lag] for lag in range(lags + 1)])
    later = np.array([apart[lag + 1 :] @ apart[lag + 1 :] for lag in range(lags + 1)])
    earlier = np.array([apart[: -lag - 1] @ apart[: -lag - 1] for lag in range(lags + 1)])
    scale = np.sqrt(later * earlier)
    sizes = np.divide(np.abs(crossed), scale, out=np.full(lags + 1, np.inf), where=scale > 0)
    return crossed / size, sizes


def date_weights(
    dates: int, *, draws: int, seed: int, block: float | None = None
) -> Float[np.ndarray, "draws dates"]:
    """How often each date occurs in each stationary-bootstrap sample.

    Args:
        dates: number of trading dates.
        draws: number of samples.
        seed: of the draws.
        block: mean length of a block in dates; None takes dates^(1/3).

    Source: Politis and Romano (1994), The stationary bootstrap.
    """
    rng = np.random.default_rng(seed)
    restart = rng.random((draws, dates)) < 1 / (block or max(1.0, dates ** (1 / 3)))
    restart[:, 0] = True
    start = rng.integers(dates, size=(draws, dates))
    place = np.arange(dates)
    began = np.maximum.accumulate(np.where(restart, place, 0), axis=1)
    picked = (np.take_along_axis(start, began, axis=1) + place - began) % dates
    flat = (picked + dates * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * dates).reshape(draws, dates).astype(np.float64)


COLUMNS = (
    "loss", "trivial", "n", "x", "y", "xx", "yy", "xy", "hits", "ties", "dates", "ic", "ic_squared",
)  # fmt: skip
PLACE = {name: number for number, name in enumerate(COLUMNS)}
Sums = Float[np.ndarray, "dates sums"]


@dataclass(frozen=True, slots=True)
class DatedRows:
    """The labelled rows of a test span, and the constant their skill is measured against.

    Attributes:
        dates: the distinct trading dates, increasing.
        date: of each row, as its number among them.
        target: rank of the outcome among the training returns.
        outcome: forward return, a fraction.
        trivial: the training median of the row's fold, in rank units.
    """

    dates: np.ndarray
    date: Int[np.ndarray, " rows"]
    target: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    trivial: Float[np.ndarray, " rows"]

    @classmethod
    def from_frame(
        cls, rows: pd.DataFrame, *, trivial: float | Float[np.ndarray, " rows"]
    ) -> "DatedRows":
        """From the rows of one model.

        Args:
            rows: with trading_date, target, outcome.
            trivial: the constant forecast, in rank units; one a row where rows are of several
                folds.
        """
        dates, date = np.unique(rows["trading_date"].to_numpy(), return_inverse=True)
        target, outcome = (rows[name].to_numpy(dtype=np.float64) for name in ("target", "outcome"))
        constant = np.broadcast_to(np.asarray(trivial, dtype=np.float64), target.shape)
        return cls(dates, date, target, outcome, constant)

    def added(self, values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " dates"]:
        """Sums per date."""
        return np.bincount(self.date, weights=values, minlength=self.dates.size)

    def sums(self, score: Float[np.ndarray, " rows"]) -> Sums:
        """`COLUMNS` of one model, one row a date; ranks are taken once, over all dates.

        Args:
            score: its forecasts, in rank units.
        """
        middle = (score.size + 1) / 2
        x, y = rankdata(score) - middle, rankdata(self.outcome) - middle
        losses = (huber_terms(score, self.target), huber_terms(self.trivial, self.target))
        agreed = np.sign(score - self.trivial) * np.sign(self.outcome)
        hits, ties = 0.5 * (1 + agreed), (agreed == 0).astype(np.float64)
        moments = (np.ones_like(x), x, y, x * x, y * y, x * y)
        rows = [self.added(one) for one in (*losses, *moments, hits, ties)]
        ic = self.daily_ic(score)
        known = np.isfinite(ic)
        daily = np.where(known, ic, 0.0)
        return np.stack([*rows, known.astype(np.float64), daily, daily * daily], axis=1)

    def daily_ic(self, score: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " dates"]:
        """Spearman correlation of forecast and outcome within each date; NaN where one is flat."""
        table = pd.DataFrame({"x": score, "y": self.outcome})
        ranks = table.groupby(self.date).rank().to_numpy()
        middle = (self.added(np.ones(score.size)) + 1) / 2
        x, y = (ranks - middle[self.date][:, None]).T
        scale = self.added(x * x) * self.added(y * y)
        flat = np.full(self.dates.size, math.nan)
        return np.divide(self.added(x * y), np.sqrt(scale), out=flat, where=scale > 0)


def column(sums: Float[np.ndarray, "draws sums"], name: str) -> Float[np.ndarray, " draws"]:
    """One of `COLUMNS`."""
    return sums[:, PLACE[name]]


def skill_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """1 - loss / loss of the constant."""
    return 1 - ratio(column(sums, "loss"), column(sums, "trivial"))


def rank_ic_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Spearman correlation over all rows, with the ranks of the whole span."""
    n, x, y, xx, yy, xy = (column(sums, name) for name in ("n", "x", "y", "xx", "yy", "xy"))
    scale = (xx - x * x / n) * (yy - y * y / n)
    return ratio(xy - x * y / n, np.sqrt(np.maximum(scale, 0.0)))


def daily_ic_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Mean over dates of the rank IC within a date."""
    return ratio(column(sums, "ic"), column(sums, "dates"))


def icir_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Mean over standard deviation of the daily rank IC: its Sharpe ratio, per date."""
    count, mean = column(sums, "dates"), daily_ic_of(sums)
    variance = ratio(column(sums, "ic_squared") - count * mean * mean, count - 1)
    return ratio(mean, np.sqrt(np.maximum(variance, 0.0)))


def hit_rate_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Share of rows whose direction was right; a row without one, on either side, is half a hit."""
    return ratio(column(sums, "hits"), column(sums, "n"))


def tie_share_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Share of rows where the forecast or the outcome has no direction."""
    return ratio(column(sums, "ties"), column(sums, "n"))


def ratio(
    above: Float[np.ndarray, " draws"], below: Float[np.ndarray, " draws"]
) -> Float[np.ndarray, " draws"]:
    """NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(above.shape, math.nan), where=below > 0)
