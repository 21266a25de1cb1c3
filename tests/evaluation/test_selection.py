import math
from dataclasses import replace

import numpy as np
import purgedcv
import pytest
from scipy.stats import norm

from robust_fin.evaluation.multiple_testing import (
    SharpeMoments,
    deflated_sharpe,
    expected_maximum,
    probabilistic_sharpe,
    sample_std,
)


def fat_tailed(*, seed: int, dates: int = 250) -> np.ndarray:
    return 0.01 + 0.1 * np.random.default_rng(seed).standard_t(4, dates)


def with_all_degrees(track: SharpeMoments) -> SharpeMoments:
    """purgedcv divides by the number of dates, we by one less."""
    return replace(track, ratio=track.ratio * math.sqrt(track.dates / (track.dates - 1)))


def test_a_track_is_what_can_be_counted_by_hand() -> None:
    track = SharpeMoments.from_daily(np.array([1.0, 2.0, 3.0, np.nan, 6.0]))
    assert track.dates == 4
    assert track.ratio == pytest.approx(3 / math.sqrt(14 / 3))
    # m2 = 3.5, m3 = 4.5, and the correction sqrt(n (n - 1)) / (n - 2) for so few dates
    assert track.skew == pytest.approx(4.5 / 3.5**1.5 * math.sqrt(12) / 2)


@pytest.mark.parametrize("daily", [[0.1, 0.2, 0.3], [0.1] * 50, [np.nan] * 9])
def test_a_series_that_tells_nothing_has_no_ratio(daily: list[float]) -> None:
    track = SharpeMoments.from_daily(np.array(daily))
    assert math.isnan(track.ratio)
    assert math.isnan(probabilistic_sharpe(track, above=0.0))


@pytest.mark.parametrize("trials", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_deflated_ratio_is_that_of_purgedcv(trials: int, seed: int) -> None:
    daily, spread = fat_tailed(seed=seed), 0.03
    ours = deflated_sharpe(
        with_all_degrees(SharpeMoments.from_daily(daily)), trials=trials, spread=spread
    )
    theirs = purgedcv.deflated_sharpe_ratio_full(daily, trials, spread**2)
    assert ours.probability == pytest.approx(theirs.dsr, rel=1e-12)
    assert ours.expected_max == pytest.approx(theirs.sr_star, rel=1e-12, abs=1e-15)
    assert 0.001 < ours.probability < 0.999999  # the comparison says something


def test_the_example_of_the_paper() -> None:
    # 100 trials whose annual ratios have variance 1/2, five years of 250 days, annual ratio 2.5,
    # skew -3, kurtosis 10: the best without skill is at 0.1132 a day, and one is sure to 0.9004
    track = SharpeMoments(ratio=2.5 / math.sqrt(250), dates=1250, skew=-3.0, kurtosis=10.0)
    found = deflated_sharpe(track, trials=100, spread=math.sqrt(0.5 / 250))
    assert found.expected_max == pytest.approx(0.1132, abs=5e-5)
    assert found.probability == pytest.approx(0.9004, abs=5e-5)


def test_one_trial_is_not_deflated_and_of_a_normal_law_it_is_the_t_test() -> None:
    track = SharpeMoments(ratio=0.1, dates=101, skew=0.0, kurtosis=3.0)
    found = deflated_sharpe(track, trials=1, spread=math.nan)
    assert found.expected_max == 0
    assert found.probability == pytest.approx(norm.cdf(1.0 / math.sqrt(1 + 0.1**2 / 2)))


def test_the_expected_maximum_is_that_of_normal_draws() -> None:
    draws = np.random.default_rng(0).normal(scale=0.2, size=(20_000, 30)).max(axis=1)
    assert expected_maximum(30, spread=0.2) == pytest.approx(draws.mean(), rel=0.02)


def test_more_trials_make_a_claim_weaker() -> None:
    track = SharpeMoments.from_daily(fat_tailed(seed=3))
    found = [deflated_sharpe(track, trials=n, spread=0.05).probability for n in (1, 3, 10, 100)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 0.05


def test_the_best_of_many_without_skill_is_no_longer_sure_once_deflated() -> None:
    naive, deflated = [], []
    for seed in range(25):
        tracks = [
            SharpeMoments.from_daily(one)
            for one in np.random.default_rng(seed).normal(size=(30, 120))
        ]
        best, spread = max(tracks, key=lambda one: one.ratio), sample_std([t.ratio for t in tracks])
        naive.append(probabilistic_sharpe(best, above=0.0))
        deflated.append(deflated_sharpe(best, trials=30, spread=spread).probability)
    assert np.mean(np.array(naive) > 0.95) > 0.6
    assert np.mean(np.array(deflated) > 0.95) < 0.1
    assert np.median(deflated) == pytest.approx(0.5, abs=0.15)


def test_the_spread_leaves_out_trials_without_a_ratio() -> None:
    assert sample_std([0.1, math.nan, 0.3]) == pytest.approx(math.sqrt(0.02))
    assert math.isnan(sample_std([0.1, math.nan]))


def test_moments_that_allow_no_statement_give_none() -> None:
    assert math.isnan(probabilistic_sharpe(SharpeMoments(1.0, 100, 5.0, 3.0), above=0.0))
    found = deflated_sharpe(SharpeMoments.from_daily(fat_tailed(seed=0)), trials=2, spread=math.nan)
    assert math.isnan(found.probability)
