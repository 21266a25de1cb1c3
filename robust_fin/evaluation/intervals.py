"""Bootstrap intervals over trading dates, computed from sums per date."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from robust_fin.metrics import huber_terms

Sums = Float[np.ndarray, "dates sums"]
DrawnSums = Float[np.ndarray, "draws sums"]
Statistic = Callable[[DrawnSums], Float[np.ndarray, " draws"]]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; NaN where it could not be computed."""

    estimate: float
    low: float
    high: float

    def is_above(self, value: float) -> bool:
        """Return True if the entire interval is above `value`; False if it is NaN."""
        return self.low > value

    def is_below(self, value: float) -> bool:
        """Return True if the entire interval is below `value`; False if it is NaN."""
        return self.high < value


@dataclass(frozen=True, slots=True)
class DateBootstrap:
    """Bootstrap samples of trading dates, shared by everything compared, so that it is paired.

    Attributes:
        weights: how often each date occurs in each sample.
        block: mean block length, in dates.
    """

    weights: Float[np.ndarray, "draws dates"]
    block: float

    @classmethod
    def for_series(
        cls, *series: Float[np.ndarray, " dates"], draws: int, seed: int
    ) -> "DateBootstrap":
        """Draw samples with the block length of the most persistent of these series.

        Args:
            series: one value per trading date, in time order.
            draws: number of samples.
            seed: of the random numbers.
        """
        block = max(block_length(values) for values in series)
        return cls(date_weights(series[0].size, draws=draws, seed=seed, block=block), block)

    def interval(self, sums: Sums, statistic: Statistic) -> Interval:
        """Compute a statistic over all dates with its 95 % interval.

        The percentile interval is too narrow with few blocks. It is widened by the ratio of
        Student's t to the normal distribution, with blocks as observations (expanded percentiles).

        Args:
            sums: per date, so that a sample costs one weighted sum.
            statistic: of sums over dates.

        Source: Hesterberg (2015), What teachers should know about the bootstrap, section 5.2.
        """
        estimate = float(statistic(sums.sum(axis=0, keepdims=True))[0])
        drawn = statistic(self.weights @ sums)
        if len(sums) < 2 or not np.isfinite(drawn).all():
            return Interval(estimate, math.nan, math.nan)
        return percentile_interval(estimate, drawn, blocks=len(sums) / self.block)


def percentile_interval(
    estimate: float, drawn: Float[np.ndarray, " draws"], *, blocks: float
) -> Interval:
    """Return the expanded-percentile interval of bootstrap draws.

    Args:
        estimate: of the full sample.
        drawn: value in each bootstrap sample.
        blocks: average number of blocks in a sample.
    """
    tail = 100 * expanded_tail(blocks)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(estimate, float(low), float(high))


def expanded_tail(blocks: float, *, tail: float = 0.025) -> float:
    """Return the share of samples to cut off on each side.

    Args:
        blocks: average number of blocks in a sample; fewer than 2 count as 2.
        tail: nominal share on each side.
    """
    count = max(blocks, 2.0)
    reach = math.sqrt(count / (count - 1)) * student.ppf(1 - tail, count - 1)
    return float(norm.cdf(-reach))


def block_length(series: Float[np.ndarray, " dates"]) -> float:
    """Return the mean block length, at least 1, that minimises the bootstrap's error.

    It grows with the autocorrelation of the series; 1 for a constant series.

    Args:
        series: in time order.

    Source: Politis and White (2004), Automatic block-length selection for the dependent bootstrap,
    with the correction of Patton, Politis and White (2009).
    """
    size = series.size
    if size < 2 or np.ptp(series) == 0:
        return 1.0
    run = max(5, int(math.log10(size)))  # number of successive small autocorrelations required
    lags = min(math.ceil(math.sqrt(size)) + run, size - 2)
    if lags < run:
        return 1.0
    covariance, correlation = _autocorrelation(series - series.mean(), lags)
    small = correlation < 2 * math.sqrt(math.log10(size) / size)
    quiet = [lag for lag in range(lags - run + 1) if small[lag : lag + run].all()]
    reach = min(2 * max(quiet[0], 1) if quiet else lags, lags)
    lag = np.arange(1, reach + 1)
    taper = np.where(lag <= reach / 2, 1.0, 2 * (1 - lag / reach))
    spread = covariance[0] + 2 * float(taper @ covariance[1 : reach + 1])
    slope = 2 * float((taper * lag) @ covariance[1 : reach + 1])
    best = (slope**2 / spread**2 * size) ** (1 / 3) if spread else 1.0
    return float(np.clip(best, 1.0, math.ceil(min(3 * math.sqrt(size), size / 3))))


def _autocorrelation(
    centred: Float[np.ndarray, " dates"], lags: int
) -> tuple[Float[np.ndarray, " lags"], Float[np.ndarray, " lags"]]:
    """Return autocovariances at lags 0..lags and absolute autocorrelations of the overlaps."""
    size = centred.size
    crossed = np.array([centred[lag:] @ centred[: size - lag] for lag in range(lags + 1)])
    later = np.array([centred[lag + 1 :] @ centred[lag + 1 :] for lag in range(lags + 1)])
    earlier = np.array([centred[: -lag - 1] @ centred[: -lag - 1] for lag in range(lags + 1)])
    scale = np.sqrt(later * earlier)
    sizes = np.divide(np.abs(crossed), scale, out=np.full(lags + 1, np.inf), where=scale > 0)
    return crossed / size, sizes


def date_weights(
    dates: int, *, draws: int, seed: int, block: float | None = None
) -> Float[np.ndarray, "draws dates"]:
    """Count how often each date occurs in each sample of the stationary bootstrap.

    Args:
        dates: number of trading dates.
        draws: number of samples.
        seed: of the random numbers.
        block: mean block length in dates; None takes dates^(1/3).

    Source: Politis and Romano (1994), The stationary bootstrap.
    """
    rng = np.random.default_rng(seed)
    restart = rng.random((draws, dates)) < 1 / (block or max(1.0, dates ** (1 / 3)))
    restart[:, 0] = True
    start = rng.integers(dates, size=(draws, dates))
    position = np.arange(dates)
    block_start = np.maximum.accumulate(np.where(restart, position, 0), axis=1)
    picked = (np.take_along_axis(start, block_start, axis=1) + position - block_start) % dates
    flat = (picked + dates * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * dates).reshape(draws, dates).astype(np.float64)


SHORT_SHARE = 0.25  # of the rows of a usual date; a date with fewer is short

COLUMNS = (
    "loss", "trivial", "n", "x", "y", "xx", "yy", "xy", "hits", "ties", "dates", "ic", "ic_squared",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DatedRows:
    """Labelled rows of a test span, grouped by trading date.

    A short date has too few rows to be an observation of its own: it gets no daily rank IC, and the
    bootstrap resamples its rows with the date before it (the first date with the one after it).

    Attributes:
        dates: distinct trading dates that are not short, increasing.
        date: index into `dates` of each row.
        short: rows that belong to a short date.
        short_dates: number of short dates.
        target: rank of the outcome among the training returns.
        outcome: forward return, a fraction.
        trivial: constant forecast of each row: the training median of its fold, in rank units.
    """

    dates: np.ndarray
    date: Int[np.ndarray, " rows"]
    short: Bool[np.ndarray, " rows"]
    short_dates: int
    target: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    trivial: Float[np.ndarray, " rows"]

    @classmethod
    def from_frame(
        cls, rows: pd.DataFrame, *, trivial: float | Float[np.ndarray, " rows"]
    ) -> "DatedRows":
        """Group the rows of one model by date.

        Args:
            rows: with columns trading_date, target and outcome.
            trivial: constant forecast in rank units; one per row if rows come from several folds.
        """
        dates, date = np.unique(rows["trading_date"].to_numpy(), return_inverse=True)
        target, outcome = (rows[name].to_numpy(dtype=np.float64) for name in ("target", "outcome"))
        constant = np.broadcast_to(np.asarray(trivial, dtype=np.float64), target.shape)
        full = full_dates(np.bincount(date, minlength=dates.size))
        position = np.maximum(np.cumsum(full) - 1, 0)[date]
        short = ~full[date]
        return cls(dates[full], position, short, int((~full).sum()), target, outcome, constant)

    def sum_by_date(self, values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " dates"]:
        """Sum values over the rows of each date."""
        return np.bincount(self.date, weights=values, minlength=self.dates.size)

    def sums(self, score: Float[np.ndarray, " rows"]) -> Sums:
        """Compute `COLUMNS` per date; ranks are taken over all dates together.

        Args:
            score: forecasts of a model, in rank units.
        """
        middle = (score.size + 1) / 2
        x, y = rankdata(score) - middle, rankdata(self.outcome) - middle
        losses = (huber_terms(score, self.target), huber_terms(self.trivial, self.target))
        agreement = np.sign(score - self.trivial) * np.sign(self.outcome)
        hits, ties = 0.5 * (1 + agreement), (agreement == 0).astype(np.float64)
        moments = (np.ones_like(x), x, y, x * x, y * y, x * y)
        columns = [self.sum_by_date(values) for values in (*losses, *moments, hits, ties)]
        ic = self.daily_ic(score)
        known = np.isfinite(ic)
        daily = np.where(known, ic, 0.0)
        return np.stack([*columns, known.astype(np.float64), daily, daily * daily], axis=1)

    def daily_ic(self, score: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " dates"]:
        """Return the rank IC within each date; NaN where forecast or outcome is constant.

        Rows of short dates are left out.
        """
        full = ~self.short
        table = pd.DataFrame({"x": score, "y": self.outcome})
        table[self.short] = math.nan
        ranks = table.groupby(self.date).rank().to_numpy()
        middle = (self.sum_by_date(full.astype(np.float64)) + 1) / 2
        x, y = np.where(full[:, None], ranks - middle[self.date][:, None], 0.0).T
        scale = self.sum_by_date(x * x) * self.sum_by_date(y * y)
        unknown = np.full(self.dates.size, math.nan)
        return np.divide(self.sum_by_date(x * y), np.sqrt(scale), out=unknown, where=scale > 0)


def full_dates(rows: Int[np.ndarray, " dates"]) -> Bool[np.ndarray, " dates"]:
    """Return False for short dates: those with less than `SHORT_SHARE` of the rows of a usual date.

    A usual date is the one that holds the median row of all rows sorted by the size of their date,
    so that many short dates do not make each other usual.

    Args:
        rows: number of rows of each date.
    """
    if rows.size == 0:
        return np.zeros(0, dtype=bool)
    sizes = np.sort(rows)
    usual = sizes[np.searchsorted(np.cumsum(sizes), rows.sum() / 2)]
    return rows >= SHORT_SHARE * usual


def column(sums: DrawnSums, name: str) -> Float[np.ndarray, " draws"]:
    """Select one of `COLUMNS`."""
    return sums[:, COLUMNS.index(name)]


def skill_of(sums: DrawnSums) -> Float[np.ndarray, " draws"]:
    """Compute 1 - loss / loss of the constant."""
    return 1 - ratio(column(sums, "loss"), column(sums, "trivial"))


def rank_ic_of(sums: DrawnSums) -> Float[np.ndarray, " draws"]:
    """Compute the rank IC over all rows, with ranks taken over the full span."""
    n, x, y, xx, yy, xy = (column(sums, name) for name in ("n", "x", "y", "xx", "yy", "xy"))
    scale = (xx - x * x / n) * (yy - y * y / n)
    return ratio(xy - x * y / n, np.sqrt(np.maximum(scale, 0.0)))


def daily_ic_of(sums: DrawnSums) -> Float[np.ndarray, " draws"]:
    """Compute the mean over dates of the rank IC within a date."""
    return ratio(column(sums, "ic"), column(sums, "dates"))


def icir_of(sums: DrawnSums) -> Float[np.ndarray, " draws"]:
    """Compute mean / standard deviation of the daily rank IC: its Sharpe ratio, per date."""
    count, mean = column(sums, "dates"), daily_ic_of(sums)
    variance = ratio(column(sums, "ic_squared") - count * mean * mean, count - 1)
    return ratio(mean, np.sqrt(np.maximum(variance, 0.0)))


def hit_rate_of(sums: DrawnSums) -> Float[np.ndarray, " draws"]:
    """Compute the share of rows with the right direction; a row without direction counts half."""
    return ratio(column(sums, "hits"), column(sums, "n"))


def tie_share_of(sums: DrawnSums) -> Float[np.ndarray, " draws"]:
    """Compute the share of rows whose forecast or outcome has no direction."""
    return ratio(column(sums, "ties"), column(sums, "n"))


def ratio(
    numerator: Float[np.ndarray, " draws"], denominator: Float[np.ndarray, " draws"]
) -> Float[np.ndarray, " draws"]:
    """Divide; NaN where the denominator is not positive."""
    unknown = np.full(numerator.shape, math.nan)
    return np.divide(numerator, denominator, out=unknown, where=denominator > 0)
