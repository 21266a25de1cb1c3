import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import multivariate_normal, spearmanr
from sklearn.feature_selection import mutual_info_regression
from sklearn.metrics import mutual_info_score

from robust_fin.metrics import huber_loss, skill
from robust_fin.ranking.importance import (
    ScoredPart,
    collinear_groups,
    direction_bins,
    excess_information,
    forecast_figures,
    mutual_information,
    permutation_importances,
    quantile_bins,
    rank_correlations,
    score_part,
    shuffle_dates,
)

DAY = np.timedelta64(1, "D")


def make_part(
    *, strength: float = 0.2, seed: int = 0, dates: int = 60, a_day: int = 50, noise: float = 0.0
) -> ScoredPart:
    """Columns: the signal that the forecast uses, a copy of it, and noise used with a weight."""
    rng = np.random.default_rng(seed)
    rows = dates * a_day
    signal, other = rng.normal(size=(2, rows))
    outcome = strength * signal + rng.normal(size=rows)
    target = (outcome.argsort().argsort() + 0.5) / rows
    days = np.datetime64("2024-01-01", "s") + np.repeat(np.arange(dates), a_day) * DAY

    def forecast(x: np.ndarray) -> np.ndarray:
        return 0.5 + 0.28 * strength * (x[:, 0] + x[:, 1]) / 2 + noise * x[:, 2]

    x = np.stack([signal, signal, other], axis=1)
    return ScoredPart(x, target, outcome, days, 0.5, forecast)


def test_shuffle_dates_keeps_dates_whole_and_rotates_each() -> None:
    starts = np.array([0, 4, 9])
    shuffled = shuffle_dates(starts, rows=11, draw=np.random.default_rng(3))
    assert sorted(shuffled.tolist()) == list(range(11))
    date = np.searchsorted(starts, shuffled, side="right") - 1
    assert np.count_nonzero(np.diff(date)) == 2
    for number, (first, size) in enumerate([(0, 4), (4, 5), (9, 2)]):
        inside = shuffled[date == number] - first
        assert ((np.diff(inside) % size) == 1).all()


def test_shuffle_dates_moves_the_time_of_day_too() -> None:
    rng = np.random.default_rng(0)
    clock = np.tile(np.arange(50.0), 100)
    shuffled = clock[shuffle_dates(np.arange(0, 5000, 50), rows=5000, draw=rng)]
    assert abs(np.corrcoef(clock, shuffled)[0, 1]) < 0.1


def test_forecast_figures_are_spearman_correlation_and_huber_skill() -> None:
    part = make_part(strength=0.3)
    figures = forecast_figures([score_part(part, [], repeats=1, seed=0)], draws=200, seed=0)
    score, rank_ic = part.forecast(part.x), figures["rank_ic"]
    assert rank_ic.estimate == pytest.approx(spearmanr(score, part.outcome).statistic, rel=1e-9)
    trivial = huber_loss(np.full_like(score, 0.5), part.target)
    expected = skill(huber_loss(score, part.target), trivial)
    assert figures["skill"].estimate == pytest.approx(expected, rel=1e-9)
    assert rank_ic.low < rank_ic.estimate < rank_ic.high


def test_unused_column_loses_nothing_and_all_used_columns_lose_everything() -> None:
    sums = score_part(make_part(strength=0.3), [(0,), (2,), (0, 1)], repeats=4, seed=1)
    alone, unused, together = permutation_importances([sums], draws=200, seed=0)
    assert unused.rank_ic.estimate == unused.rank_ic.low == unused.rank_ic.high == 0
    total = forecast_figures([sums], draws=200, seed=0)["rank_ic"].estimate
    assert together.rank_ic.estimate == pytest.approx(total, abs=0.02)
    assert together.rank_ic.is_above(0)
    assert together.skill.is_above(0)
    # the copy still carries the signal
    assert 0 < alone.rank_ic.estimate < 0.6 * together.rank_ic.estimate


def test_importance_is_the_mean_over_parts() -> None:
    parts = [make_part(seed=1, strength=0.4), make_part(seed=2, strength=0.1)]
    sums = [score_part(part, [(0, 1)], repeats=5, seed=0) for part in parts]
    (both,) = permutation_importances(sums, draws=200, seed=0)
    for number in (0, 1):
        (alone,) = permutation_importances(sums[number : number + 1], draws=2, seed=0)
        assert both.by_part[number] == alone.rank_ic.estimate
    assert both.by_part[0] > both.by_part[1] + 0.1
    assert both.rank_ic.estimate == pytest.approx(np.mean(both.by_part), abs=1e-9)


def test_constant_forecast_loses_nothing() -> None:
    sums = score_part(make_part(strength=0.0), [(0,)], repeats=2, seed=0)
    (loss,) = permutation_importances([sums], draws=20, seed=0)
    assert loss.rank_ic.low == loss.rank_ic.high == loss.by_part[0] == 0
    assert np.isnan(forecast_figures([sums], draws=20, seed=0)["rank_ic"].estimate)


def test_interval_is_as_wide_as_the_spread_over_fresh_samples_or_slightly_wider() -> None:
    def rank_ic(seed: int, draws: int):
        sums = score_part(make_part(seed=seed, dates=40), [(0, 1)], repeats=3, seed=seed)
        return permutation_importances([sums], draws=draws, seed=seed)[0].rank_ic

    spread = np.std([rank_ic(seed, 2).estimate for seed in range(60)])
    intervals = [rank_ic(seed, 300) for seed in range(200, 205)]
    widths = [(interval.high - interval.low) / (2 * 1.96) for interval in intervals]
    assert 0.9 * spread < np.mean(widths) < 1.4 * spread


def test_interval_of_a_noise_column_is_rarely_above_zero() -> None:
    above = 0
    for seed in range(20):
        sums = score_part(make_part(seed=seed, noise=0.03), [(2,)], repeats=3, seed=seed)
        above += permutation_importances([sums], draws=300, seed=seed)[0].rank_ic.is_above(0)
    assert above <= 3  # 2.5 % of 20 are expected


def gaussian_pair(correlation: float, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, other = np.random.default_rng(seed).normal(size=(2, rows))
    return x, correlation * x + np.sqrt(1 - correlation**2) * other


def binned_information(x: np.ndarray, y: np.ndarray, bins: int) -> float:
    return mutual_information(quantile_bins(x, bins), quantile_bins(y, bins))


def gaussian_bin_information(correlation: float, bins: int) -> float:
    """Mutual information of the bins, from the integral of the bivariate normal density."""
    edges = np.clip(ndtri(np.linspace(0, 1, bins + 1)), -9, 9)
    law = multivariate_normal(cov=[[1, correlation], [correlation, 1]])
    below = law.cdf(np.stack(np.meshgrid(edges, edges), axis=-1))
    joint = np.clip(np.diff(np.diff(below, axis=0), axis=1), 1e-300, None)
    return float(np.sum(joint * np.log(joint * bins**2)))


def test_quantile_bins_have_equal_sizes_and_keep_ties_together() -> None:
    assert quantile_bins(np.arange(8.0), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    tied = quantile_bins(np.array([0.0, 0, 0, 0, 0, 0, 1, 2]), 4)
    assert tied.tolist() == [1, 1, 1, 1, 1, 1, 2, 2]


def test_direction_bins_are_below_at_and_above_the_median() -> None:
    bins = direction_bins(np.array([0.1, 0.5, 0.9, 0.5]), median=0.5)
    assert bins.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("correlation", [0.3, 0.6, -0.6, 0.9])
def test_mutual_information_of_a_gaussian_pair(correlation: float) -> None:
    information = binned_information(*gaussian_pair(correlation, 400_000), bins=16)
    assert information == pytest.approx(gaussian_bin_information(correlation, 16), rel=0.03)
    exact = -0.5 * np.log(1 - correlation**2)
    assert 0.92 * exact < information < 1.01 * exact  # binning loses some and adds nothing


def test_mutual_information_of_a_pair_as_weak_as_a_return_forecast() -> None:
    information = binned_information(*gaussian_pair(0.05, 400_000), bins=8)
    assert information == pytest.approx(gaussian_bin_information(0.05, 8), abs=2.5e-4)


def test_mutual_information_is_the_plug_in_estimate_minus_its_bias() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 7, 500), rng.integers(0, 4, 500)
    expected = mutual_info_score(x, y) - 6 * 3 / (2 * 500)
    assert mutual_information(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_mutual_information_agrees_with_scikit_learn(correlation: float) -> None:
    x, y = gaussian_pair(correlation, 8_000, seed=2)
    expected = mutual_info_regression(x[:, None], y, random_state=0)[0]
    assert binned_information(x, y, bins=20) == pytest.approx(expected, abs=0.035)


def test_independent_columns_have_no_information_on_average() -> None:
    pairs = [gaussian_pair(0.0, 2_000, seed=seed) for seed in range(60)]
    bias = 15 * 15 / (2 * 2_000)  # of the plug-in estimate
    mean = np.mean([binned_information(*pair, bins=16) for pair in pairs])
    assert mean == pytest.approx(0, abs=0.08 * bias)


def test_autocorrelated_independent_columns_have_no_excess_information() -> None:
    def slow(rng: np.random.Generator) -> np.ndarray:
        return np.repeat(rng.normal(size=60), 50) + 0.3 * rng.normal(size=3_000)

    information, excess = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = quantile_bins(slow(rng), 8), quantile_bins(slow(rng), 8)
        starts = np.arange(0, 3_000, 50)
        orders = [shuffle_dates(starts, rows=3_000, draw=rng) for _ in range(5)]
        information.append(mutual_information(x, y))
        excess.append(excess_information(x, y, orders=orders))
    assert np.mean(information) > 0.04
    assert np.mean(excess) == pytest.approx(0, abs=0.006)


def test_dependence_of_the_spread_is_information_but_not_on_the_direction() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=100_000)
    y = np.exp(x) * rng.normal(size=x.size)
    assert binned_information(x, y, bins=16) > 0.2
    assert mutual_information(quantile_bins(x, 16), direction_bins(y, median=0.0)) < 3e-4


def test_rank_correlations_are_those_of_scipy() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4)).round(1)
    x[:, 3] = -np.exp(x[:, 0])
    assert rank_correlations(x) == pytest.approx(spearmanr(x).statistic, abs=1e-12)
    assert rank_correlations(x)[0, 3] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("least", "groups"),
    [
        (0.9, ((0,), (1,), (2,), (3,))),
        (0.75, ((0, 1), (2,), (3,))),  # 1 and 2 are correlated too, but 0 and 2 are not
        (0.5, ((0, 1, 2), (3,))),
        (0.1, ((0, 1, 2, 3),)),
    ],
)
def test_every_two_columns_of_a_group_are_correlated(
    least: float, groups: tuple[tuple[int, ...], ...]
) -> None:
    correlation = np.eye(4)
    for pair, value in {
        (0, 1): -0.85, (1, 2): 0.8, (0, 2): 0.6, (0, 3): 0.2, (1, 3): 0.2, (2, 3): -0.2,
    }.items():  # fmt: skip
        correlation[pair] = correlation[pair[::-1]] = value
    assert collinear_groups(correlation, least=least) == groups


def test_single_column_is_a_group() -> None:
    correlation = rank_correlations(np.arange(5.0)[:, None])
    assert correlation.tolist() == [[1.0]]
    assert collinear_groups(correlation, least=0.7) == ((0,),)


def test_equal_columns_are_a_group_at_a_correlation_of_1() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    correlation = rank_correlations(np.concatenate([x, x[:, :1] ** 3], axis=1))
    assert collinear_groups(correlation, least=1.0) == ((0, 2), (1,))
