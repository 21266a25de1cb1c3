"""The stationary bootstrap of whole trading dates, with a block length chosen from the data."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import norm as normal
from scipy.stats import t as student

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
class DateDraws:
    """Samples of trading dates, shared by all that is compared, so that differences are paired.

    Attributes:
        weights: how often each date occurs in each sample.
        block: mean length of a block, in dates.
    """

    weights: Float[np.ndarray, "draws dates"]
    block: float

    @classmethod
    def of(cls, *series: Float[np.ndarray, " dates"], draws: int, seed: int) -> "DateDraws":
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
