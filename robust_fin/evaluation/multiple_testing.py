"""Corrections for the choice among many models: deflated Sharpe ratio, PBO, SPA test and BBC-CV."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import kurtosis, norm, rankdata, skew

from robust_fin.evaluation.intervals import DateBootstrap, Interval, expanded_tail
from robust_fin.evaluation.significance import DRAWS

_LEAST_DATES = 4  # below, the fourth moment has no unbiased estimate


@dataclass(frozen=True, slots=True)
class SharpeMoments:
    """A daily series in four numbers; NaN where it is too short or never changes.

    Attributes:
        ratio: Sharpe ratio, per date; one degree of freedom less.
        dates: how many.
        skew: third standardised moment; 0 for a normal law.
        kurtosis: fourth standardised moment, not the excess; 3 for a normal law.
    """

    ratio: float
    dates: int
    skew: float
    kurtosis: float

    @classmethod
    def from_daily(cls, daily: Float[np.ndarray, " dates"]) -> "SharpeMoments":
        """Measure a series.

        Args:
            daily: one value a trading date; dates without one (NaN) are left out.
        """
        known = daily[np.isfinite(daily)]
        if known.size < _LEAST_DATES or np.ptp(known) == 0:
            return cls(math.nan, known.size, math.nan, math.nan)
        return cls(
            ratio=float(known.mean() / known.std(ddof=1)),
            dates=known.size,
            skew=float(skew(known, bias=False)),
            kurtosis=float(kurtosis(known, bias=False, fisher=False)),
        )


@dataclass(frozen=True, slots=True)
class DeflatedSharpe:
    """A Sharpe ratio held against the luck of the best of several trials.

    Attributes:
        trials: how many there were.
        expected_max: the ratio that the best of so many trials without skill is expected to have.
        probability: that the true ratio is above `expected_max`; NaN if not computable.
    """

    trials: int
    expected_max: float
    probability: float


def deflated_sharpe(track: SharpeMoments, *, trials: int, spread: float) -> DeflatedSharpe:
    """How sure one may be of a Sharpe ratio that was found in several trials.

    Args:
        track: of the run whose ratio is claimed.
        trials: how many were made, this one among them.
        spread: standard deviation of their ratios; of no use where there is one.

    Source: Bailey and Lopez de Prado (2014), The deflated Sharpe ratio, equations 1 and 2.
    """
    luck = expected_maximum(trials, spread=spread)
    return DeflatedSharpe(trials, luck, probabilistic_sharpe(track, above=luck))


def expected_maximum(trials: int, *, spread: float) -> float:
    """The greatest Sharpe ratio to expect of independent trials without skill.

    0 for a single trial, which was not picked from anything.

    Args:
        trials: how many.
        spread: standard deviation of their ratios.

    Source: Bailey and Lopez de Prado (2014), equation 1.
    """
    assert trials >= 1
    if trials == 1:
        return 0.0
    first, second = float(norm.isf(1 / trials)), float(norm.isf(1 / (trials * math.e)))
    return spread * ((1 - np.euler_gamma) * first + np.euler_gamma * second)


def probabilistic_sharpe(track: SharpeMoments, *, above: float) -> float:
    """The probability that the true Sharpe ratio is above a level, from the track's four moments.

    NaN where the moments allow no such statement.

    Args:
        track: of the series; its dates are taken as independent.
        above: the level, per date.

    Source: Bailey and Lopez de Prado (2012), The Sharpe ratio efficient frontier, equation 11.
    """
    ratio = track.ratio
    variance = 1 - track.skew * ratio + (track.kurtosis - 1) / 4 * ratio**2
    if not variance > 0 or not math.isfinite(above):
        return math.nan
    return float(norm.cdf((ratio - above) * math.sqrt((track.dates - 1) / variance)))


def sample_std(ratios: Sequence[float]) -> float:
    """Standard deviation over trials, one degree of freedom less; NaN for fewer than two."""
    known = np.array([one for one in ratios if math.isfinite(one)])
    return float(known.std(ddof=1)) if known.size > 1 else math.nan


BLOCKS = 16  # of dates: 12,870 ways to take half of them
LEAST_BLOCKS = 6  # below, there are too few ways to count
DATES_A_BLOCK = 5
Scores = Float[np.ndarray, "ways runs"]


@dataclass(frozen=True, slots=True)
class PBO:
    """The result of combinatorially symmetric cross-validation.

    Attributes:
        probability: share of the ways in which the best on one half is below the median of all on
            the other; one half where the choice is by luck.
        logits: of the relative rank, on the other half, of the best on the one; one a way.
        ways: how the blocks were halved, in number.
        blocks: of consecutive dates.
    """

    probability: float
    logits: Float[np.ndarray, " ways"]
    ways: int
    blocks: int


def pbo_block_count(dates: int) -> int | None:
    """An even number of blocks of at least `DATES_A_BLOCK` dates; None where there are too few."""
    blocks = min(BLOCKS, dates // DATES_A_BLOCK // 2 * 2)
    return blocks if blocks >= LEAST_BLOCKS else None


def pbo(daily: Float[np.ndarray, "dates runs"], *, blocks: int) -> PBO:
    """Probability of backtest overfitting: whether choosing the best of some runs means anything.

    Every half of the blocks picks the run with the greatest Sharpe ratio; the other half says
    where that run stands among all.

    Args:
        daily: one value a trading date and run, higher is better, such as the daily rank IC.
        blocks: parts of consecutive dates, an even number.

    Source: Bailey, Borwein, Lopez de Prado and Zhu (2017), The probability of backtest overfitting.
    """
    dates, runs = daily.shape
    assert runs > 1
    assert 1 < blocks <= dates
    assert blocks % 2 == 0
    inside = halves(blocks)
    number = np.sort(np.arange(dates) % blocks)  # the first blocks take what is left over
    chosen = np.argmax(_ratios(daily, number, inside), axis=1)
    ranks = rankdata(_ratios(daily, number, ~inside), axis=1)
    share = ranks[np.arange(len(inside)), chosen] / (runs + 1)
    logits = np.log(share / (1 - share))
    return PBO(float(np.mean(logits < 0)), logits, len(inside), blocks)


def halves(blocks: int) -> Bool[np.ndarray, "ways blocks"]:
    """Every way to take half of the blocks."""
    inside = np.zeros((math.comb(blocks, blocks // 2), blocks), dtype=bool)
    for way, taken in enumerate(combinations(range(blocks), blocks // 2)):
        inside[way, list(taken)] = True
    return inside


def _ratios(
    daily: Float[np.ndarray, "dates runs"],
    number: np.ndarray,
    inside: Bool[np.ndarray, "ways blocks"],
) -> Scores:
    """Sharpe ratio of each run on the dates of some blocks; 0 where it never changes there."""
    middle = daily.mean(axis=0)
    apart = daily - middle  # else the squares would lose what little the values differ by
    own = number == np.arange(inside.shape[1])[:, None]
    taken = inside.astype(np.float64)
    count = (taken @ own.sum(axis=1))[:, None]
    mean = taken @ (own @ apart) / count
    variance = (taken @ (own @ apart**2) - count * mean**2) / (count - 1)
    moving = variance > 1e-12 * np.mean(apart**2, axis=0)
    safe = np.sqrt(np.where(moving, variance, 1.0))
    return np.where(moving, (mean + middle) / safe, 0.0)


RunGains = Float[np.ndarray, "dates runs"]


@dataclass(frozen=True, slots=True)
class SPATest:
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


def spa_test(
    gains: RunGains, *, weights: Float[np.ndarray, "draws dates"], block: float
) -> SPATest:
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
        return SPATest(math.nan, math.nan, math.nan, math.nan, 0)
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
    return SPATest(statistic, lower, consistent, upper, best)


def long_run_variance(gains: RunGains, *, block: float) -> Float[np.ndarray, " runs"]:
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


TrialGains = Float[np.ndarray, "dates trials"]
LEAST_DATES = 5  # a sample leaves about a third of them out, and two must remain to measure on


@dataclass(frozen=True, slots=True)
class BBCResult:
    """A choice by skill among trials that were all scored on the same dates.

    Attributes:
        trials: among which was chosen.
        dates: that they were scored on.
        best: number of the trial with the greatest skill.
        skill: its skill on the dates that chose it, which flatter it.
        deflated: skill of a trial chosen on some of the dates, on the others.
        difference: that skill less the one of the reference on the same others; None without one.
    """

    trials: int
    dates: int
    best: int
    skill: float
    deflated: Interval
    difference: Interval | None


def bbc_cv(
    gains: TrialGains, *, reference: int | None = None, draws: int = DRAWS, seed: int = 0
) -> BBCResult:
    """Choose over and over on samples of the dates, and measure on the dates left out of them.

    What the best owes to the dates that chose it is not counted, however many trials there are and
    however alike they are. Skill that a trial owes to a lucky seed is its own, and is counted.
    What is not taken off: that a trial kept its best epoch by these dates, and that a search tried
    what they had made look good.

    Args:
        gains: share of its skill that each trial owes to each date, in the order of time; a column
            adds up to the skill of its trial. At least `LEAST_DATES`.
        reference: number of a trial that the choice is held against.
        draws: bootstrap samples.
        seed: of the resampling.

    Source: Tsamardinos, Greasidou and Borboudakis (2018), Bootstrapping the out-of-sample
    predictions for efficient and accurate cross-validation, section 3 (BBC-CV); here with blocks of
    dates for rows.
    """
    dates, trials = gains.shape
    assert dates >= LEAST_DATES
    skills = gains.sum(axis=0)
    best = int(np.argmax(skills))
    samples = DateBootstrap.for_series(*gains.T, draws=draws, seed=seed)
    left = samples.weights == 0
    kept = left.any(axis=1)
    winner = np.argmax(samples.weights[kept] @ gains, axis=1)
    found = _measured(gains, left[kept], dates)
    chosen = found[np.arange(len(found)), winner]
    blocks = dates / samples.block
    return BBCResult(
        trials,
        dates,
        best,
        float(skills[best]),
        _interval(chosen, blocks=blocks),
        None if reference is None else _interval(chosen - found[:, reference], blocks=blocks),
    )


def _measured(
    gains: TrialGains, left: Bool[np.ndarray, "draws dates"], dates: int
) -> Float[np.ndarray, "draws trials"]:
    """Skill of every trial on the dates that each sample left out."""
    return (left @ gains) * (dates / left.sum(axis=1))[:, None]


def _interval(values: Float[np.ndarray, " draws"], *, blocks: float) -> Interval:
    if not values.size:
        return Interval(math.nan, math.nan, math.nan)
    tail = 100 * expanded_tail(blocks)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(values.mean()), float(low), float(high))
