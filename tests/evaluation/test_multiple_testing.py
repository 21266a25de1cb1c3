import math
from dataclasses import replace

import numpy as np
import purgedcv
import pytest
from arch.bootstrap import SPA, StationaryBootstrap
from scipy.stats import norm

from robust_fin.evaluation.intervals import DateBootstrap, date_weights
from robust_fin.evaluation.multiple_testing import (
    BBCResult,
    SharpeMoments,
    bbc_cv,
    deflated_sharpe,
    expected_maximum,
    halves,
    long_run_variance,
    pbo,
    pbo_block_count,
    probabilistic_sharpe,
    robust_std,
    spa_test,
)


def fat_tailed(*, seed: int, dates: int = 250) -> np.ndarray:
    return 0.01 + 0.1 * np.random.default_rng(seed).standard_t(4, dates)


def with_all_degrees(track: SharpeMoments) -> SharpeMoments:
    """purgedcv divides by the number of dates, we by one less."""
    return replace(track, ratio=track.ratio * math.sqrt(track.dates / (track.dates - 1)))


def test_sharpe_moments_by_hand() -> None:
    track = SharpeMoments.from_daily(np.array([1.0, 2.0, 3.0, np.nan, 6.0]))
    assert track.dates == 4
    assert track.ratio == pytest.approx(3 / math.sqrt(14 / 3))
    # m2 = 3.5, m3 = 4.5, and the correction sqrt(n (n - 1)) / (n - 2) for so few dates
    assert track.skew == pytest.approx(4.5 / 3.5**1.5 * math.sqrt(12) / 2)


@pytest.mark.parametrize("daily", [[0.1, 0.2, 0.3], [0.1] * 50, [np.nan] * 9])
def test_short_or_constant_series_has_no_ratio(daily: list[float]) -> None:
    track = SharpeMoments.from_daily(np.array(daily))
    assert math.isnan(track.ratio)
    assert math.isnan(probabilistic_sharpe(track, above=0.0))


@pytest.mark.parametrize("trials", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_deflated_sharpe_matches_purgedcv(trials: int, seed: int) -> None:
    daily, spread = fat_tailed(seed=seed), 0.03
    ours = deflated_sharpe(
        with_all_degrees(SharpeMoments.from_daily(daily)), trials=trials, spread=spread
    )
    theirs = purgedcv.deflated_sharpe_ratio_full(daily, trials, spread**2)
    assert ours.probability == pytest.approx(theirs.dsr, rel=1e-12)
    assert ours.expected_max == pytest.approx(theirs.sr_star, rel=1e-12, abs=1e-15)
    assert 0.001 < ours.probability < 0.999999  # the comparison says something


def test_deflated_sharpe_example_of_the_paper() -> None:
    # 100 trials whose annual ratios have variance 1/2, five years of 250 days, annual ratio 2.5,
    # skew -3, kurtosis 10: the best without skill is at 0.1132 a day, and one is sure to 0.9004
    track = SharpeMoments(ratio=2.5 / math.sqrt(250), dates=1250, skew=-3.0, kurtosis=10.0)
    result = deflated_sharpe(track, trials=100, spread=math.sqrt(0.5 / 250))
    assert result.expected_max == pytest.approx(0.1132, abs=5e-5)
    assert result.probability == pytest.approx(0.9004, abs=5e-5)


def test_single_trial_is_not_deflated() -> None:
    track = SharpeMoments(ratio=0.1, dates=101, skew=0.0, kurtosis=3.0)
    result = deflated_sharpe(track, trials=1, spread=math.nan)
    assert result.expected_max == 0
    assert result.probability == pytest.approx(norm.cdf(1.0 / math.sqrt(1 + 0.1**2 / 2)))


def test_expected_maximum_matches_normal_draws() -> None:
    draws = np.random.default_rng(0).normal(scale=0.2, size=(20_000, 30)).max(axis=1)
    assert expected_maximum(30, spread=0.2) == pytest.approx(draws.mean(), rel=0.02)


def test_more_trials_lower_the_probability() -> None:
    track = SharpeMoments.from_daily(fat_tailed(seed=3))
    result = [deflated_sharpe(track, trials=n, spread=0.05).probability for n in (1, 3, 10, 100)]
    assert result == sorted(result, reverse=True)
    assert result[0] > result[-1] + 0.05


def test_deflation_removes_false_claims_among_many_trials() -> None:
    naive, deflated = [], []
    for seed in range(25):
        tracks = [
            SharpeMoments.from_daily(one)
            for one in np.random.default_rng(seed).normal(size=(30, 120))
        ]
        best, spread = max(tracks, key=lambda one: one.ratio), robust_std([t.ratio for t in tracks])
        naive.append(probabilistic_sharpe(best, above=0.0))
        deflated.append(deflated_sharpe(best, trials=30, spread=spread).probability)
    assert np.mean(np.array(naive) > 0.95) > 0.6
    assert np.mean(np.array(deflated) > 0.95) < 0.1
    assert np.median(deflated) == pytest.approx(0.5, abs=0.15)


def test_robust_std_is_not_moved_by_an_outlier() -> None:
    # 1.4826 times the median absolute deviation, times the factor of so many values
    assert robust_std([0.1, math.nan, 0.3]) == pytest.approx(1.4826 * 1.196 * 0.1, rel=1e-4)
    assert robust_std([0.0, 0.1, 0.2, 0.3, 9.0]) == pytest.approx(1.4826 * 1.206 * 0.1, rel=1e-4)
    assert robust_std([0.1, 0.1, 0.1, 0.4]) == pytest.approx(0.15)  # most are equal
    assert math.isnan(robust_std([0.1, math.nan]))


@pytest.mark.parametrize("size", [2, 3, 5, 9, 20])
def test_robust_std_of_normal_values_is_unbiased(size: int) -> None:
    draws = np.random.default_rng(0).normal(size=(4000, size))
    assert np.mean([robust_std(values.tolist()) for values in draws]) == pytest.approx(
        1.0, abs=0.04
    )


def test_unusable_moments_give_nan() -> None:
    assert math.isnan(probabilistic_sharpe(SharpeMoments(1.0, 100, 5.0, 3.0), above=0.0))
    result = deflated_sharpe(
        SharpeMoments.from_daily(fat_tailed(seed=0)), trials=2, spread=math.nan
    )
    assert math.isnan(result.probability)


def noise(*, dates: int, runs: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(dates, runs))


def test_halves_lists_every_split_once() -> None:
    assert halves(4).astype(int).tolist() == [
        [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(("dates", "runs", "blocks"), [(103, 7, 8), (60, 2, 6), (90, 5, 10)])
def test_pbo_matches_purgedcv(dates: int, runs: int, blocks: int) -> None:
    daily = noise(dates=dates, runs=runs, seed=dates)
    daily[:, 0] += 0.1
    ours = pbo(daily, blocks=blocks)
    theirs = purgedcv.probability_of_backtest_overfitting(daily.T, n_splits=blocks)
    assert ours.probability == theirs.pbo
    assert 0 < ours.probability < 1
    assert ours.ways == theirs.n_combos
    np.testing.assert_allclose(np.sort(ours.logits), np.sort(theirs.logits), rtol=1e-12)


def test_pbo_matches_purgedcv_with_constant_and_equal_runs() -> None:
    daily = noise(dates=64, runs=4, seed=2)
    daily[:, 1] = 0.3
    daily[:, 3] = daily[:, 2]
    ours = pbo(daily, blocks=8)
    theirs = purgedcv.probability_of_backtest_overfitting(daily.T, n_splits=8)
    assert ours.probability == theirs.pbo
    np.testing.assert_allclose(np.sort(ours.logits), np.sort(theirs.logits), rtol=1e-12)


def test_pbo_is_0_for_a_dominant_run_and_half_for_noise() -> None:
    daily = noise(dates=160, runs=10, seed=0)
    result = [pbo(noise(dates=160, runs=10, seed=s), blocks=8) for s in range(20)]
    assert np.mean([one.probability for one in result]) == pytest.approx(0.5, abs=0.12)
    daily[:, 4] += 1.0
    assert pbo(daily, blocks=8).probability == 0


def test_16_blocks_have_12870_halves() -> None:
    assert pbo(noise(dates=160, runs=3, seed=0), blocks=16).ways == 12_870


@pytest.mark.parametrize(
    ("dates", "blocks"), [(29, None), (30, 6), (39, 6), (40, 8), (79, 14), (80, 16), (900, 16)]
)
def test_pbo_block_count(dates: int, blocks: int | None) -> None:
    assert pbo_block_count(dates) == blocks


BLOCK, DRAWS = 5, 400


def gains_of(*shifts: float, dates: int = 120, seed: int = 0, exact: bool = True) -> np.ndarray:
    """Draw the gains of a run per shift, each on another scale.

    Args:
        shifts: the mean of each run, in standard errors of independent dates.
        dates: how many.
        seed: of the noise.
        exact: whether the sample has that mean, not only the law it is drawn from.
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(dates, 1))
    values = (0.5 * common + rng.normal(size=(dates, len(shifts)))) / math.sqrt(1.25)
    if exact:
        values -= values.mean(axis=0)
    return (values + np.array(shifts) / math.sqrt(dates)) * 10.0 ** -np.arange(len(shifts))


def drawn_by_arch(gains: np.ndarray, *, seed: int) -> np.ndarray:
    """Return arch's bootstrap samples as counts of dates."""
    sampled = StationaryBootstrap(BLOCK, np.arange(len(gains)), seed=seed).bootstrap(DRAWS)
    picked = [parts[0] for parts, _ in sampled]
    return np.array([np.bincount(one, minlength=len(gains)) for one in picked], dtype=np.float64)


@pytest.mark.parametrize(
    "shifts", [(0.0, 0.0, 0.0), (1.5, -0.5, -4.0), (0.4, -6.0, -1.0, -3.0, 0.2), (0.8,)]
)
def test_spa_p_values_match_arch_on_the_same_samples(shifts: tuple[float, ...]) -> None:
    gains = gains_of(*shifts)
    spread = np.sqrt(long_run_variance(gains, block=BLOCK))
    # arch takes the greatest mean as it is, not over its standard error; here they are one
    test = SPA(np.zeros(len(gains)), -gains / spread, block_size=BLOCK, reps=DRAWS, seed=7)
    test.compute()
    ours = spa_test(gains, weights=drawn_by_arch(gains, seed=7), block=BLOCK)
    theirs = test.pvalues
    assert (ours.lower, ours.consistent, ours.upper) == (
        theirs["lower"],
        theirs["consistent"],
        theirs["upper"],
    )
    assert 0.01 < ours.consistent < 0.99  # the comparison says something


def test_spa_p_values_differ_with_poor_runs() -> None:
    result = spa_test(
        gains_of(1.5, -0.5, -1.0, -6.0),
        weights=date_weights(120, draws=2000, seed=0, block=BLOCK),
        block=BLOCK,
    )
    assert result.lower < result.consistent < result.upper
    assert result.best == 0


def test_long_run_variance_matches_arch_and_the_samples() -> None:
    gains = gains_of(0.0, 1.0)
    test = SPA(np.zeros(len(gains)), -gains, block_size=BLOCK, reps=2, seed=0)
    test.compute()
    ours = long_run_variance(gains, block=BLOCK)
    np.testing.assert_allclose(ours, test._loss_diff_var, rtol=1e-10)
    means = date_weights(120, draws=20_000, seed=1, block=BLOCK) @ gains / 120
    np.testing.assert_allclose(means.var(axis=0) * 120, ours, rtol=0.05)


def test_spa_finds_a_planted_gain_and_not_noise() -> None:
    rejected = {0.0: 0, 5.0: 0}
    for seed in range(60):
        weights = date_weights(120, draws=300, seed=seed, block=2.0)
        for shift in rejected:
            gains = gains_of(shift, *([0.0] * 7), seed=seed, exact=False)
            rejected[shift] += spa_test(gains, weights=weights, block=2.0).consistent < 0.05
    assert rejected[5.0] >= 54
    assert rejected[0.0] <= 8  # 3 of 60 are expected


def test_spa_does_not_depend_on_units() -> None:
    gains, weights = gains_of(1.0, 0.3), date_weights(120, draws=500, seed=0, block=3.0)
    one = spa_test(gains, weights=weights, block=3.0)
    other = spa_test(gains * np.array([1e-6, 1e3]), weights=weights, block=3.0)
    assert (one.consistent, one.best) == (other.consistent, other.best)
    assert one.statistic == pytest.approx(other.statistic)


def test_spa_ignores_a_run_equal_to_the_benchmark() -> None:
    weights = date_weights(120, draws=500, seed=0, block=3.0)
    gains = gains_of(1.0)
    alone = spa_test(gains, weights=weights, block=3.0)
    beside = spa_test(np.column_stack([0 * gains, gains]), weights=weights, block=3.0)
    assert (beside.consistent, beside.best) == (alone.consistent, 1)
    assert math.isnan(spa_test(0 * gains, weights=weights, block=3.0).consistent)


def test_spa_claims_nothing_without_gain() -> None:
    weights = date_weights(120, draws=500, seed=0, block=3.0)
    result = spa_test(gains_of(-3.0, -2.0), weights=weights, block=3.0)
    assert (result.statistic, result.consistent, result.lower) == (0, 1, 1)


DATES = 17


def equal_trials(
    seed: int, *, trials: int = 60, shared: float = 0.0, dates: int = DATES
) -> np.ndarray:
    """Trials without skill; their standard error on all dates is 1 / sqrt(dates)."""
    draw = np.random.default_rng(seed)
    common = shared * draw.normal(size=(dates, 1))
    return (draw.normal(size=(dates, trials)) + common) / dates


def test_bbc_cv_matches_a_loop_over_samples() -> None:
    gains = equal_trials(0, trials=4)
    result = bbc_cv(gains, reference=2, draws=50, seed=3)
    samples = DateBootstrap.for_series(*gains.T, draws=50, seed=3)
    skills, apart = [], []
    for weights in samples.weights:
        dates = [date for date in range(DATES) for _ in range(int(weights[date]))]
        others = [date for date in range(DATES) if date not in dates]
        winner = max(range(4), key=lambda trial: sum(gains[date, trial] for date in dates))
        share = DATES / len(others)
        skills.append(share * sum(gains[date, winner] for date in others))
        apart.append(skills[-1] - share * sum(gains[date, 2] for date in others))
    assert result.deflated.estimate == pytest.approx(np.mean(skills))
    assert result.difference is not None
    assert result.difference.estimate == pytest.approx(np.mean(apart))
    # Student's law is wider than the normal one, so the interval is wider than the percentiles'
    assert result.deflated.low < np.percentile(skills, 2.5)
    assert result.deflated.high > np.percentile(skills, 97.5)
    assert (result.trials, result.dates) == (4, DATES)
    assert result.best == int(np.argmax(gains.sum(axis=0)))
    assert result.skill == pytest.approx(gains.sum(axis=0).max())


def test_bbc_cv_does_not_deflate_a_single_trial() -> None:
    gains = np.full((6, 1), 0.25 / 6)
    result = bbc_cv(gains, reference=0, draws=100)
    assert (result.skill, result.deflated.estimate) == pytest.approx((0.25, 0.25))
    assert (result.deflated.low, result.deflated.high) == pytest.approx((0.25, 0.25))
    assert result.difference is not None
    assert (result.difference.low, result.difference.estimate, result.difference.high) == (0, 0, 0)


def test_bbc_cv_counts_copies_of_a_trial_once() -> None:
    one = equal_trials(1, trials=1)
    copies = bbc_cv(np.repeat(one, 100, axis=1), draws=400, seed=5)
    alone = bbc_cv(one, draws=400, seed=5)
    for name in ("skill", "dates"):
        assert getattr(copies, name) == pytest.approx(getattr(alone, name))
    for end in ("estimate", "low", "high"):
        assert getattr(copies.deflated, end) == pytest.approx(getattr(alone.deflated, end))


def test_bbc_cv_keeps_the_skill_of_a_dominant_trial() -> None:
    gains = equal_trials(2, trials=20)
    gains[:, 7] = gains.max(axis=1) + 0.5 / DATES
    result = bbc_cv(gains, reference=0, draws=400)
    assert result.best == 7
    assert result.difference is not None
    assert result.difference.is_above(0)
    assert result.deflated.low < result.skill < result.deflated.high


def repeated(count: int, *, shared: float) -> list[BBCResult]:
    return [
        bbc_cv(equal_trials(seed, shared=shared), reference=0, draws=300, seed=seed)
        for seed in range(count)
    ]


@pytest.mark.parametrize("shared", [0.0, 3.0])
@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_bbc_cv_finds_no_skill_among_equal_trials(count: int, shared: float) -> None:
    result = repeated(count, shared=shared)
    error = np.sqrt((1 + shared**2) / DATES)  # of the skill of one trial
    left = np.array([one.deflated.estimate for one in result])
    flattered = np.array([one.skill for one in result])
    # 2.32 is what the greatest of 60 normal numbers is expected to be
    assert flattered.mean() == pytest.approx(2.32 / np.sqrt(DATES), abs=4 * error / np.sqrt(count))
    assert left.mean() == pytest.approx(0, abs=4 * error / np.sqrt(count))
    covered = np.mean([one.deflated.low <= 0 <= one.deflated.high for one in result])
    better = np.mean([one.difference.is_above(0) for one in result if one.difference is not None])
    assert covered >= 0.95
    assert better <= 0.025
