import math

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, pearsonr, spearmanr

from robust_fin.metrics import (
    absolute_loss,
    correlation,
    excess_kurtosis,
    huber_loss,
    huber_terms,
    rank_ic,
    skill,
    span_metrics,
    squared_loss,
)


def pair(rows: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a forecast and an outcome with ties in both."""
    draw = np.random.default_rng(seed)
    score = np.round(draw.normal(size=rows), 1)
    return score, np.round(0.3 * score + draw.normal(size=rows), 1)


@pytest.mark.parametrize("seed", range(4))
def test_rank_ic_matches_scipy_with_ties(seed: int) -> None:
    score, outcome = pair(2000, seed=seed)
    assert np.unique(score).size < 100
    assert rank_ic(score, outcome) == pytest.approx(spearmanr(score, outcome).statistic, abs=1e-12)


def test_rank_ic_by_hand() -> None:
    up = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_ic(up, np.array([-1.0, 0.0, 5.0, 1e9])) == pytest.approx(1.0)
    assert rank_ic(up, -up) == pytest.approx(-1.0)
    assert rank_ic(up, np.array([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)


def test_rank_ic_accepts_float32() -> None:
    score, outcome = pair(500, seed=9)
    assert rank_ic(score.astype(np.float32), outcome) == pytest.approx(rank_ic(score, outcome))


@pytest.mark.parametrize("metric", [rank_ic, correlation])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7e8])
def test_constant_has_no_correlation(metric, value: float) -> None:
    moving = np.array([1.0, 2.0, 5.0])
    assert math.isnan(metric(np.full(3, value), moving))
    assert math.isnan(metric(moving, np.full(3, value)))


def test_single_row_has_no_correlation() -> None:
    assert math.isnan(rank_ic(np.ones(1), np.ones(1)))
    assert math.isnan(rank_ic(np.ones(0), np.ones(0)))


def test_nan_forecast_has_no_correlation() -> None:
    score, outcome = pair(10, seed=0)
    score[3] = np.nan
    assert math.isnan(rank_ic(score, outcome))


def test_correlation_matches_scipy() -> None:
    a, b = pair(300, seed=5)
    assert correlation(a, b) == pytest.approx(pearsonr(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("delta", [0.01, 0.1, 1.0])
def test_huber_loss_matches_torch(delta: float) -> None:
    draw = np.random.default_rng(0)
    score, target = draw.random(1000), draw.random(1000)
    reference = torch.nn.functional.huber_loss(
        torch.from_numpy(score), torch.from_numpy(target), delta=delta
    )
    assert huber_loss(score, target, delta=delta) == pytest.approx(reference.item(), rel=1e-12)


def test_huber_terms_by_hand() -> None:
    # 0.5 * 0.05^2, the border, and 0.1 * (0.3 - 0.05)
    terms = huber_terms(np.array([0.05, 0.1, -0.3]), np.zeros(3))
    np.testing.assert_allclose(terms, [0.00125, 0.005, 0.025], rtol=1e-12)
    assert huber_terms(0.5, np.array([0.5, 0.8])).tolist() == pytest.approx([0, 0.025])


def test_squared_and_absolute_loss_by_hand() -> None:
    score, target = np.array([0.0, 1.0, 0.5]), np.array([0.5, 1.0, 0.0])
    assert squared_loss(score, target) == pytest.approx(0.5 / 3)
    assert absolute_loss(score, target) == pytest.approx(1.0 / 3)


@pytest.mark.parametrize(
    ("loss", "trivial", "expected"), [(0.5, 1.0, 0.5), (2.0, 1.0, -1.0), (1.0, 1.0, 0.0)]
)
def test_skill_is_the_saved_share_of_the_trivial_loss(loss, trivial, expected) -> None:
    assert skill(loss, trivial) == expected


def test_skill_is_nan_if_the_trivial_loss_is_0() -> None:
    assert math.isnan(skill(0.0, 0.0))


@pytest.mark.parametrize("seed", range(3))
def test_excess_kurtosis_matches_scipy(seed: int) -> None:
    values = np.random.default_rng(seed).standard_t(3, 5000) * 1e-4
    assert excess_kurtosis(values) == pytest.approx(kurtosis(values), rel=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-5])
def test_constant_has_no_kurtosis(value: float) -> None:
    assert math.isnan(excess_kurtosis(np.full(3, value)))


def test_span_metrics_use_median_and_mean_as_constants() -> None:
    draw = np.random.default_rng(1)
    target, outcome = draw.random(400), draw.normal(size=400)
    score = np.clip(target + draw.normal(0, 0.2, 400), 0, 1).astype(np.float32)
    got = span_metrics(score, target, outcome, train_median=0.4, train_mean=0.6)
    median, mean = np.full(400, 0.4), np.full(400, 0.6)
    assert got["loss"] == huber_loss(score, target, delta=0.1)
    assert got["loss_trivial"] == huber_loss(median, target, delta=0.1)
    assert got["skill"] == 1 - got["loss"] / got["loss_trivial"]
    expected = 1 - squared_loss(score, target) / squared_loss(mean, target)
    assert got["skill_squared"] == expected
    assert got["mae"] == absolute_loss(score, target)
    assert got["mae_trivial"] == absolute_loss(median, target)
    assert got["rank_ic"] == pytest.approx(spearmanr(score, outcome).statistic, abs=1e-12)
    assert len(got) == 7


def test_trivial_forecast_has_no_skill_and_no_rank_ic() -> None:
    target = np.linspace(0, 1, 11)
    got = span_metrics(np.full(11, 0.5), target, target, train_median=0.5, train_mean=0.5)
    assert (got["skill"], got["skill_squared"]) == (0, 0)
    assert math.isnan(got["rank_ic"])
