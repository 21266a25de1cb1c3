"""Corrections for selecting among many models: deflated Sharpe ratio, PBO, SPA test and BBC-CV."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import kurtosis, norm, rankdata, skew

from robust_fin.evaluation.intervals import DateBootstrap, Interval, percentile_interval
from robust_fin.evaluation.significance import DRAWS

_MIN_MOMENT_DATES = 4  # the fourth moment has no unbiased estimate from fewer

RunSeries = Float[np.ndarray, "dates runs"]


@dataclass(frozen=True, slots=True)
class SharpeMoments:
    """Moments of a daily series; NaN if it is too short or constant.

    Attributes:
        ratio: Sharpe ratio per date, with ddof=1.
        dates: number of dates.
        skew: third standardised moment; 0 for a normal distribution.
        kurtosis: fourth standardised moment, not the excess; 3 for a normal distribution.
    """

    ratio: float
    dates: int
    skew: float
    kurtosis: float

    @classmethod
    def from_daily(cls, daily: Float[np.ndarray, " dates"]) -> "SharpeMoments":
        """Compute the moments of a series.

        Args:
            daily: one value per trading date; NaN values are left out.
        """
        known = daily[np.isfinite(daily)]
        if known.size < _MIN_MOMENT_DATES or np.ptp(known) == 0:
            return cls(math.nan, known.size, math.nan, math.nan)
        return cls(
            ratio=float(known.mean() / known.std(ddof=1)),
            dates=known.size,
            skew=float(skew(known, bias=False)),
            kurtosis=float(kurtosis(known, bias=False, fisher=False)),
        )


@dataclass(frozen=True, slots=True)
class DeflatedSharpe:
    """A Sharpe ratio compared with the best of several trials without skill.

    Attributes:
        trials: number of trials.
        expected_max: expected ratio of the best of so many trials without skill.
        probability: that the true ratio is above `expected_max`; NaN if not computable.
    """

    trials: int
    expected_max: float
    probability: float


def deflated_sharpe(track: SharpeMoments, *, trials: int, spread: float) -> DeflatedSharpe:
    """Compute the deflated Sharpe ratio of a run selected among several trials.

    Args:
        track: moments of the selected run.
        trials: number of trials, including this one.
        spread: standard deviation of the trials' ratios; not used for a single trial.

    Source: Bailey and Lopez de Prado (2014), The deflated Sharpe ratio, equations 1 and 2.
    """
    expected = expected_maximum(trials, spread=spread)
    return DeflatedSharpe(trials, expected, probabilistic_sharpe(track, above=expected))


def expected_maximum(trials: int, *, spread: float) -> float:
    """Return the expected maximum of independent normal trials with mean 0; 0 for a single trial.

    Args:
        trials: number of trials.
        spread: standard deviation of the trials.

    Source: Bailey and Lopez de Prado (2014), equation 1.
    """
    assert trials >= 1
    if trials == 1:
        return 0.0
    first, second = float(norm.isf(1 / trials)), float(norm.isf(1 / (trials * math.e)))
    return spread * ((1 - np.euler_gamma) * first + np.euler_gamma * second)


def probabilistic_sharpe(track: SharpeMoments, *, above: float) -> float:
    """Return the probability that the true Sharpe ratio is above a threshold.

    NaN if the moments do not allow it.

    Args:
        track: moments of a series whose dates are taken as independent.
        above: threshold, per date.

    Source: Bailey and Lopez de Prado (2012), The Sharpe ratio efficient frontier, equation 11.
    """
    ratio = track.ratio
    variance = 1 - track.skew * ratio + (track.kurtosis - 1) / 4 * ratio**2
    if not variance > 0 or not math.isfinite(above):
        return math.nan
    return float(norm.cdf((ratio - above) * math.sqrt((track.dates - 1) / variance)))


# makes the median absolute deviation of so few normal values unbiased, for 2 to 9 values
_SMALL_SAMPLES = (1.196, 1.495, 1.363, 1.206, 1.2, 1.14, 1.129, 1.107)


def robust_std(values: Sequence[float]) -> float:
    """Return a standard deviation of the finite values that a few outliers do not move.

    It is the median absolute deviation, scaled to be unbiased for normal values. If more than half
    of the values are equal, it is the sample standard deviation. NaN for fewer than two values.

    Source: Croux and Rousseeuw (1992), Time-efficient algorithms for two highly robust estimators
    of scale, section 4.
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if known.size < 2:
        return math.nan
    deviation = float(np.median(np.abs(known - np.median(known))))
    if deviation == 0:
        return float(known.std(ddof=1))
    small = known.size - 2 < len(_SMALL_SAMPLES)
    factor = _SMALL_SAMPLES[known.size - 2] if small else known.size / (known.size - 0.8)
    return float(factor * deviation / norm.ppf(0.75))


MAX_BLOCKS = 16  # of dates: 12,870 ways to take half of them
MIN_BLOCKS = 6  # fewer give too few ways
DATES_PER_BLOCK = 5


@dataclass(frozen=True, slots=True)
class PBO:
    """Probability of backtest overfitting, by combinatorially symmetric cross-validation.

    Attributes:
        probability: share of splits whose best run on one half is below the median of all runs on
            the other half; 0.5 if selection is pure chance.
        logits: of the relative rank, on the other half, of the best run, one per split.
        ways: number of splits.
        blocks: number of blocks of consecutive dates.
    """

    probability: float
    logits: Float[np.ndarray, " ways"]
    ways: int
    blocks: int


def pbo_block_count(dates: int) -> int | None:
    """Return an even number of blocks of at least `DATES_PER_BLOCK` dates; None for few dates."""
    blocks = min(MAX_BLOCKS, dates // DATES_PER_BLOCK // 2 * 2)
    return blocks if blocks >= MIN_BLOCKS else None


def pbo(daily: RunSeries, *, blocks: int) -> PBO:
    """Estimate how often the best of several runs is an accident of the dates.

    For each way to take half of the blocks, the run with the highest Sharpe ratio on that half is
    ranked among all runs on the other half.

    Args:
        daily: one value per trading date and run, higher is better, such as the daily rank IC.
        blocks: number of blocks of consecutive dates, even.

    Source: Bailey, Borwein, Lopez de Prado and Zhu (2017), The probability of backtest overfitting.
    """
    dates, runs = daily.shape
    assert runs > 1
    assert 1 < blocks <= dates
    assert blocks % 2 == 0
    inside = halves(blocks)
    block_of = np.sort(np.arange(dates) % blocks)  # the first blocks take the remainder
    best = np.argmax(_sharpe_ratios(daily, block_of, inside), axis=1)
    ranks = rankdata(_sharpe_ratios(daily, block_of, ~inside), axis=1)
    relative = ranks[np.arange(len(inside)), best] / (runs + 1)
    logits = np.log(relative / (1 - relative))
    return PBO(float(np.mean(logits < 0)), logits, len(inside), blocks)


def halves(blocks: int) -> Bool[np.ndarray, "ways blocks"]:
    """Return every way to take half of the blocks, as masks."""
    inside = np.zeros((math.comb(blocks, blocks // 2), blocks), dtype=bool)
    for way, taken in enumerate(combinations(range(blocks), blocks // 2)):
        inside[way, list(taken)] = True
    return inside


def _sharpe_ratios(
    daily: RunSeries, block_of: np.ndarray, inside: Bool[np.ndarray, "ways blocks"]
) -> Float[np.ndarray, "ways runs"]:
    """Compute the Sharpe ratio of each run on each set of blocks; 0 where a run is constant."""
    mean_all = daily.mean(axis=0)
    centred = daily - mean_all  # for precision: the squares of raw values would cancel
    in_block = block_of == np.arange(inside.shape[1])[:, None]
    taken = inside.astype(np.float64)
    count = (taken @ in_block.sum(axis=1))[:, None]
    mean = taken @ (in_block @ centred) / count
    variance = (taken @ (in_block @ centred**2) - count * mean**2) / (count - 1)
    varies = variance > 1e-12 * np.mean(centred**2, axis=0)
    deviation = np.sqrt(np.where(varies, variance, 1.0))
    return np.where(varies, (mean + mean_all) / deviation, 0.0)


@dataclass(frozen=True, slots=True)
class SPATest:
    """Hansen's test for superior predictive ability; NaN if no run differs from the benchmark.

    Null hypothesis: no run is better than the benchmark. The p-values differ in how poor runs
    count: `lower` ignores them, `upper` keeps all, `consistent` drops the clearly worse ones.

    Attributes:
        statistic: largest mean gain / standard error, at least 0.
        lower: p-value, a lower bound.
        consistent: p-value, the one to quote.
        upper: p-value, an upper bound.
        best: column of the run with the largest statistic.
    """

    statistic: float
    lower: float
    consistent: float
    upper: float
    best: int


def spa_test(
    gains: RunSeries, *, weights: Float[np.ndarray, "draws dates"], block: float
) -> SPATest:
    """Test whether the best run beats the benchmark, given how many runs were compared.

    Args:
        gains: loss of the benchmark minus loss of each run, per trading date.
        weights: how often each date occurs in each sample of the stationary bootstrap.
        block: mean block length of the samples, in dates.

    Source: Hansen (2005), A test for superior predictive ability, sections 2.1 to 2.3.
    """
    dates = len(gains)
    error = np.sqrt(long_run_variance(gains, block=block) / dates)
    varies = (np.ptp(gains, axis=0) > 0) & (error > 0)
    if dates < 3 or not varies.any():
        return SPATest(math.nan, math.nan, math.nan, math.nan, 0)
    scores = np.where(varies, gains.mean(axis=0) / np.where(varies, error, 1.0), -np.inf)
    kept, best = scores[varies], int(np.argmax(scores))
    statistic = max(0.0, float(kept.max()))
    if statistic == 0:  # no run gains anything, so no sample is more extreme
        return SPATest(statistic, 1.0, 1.0, 1.0, best)
    drawn = (weights @ gains[:, varies]) / dates / error[varies]
    # by the law of the iterated logarithm, a run below this is clearly worse
    worse = kept < -math.sqrt(2 * math.log(math.log(dates)))
    centres = (np.maximum(kept, 0.0), np.where(worse, 0.0, kept), kept)
    maxima = [np.maximum(0.0, (drawn - centre).max(axis=1)) for centre in centres]
    lower, consistent, upper = (float(np.mean(maximum > statistic)) for maximum in maxima)
    return SPATest(statistic, lower, consistent, upper, best)


def long_run_variance(gains: RunSeries, *, block: float) -> Float[np.ndarray, " runs"]:
    """Return the variance of sqrt(dates) * mean under the stationary bootstrap.

    Args:
        gains: per trading date.
        block: mean block length, in dates.

    Source: Politis and Romano (1994), The stationary bootstrap, lemma 1.
    """
    dates, stop = len(gains), 1 / block
    centred = gains - gains.mean(axis=0)
    lag = np.arange(1, dates)
    kernel = (1 - lag / dates) * (1 - stop) ** lag + lag / dates * (1 - stop) ** (dates - lag)
    covariance = np.array([np.sum(centred[:-k] * centred[k:], axis=0) for k in lag])
    return np.maximum(0.0, (np.sum(centred**2, axis=0) + 2 * kernel @ covariance) / dates)


MIN_DATES = 5  # a sample leaves out about a third of them, and at least two must remain


@dataclass(frozen=True, slots=True)
class BBCResult:
    """Selection by skill among trials scored on the same dates, corrected for the selection.

    Attributes:
        trials: number of trials.
        dates: number of dates.
        best: index of the trial with the highest skill.
        skill: its skill on the dates that selected it, biased upwards.
        deflated: skill, on the other dates, of a trial selected on some of the dates.
        difference: `deflated` minus the skill of the reference trial on the same dates; None
            without reference.
    """

    trials: int
    dates: int
    best: int
    skill: float
    deflated: Interval
    difference: Interval | None


def bbc_cv(
    gains: Float[np.ndarray, "dates trials"],
    *,
    reference: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> BBCResult:
    """Select on bootstrap samples of the dates, and measure on the dates left out of each sample.

    This removes the bias of having selected and measured on the same dates, for any number of
    trials and any dependence between them. Skill from a lucky seed belongs to the trial and
    remains. Not removed: that a trial kept its best epoch by these dates, and that a search
    concentrated on what had looked good on them.

    Args:
        gains: contribution of each date to each trial's skill, in time order; a column sums to the
            skill of its trial. At least `MIN_DATES` dates.
        reference: index of a trial to compare the selection with.
        draws: bootstrap samples.
        seed: of the bootstrap.

    Source: Tsamardinos, Greasidou and Borboudakis (2018), Bootstrapping the out-of-sample
    predictions for efficient and accurate cross-validation, section 3 (BBC-CV); here with blocks of
    dates for rows.
    """
    dates, trials = gains.shape
    assert dates >= MIN_DATES
    skills = gains.sum(axis=0)
    best = int(np.argmax(skills))
    samples = DateBootstrap.for_series(*gains.T, draws=draws, seed=seed)
    left_out = samples.weights == 0
    usable = left_out.any(axis=1)
    winner = np.argmax(samples.weights[usable] @ gains, axis=1)
    left_out = left_out[usable]
    measured = (left_out @ gains) * (dates / left_out.sum(axis=1))[:, None]
    selected = measured[np.arange(len(measured)), winner]

    def interval(values: Float[np.ndarray, " draws"]) -> Interval:
        if not values.size:
            return Interval(math.nan, math.nan, math.nan)
        blocks = dates / samples.block
        return percentile_interval(float(values.mean()), values, blocks=blocks)

    difference = None if reference is None else interval(selected - measured[:, reference])
    return BBCResult(trials, dates, best, float(skills[best]), interval(selected), difference)
