import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from robust_fin.evaluation.significance import (
    Interval,
    Significance,
    date_weights,
    significance,
    verdict,
)
from robust_fin.metrics import huber_loss, skill


def predictions(
    *, strength: float, seed: int = 0, dates: int = 120, a_day: int = 80
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = dates * a_day
    signal = rng.normal(size=rows)
    outcome = np.round(strength * signal + rng.normal(size=rows), 1)
    target = (pd.Series(outcome).rank().to_numpy() - 1) / (rows - 1)
    score = 0.5 + 0.29 * strength * signal
    date = np.datetime64("2024-01-01", "s") + np.repeat(np.arange(dates), a_day) * 86400
    return pd.DataFrame(
        {"trading_date": date, "score": score, "target": target, "outcome": outcome}
    )


def test_estimates_are_the_metrics_of_the_whole_span() -> None:
    table = predictions(strength=0.1)
    found = significance(table, trivial=0.5, draws=50)
    score, target = table["score"].to_numpy(), table["target"].to_numpy()
    expected = skill(huber_loss(score, target), huber_loss(np.full_like(score, 0.5), target))
    assert found.skill.estimate == pytest.approx(expected, rel=1e-9)
    assert found.rank_ic.estimate == pytest.approx(
        spearmanr(table["score"], table["outcome"]).statistic, rel=1e-9
    )
    assert found.dates == 120


def test_the_interval_is_as_wide_as_the_spread_over_fresh_samples() -> None:
    many = [
        significance(predictions(strength=0.1, seed=s), trivial=0.5, draws=2) for s in range(60)
    ]
    spread = np.std([one.rank_ic.estimate for one in many])
    interval = significance(predictions(strength=0.1, seed=99), trivial=0.5, draws=2000).rank_ic
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(spread, rel=0.35)


def test_every_sample_has_as_many_dates_as_there_are() -> None:
    weights = date_weights(30, draws=500, seed=1)
    assert weights.shape == (500, 30)
    assert (weights.sum(axis=1) == 30).all()
    assert weights.mean() == 1
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.25  # circular: no date is favoured


def test_blocks_have_the_mean_length_asked_for() -> None:
    def neighbours(block: float) -> float:
        weights = date_weights(200, draws=400, seed=0, block=block)
        return float(np.mean((weights[:, :-1] > 0) & (weights[:, 1:] > 0)))

    assert neighbours(20.0) > neighbours(1.0) + 0.1


@pytest.mark.parametrize(
    ("skill_ends", "ic", "words"),
    [
        ((0.002, 0.001, 0.003), (0.04, 0.03, 0.05), "Skill 0.200 % [0.100 %, 0.300 %] over"),
        ((-0.002, -0.003, -0.001), (0.001, -0.002, 0.004), "No skill: -0.200 %"),
        ((0.001, -0.001, 0.003), (0.04, 0.03, 0.05), "No skill over the constant: 0.100 %"),
    ],
)
def test_the_verdict_follows_the_intervals(
    skill_ends: tuple[float, float, float], ic: tuple[float, float, float], words: str
) -> None:
    assert verdict(Significance(Interval(*skill_ends), Interval(*ic), 100)).startswith(words)


def test_pure_noise_is_called_no_skill() -> None:
    table = predictions(strength=0.0)
    table["score"] = 0.5 + 0.01 * np.random.default_rng(3).normal(size=len(table))
    assert verdict(significance(table, trivial=0.5)).startswith("No skill")


def test_a_planted_signal_is_called_skill() -> None:
    assert verdict(significance(predictions(strength=0.1), trivial=0.5)).startswith("Skill")


def test_a_constant_forecast_is_called_constant() -> None:
    table = predictions(strength=0.1).assign(score=0.5)
    assert verdict(significance(table, trivial=0.5)).endswith("the forecast is constant.")


def test_one_date_supports_no_claim() -> None:
    found = significance(predictions(strength=0.5, dates=1), trivial=0.5)
    assert verdict(found) == "No skill can be claimed: the test span has 1 trading date."
