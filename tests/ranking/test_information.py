import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import multivariate_normal
from sklearn.feature_selection import mutual_info_regression
from sklearn.metrics import mutual_info_score

from robust_fin.ranking.importance import (
    beyond_chance,
    directions,
    mutual_information,
    quantile_bins,
    shuffled_dates,
)


def pair(correlation: float, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, other = np.random.default_rng(seed).normal(size=(2, rows))
    return x, correlation * x + np.sqrt(1 - correlation**2) * other


def binned(x: np.ndarray, y: np.ndarray, bins: int) -> float:
    return mutual_information(quantile_bins(x, bins), quantile_bins(y, bins))


def test_bins_hold_equal_numbers_and_ties_stay_together() -> None:
    assert quantile_bins(np.arange(8.0), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    tied = quantile_bins(np.array([0.0, 0, 0, 0, 0, 0, 1, 2]), 4)
    assert tied.tolist() == [1, 1, 1, 1, 1, 1, 2, 2]


def of_gaussian_bins(correlation: float, bins: int) -> float:
    """Mutual information of the bins themselves, from the integral of the bivariate density."""
    edges = np.clip(ndtri(np.linspace(0, 1, bins + 1)), -9, 9)
    law = multivariate_normal(cov=[[1, correlation], [correlation, 1]])
    below = law.cdf(np.stack(np.meshgrid(edges, edges), axis=-1))
    joint = np.clip(np.diff(np.diff(below, axis=0), axis=1), 1e-300, None)
    return float(np.sum(joint * np.log(joint * bins**2)))


@pytest.mark.parametrize("correlation", [0.3, 0.6, -0.6, 0.9])
def test_of_a_gaussian_pair(correlation: float) -> None:
    found = binned(*pair(correlation, 400_000), bins=16)
    assert found == pytest.approx(of_gaussian_bins(correlation, 16), rel=0.03)
    known = -0.5 * np.log(1 - correlation**2)
    assert 0.92 * known < found < 1.01 * known  # bins lose some, and add nothing


def test_of_a_gaussian_pair_as_weak_as_a_forecast_of_returns() -> None:
    found = binned(*pair(0.05, 400_000), bins=8)
    assert found == pytest.approx(of_gaussian_bins(0.05, 8), abs=2.5e-4)


def test_is_the_plug_in_estimate_less_its_bias() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 7, 500), rng.integers(0, 4, 500)
    assert mutual_information(x, y) == pytest.approx(
        mutual_info_score(x, y) - 6 * 3 / (2 * 500), rel=1e-10
    )


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_agrees_with_the_nearest_neighbours_of_scikit_learn(correlation: float) -> None:
    x, y = pair(correlation, 8_000, seed=2)
    other = mutual_info_regression(x[:, None], y, random_state=0)[0]
    assert binned(x, y, bins=20) == pytest.approx(other, abs=0.035)


def test_independent_columns_have_none_on_average() -> None:
    found = [binned(*pair(0.0, 2_000, seed=seed), bins=16) for seed in range(60)]
    bias = 15 * 15 / (2 * 2_000)  # what would be there without the correction
    assert np.mean(found) == pytest.approx(0, abs=0.08 * bias)


def test_columns_with_memory_have_none_beyond_that_of_other_dates() -> None:
    def slow(rng: np.random.Generator) -> np.ndarray:
        return np.repeat(rng.normal(size=60), 50) + 0.3 * rng.normal(size=3_000)

    seen, beyond = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = quantile_bins(slow(rng), 8), quantile_bins(slow(rng), 8)
        starts = np.arange(0, 3_000, 50)
        orders = [shuffled_dates(starts, rows=3_000, draw=rng) for _ in range(5)]
        seen.append(mutual_information(x, y))
        beyond.append(beyond_chance(x, y, orders=orders))
    assert np.mean(seen) > 0.04
    assert np.mean(beyond) == pytest.approx(0, abs=0.006)


def test_spread_is_information_and_no_direction() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=100_000)
    y = np.exp(x) * rng.normal(size=x.size)
    assert binned(x, y, bins=16) > 0.2
    assert mutual_information(quantile_bins(x, 16), directions(y, median=0.0)) < 3e-4


def test_directions_are_three() -> None:
    found = directions(np.array([0.1, 0.5, 0.9, 0.5]), median=0.5)
    assert found.tolist() == [0, 1, 2, 1]
