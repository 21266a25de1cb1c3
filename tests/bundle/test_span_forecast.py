"""What a population says about a span."""

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


def as_they_are(scores: Scores) -> Scores:
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
    nets = Nets(Line(0.0), as_they_are_link, as_they_are, stack)
    yardstick = Yardstick(**truth, train_median=0.5, train_mean=0.4)
    return SpanForecast.score(nets, x, yardstick, keep=keep)


def as_they_are_link(scores: Tensor) -> Tensor:
    return scores


def by_hand(x: Tensor) -> np.ndarray:
    """Scores of every member, float32 as the nets have them."""
    slopes = torch.tensor([0.01 * k for k in range(MEMBERS)])
    return (0.5 + slopes[:, None] * x[:, 0]).numpy()


def test_the_figures_are_each_members_and_the_forecast_is_their_mean(
    x: Tensor, truth: dict[str, np.ndarray]
) -> None:
    found, scores = forecast(x, truth, keep=0), by_hand(x)
    for k, figures in enumerate(found.members):
        wanted = span_metrics(
            scores[k].astype(np.float64), **truth, train_median=0.5, train_mean=0.4
        )
        assert figures == pytest.approx(wanted, rel=1e-6, nan_ok=True)
    np.testing.assert_allclose(found.forecast.score, scores.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.forecast.std, scores.std(axis=0, ddof=1), atol=1e-6)
    assert math.isnan(found.members[0]["rank_ic"])  # a slope of 0 orders nothing


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (3, 3), (16, 16), (18, 18), (99, 20)])
def test_single_scores_are_kept_of_the_first_members(
    x: Tensor, truth: dict[str, np.ndarray], keep: int, kept: int
) -> None:
    found = forecast(x, truth, keep=keep).kept
    assert found.shape == (kept, ROWS)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, by_hand(x)[:kept], atol=1e-3)


def test_spread_is_mean_deviation_and_the_central_95_percent() -> None:
    values = np.arange(41.0)
    found = member_spread(tuple({"skill": value, "mae": -value} for value in values))
    assert list(found) == [
        f"{name}_{part}" for name in ("skill", "mae") for part in ("mean", "std", "low", "high")
    ]
    assert found["skill_mean"] == 20
    assert found["skill_std"] == pytest.approx(math.sqrt(np.sum((values - 20) ** 2) / 40))
    assert (found["skill_low"], found["skill_high"]) == (1.0, 39.0)
    assert (found["mae_low"], found["mae_high"]) == (-39.0, -1.0)


def test_one_member_has_no_deviation_and_what_one_lacks_the_spread_lacks() -> None:
    found = member_spread(({"skill": 0.25},))
    assert (found["skill_mean"], found["skill_low"], found["skill_high"]) == (0.25, 0.25, 0.25)
    assert math.isnan(found["skill_std"])
    lacking = member_spread(({"rank_ic": math.nan}, {"rank_ic": 0.1}))
    assert all(math.isnan(value) for value in lacking.values())
