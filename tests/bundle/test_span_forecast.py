"""Metrics and mean forecast of a population on a span."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_fin.bundle.predictions import Nets, Scores, SpanForecast, member_spread
from robust_fin.metrics import Yardstick, span_metrics
from robust_fin.training.population.members import MemberStates

ROWS, MEMBERS = 300, 20


class Line(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([slope]))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 + self.slope * x[:, 0]


def unchanged(scores: Scores) -> Scores:
    return scores


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {"target": draw.uniform(0, 1, ROWS), "outcome": draw.standard_normal(ROWS)}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1))


def forecast(x: Tensor, truth: dict[str, np.ndarray], *, keep: int) -> SpanForecast:
    states = MemberStates([Line(0.01 * k) for k in range(MEMBERS)])
    stack = states.stack(states.weights, range(MEMBERS))
    nets = Nets(Line(0.0), identity_link, unchanged, stack)
    yardstick = Yardstick(**truth, train_median=0.5, train_mean=0.4)
    return SpanForecast.score(nets, x, yardstick, keep=keep)


def identity_link(scores: Tensor) -> Tensor:
    return scores


def member_scores(x: Tensor) -> np.ndarray:
    """Compute the scores of every member in float32, the dtype of the nets."""
    slopes = torch.tensor([0.01 * k for k in range(MEMBERS)])
    return (0.5 + slopes[:, None] * x[:, 0]).numpy()


def test_metrics_are_per_member_and_the_forecast_is_the_mean(
    x: Tensor, truth: dict[str, np.ndarray]
) -> None:
    result, scores = forecast(x, truth, keep=0), member_scores(x)
    for k, figures in enumerate(result.members):
        expected = span_metrics(
            scores[k].astype(np.float64), **truth, train_median=0.5, train_mean=0.4
        )
        assert figures == pytest.approx(expected, rel=1e-6, nan_ok=True)
    np.testing.assert_allclose(result.forecast.score, scores.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(result.forecast.std, scores.std(axis=0, ddof=1), atol=1e-6)
    assert math.isnan(result.members[0]["rank_ic"])  # a slope of 0 gives a constant forecast


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (3, 3), (16, 16), (18, 18), (99, 20)])
def test_scores_of_the_first_members_are_kept(
    x: Tensor, truth: dict[str, np.ndarray], keep: int, kept: int
) -> None:
    result = forecast(x, truth, keep=keep).kept
    assert result.shape == (kept, ROWS)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, member_scores(x)[:kept], atol=1e-3)


def test_member_spread_has_mean_std_and_central_95_percent() -> None:
    values = np.arange(41.0)
    result = member_spread(tuple({"skill": value, "mae": -value} for value in values))
    assert list(result) == [
        f"{name}_{part}" for name in ("skill", "mae") for part in ("mean", "std", "low", "high")
    ]
    assert result["skill_mean"] == 20
    assert result["skill_std"] == pytest.approx(math.sqrt(np.sum((values - 20) ** 2) / 40))
    assert (result["skill_low"], result["skill_high"]) == (1.0, 39.0)
    assert (result["mae_low"], result["mae_high"]) == (-39.0, -1.0)


def test_spread_of_one_member_has_std_nan_and_nan_metrics_stay_nan() -> None:
    result = member_spread(({"skill": 0.25},))
    assert (result["skill_mean"], result["skill_low"], result["skill_high"]) == (0.25, 0.25, 0.25)
    assert math.isnan(result["skill_std"])
    with_nan = member_spread(({"rank_ic": math.nan}, {"rank_ic": 0.1}))
    assert all(math.isnan(value) for value in with_nan.values())
