import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from robust_fin.training.module import SpanScores


def span(rows: int = 501) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    outcome = (
        torch.round(4 * torch.randn(rows, generator=generator)) / 4
    )  # ties, as ticks make them
    target = torch.rand(rows, generator=generator)
    score = 0.5 + 0.1 * torch.randn(rows, generator=generator) + 0.02 * outcome
    return score, target, outcome


def test_forecasts_are_brought_to_ranks_before_they_are_judged() -> None:
    score, target, outcome = span()
    ranked = SpanScores(train_median=0.49, train_mean=0.5)
    ranked.update(score, target, outcome)
    raw = SpanScores(train_median=0.49, train_mean=0.5, to_rank=lambda one: one / 8 + 0.5)
    raw.update(8 * (score - 0.5), target, outcome)
    pairs = zip(ranked.compute().values(), raw.compute().values(), strict=True)
    assert all(a.item() == pytest.approx(b.item(), rel=1e-6) for a, b in pairs)


def test_batches_give_the_figures_of_the_whole_span() -> None:
    score, target, outcome = span()
    scores = SpanScores(train_median=0.49, train_mean=0.5)
    for part in torch.split(torch.arange(501), 64):
        scores.update(score[part], target[part], outcome[part])
    found = {name: value.item() for name, value in scores.compute().items()}
    s, t, y = (v.double().numpy() for v in (score, target, outcome))
    size = np.abs(s - t)
    loss = np.where(size <= 0.1, size**2 / 2, 0.1 * (size - 0.05)).mean()
    size = np.abs(0.49 - t)
    trivial = np.where(size <= 0.1, size**2 / 2, 0.1 * (size - 0.05)).mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["loss_trivial"] == pytest.approx(trivial, rel=1e-6)
    assert found["skill"] == pytest.approx(1 - loss / trivial, rel=1e-5)
    expected = 1 - ((s - t) ** 2).mean() / ((0.5 - t) ** 2).mean()
    assert found["skill_squared"] == pytest.approx(expected, rel=1e-5)
    assert found["mae"] == pytest.approx(np.abs(s - t).mean(), rel=1e-6)
    assert found["rank_ic"] == pytest.approx(spearmanr(s, y).statistic, rel=1e-5)


def test_reset_forgets() -> None:
    score, target, outcome = span()
    scores = SpanScores(train_median=0.5, train_mean=0.5)
    scores.update(score, target, outcome)
    scores.reset()
    scores.update(score[:50], target[:50], outcome[:50])
    expected = spearmanr(score[:50], outcome[:50]).statistic
    assert scores.compute()["rank_ic"].item() == pytest.approx(expected, rel=1e-5)


def test_a_constant_forecast_has_no_ranking() -> None:
    _, target, outcome = span()
    scores = SpanScores(train_median=0.5, train_mean=0.5)
    scores.update(torch.full((501,), 0.5), target, outcome)
    assert torch.isnan(scores.compute()["rank_ic"])
    assert scores.compute()["skill"].item() == 0
