"""Whether the best of several models beats a benchmark, or was only the best of many draws."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Gains = Float[np.ndarray, "dates runs"]


@dataclass(frozen=True, slots=True)
class Superiority:
    """Hansen's test of superior predictive ability; NaN where no run differs from the benchmark.

    The null hypothesis is that no run is better than the benchmark. The p-values differ in how
    much the poor runs count: `lower` lets them drop out, `upper` keeps them all, `consistent`
    drops those that are clearly worse.

    Attributes:
        statistic: greatest mean gain over its standard error, at least 0.
        lower: p-value, a lower bound.
        consistent: p-value, the one to quote.
        upper: p-value, an upper bound.
        best: column of the run with the greatest statistic.
    """

    statistic: float
    lower: float
    consistent: float
    upper: float
    best: int


def superiority(
    gains: Gains, *, weights: Float[np.ndarray, "draws dates"], block: float
) -> Superiority:
    """Test whether the best run has a gain over the benchmark that so many runs do not explain.

    Args:
        gains: loss of the benchmark less that of each run, per trading date.
        weights: how often each date occurs in each stationary-bootstrap sample.
        block: mean length of the samples' blocks, in dates.

    Source: Hansen (2005), A test for superior predictive ability, sections 2.1 to 2.3.
    """
    dates = len(gains)
    error = np.sqrt(long_run_variance(gains, block=block) / dates)
    moving = (np.ptp(gains, axis=0) > 0) & (error > 0)
    if dates < 3 or not moving.any():
        return Superiority(math.nan, math.nan, math.nan, math.nan, 0)
    scores = np.where(moving, gains.mean(axis=0) / np.where(moving, error, 1.0), -np.inf)
    kept, best = scores[moving], int(np.argmax(scores))
    statistic = max(0.0, float(kept.max()))
    drawn = (weights @ gains[:, moving]) / dates / error[moving]
    # a run counts as clearly worse beyond the law of the iterated logarithm
    worse = kept < -math.sqrt(2 * math.log(math.log(dates)))
    centres = (np.maximum(kept, 0.0), np.where(worse, 0.0, kept), kept)
    tails = [np.maximum(0.0, (drawn - centre).max(axis=1)) for centre in centres]
    lower, consistent, upper = (float(np.mean(tail > statistic)) for tail in tails)
    if statistic == 0:  # no run gains anything, so no draw can be called less surprising
        lower = consistent = upper = 1.0
    return Superiority(statistic, lower, consistent, upper, best)


def long_run_variance(gains: Gains, *, block: float) -> Float[np.ndarray, " runs"]:
    """Variance of the root of `dates` times the mean, as the stationary bootstrap has it.

    Args:
        gains: per trading date.
        block: mean length of a block, in dates.

    Source: Politis and Romano (1994), The stationary bootstrap, lemma 1.
    """
    dates, stop = len(gains), 1 / block
    apart = gains - gains.mean(axis=0)
    lag = np.arange(1, dates)
    kernel = (1 - lag / dates) * (1 - stop) ** lag + lag / dates * (1 - stop) ** (dates - lag)
    shared = np.array([np.sum(apart[:-k] * apart[k:], axis=0) for k in lag])
    return np.maximum(0.0, (np.sum(apart**2, axis=0) + 2 * kernel @ shared) / dates)
