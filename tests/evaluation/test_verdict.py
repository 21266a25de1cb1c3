import numpy as np
import pytest

from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.significance import Significance, judge, significance
from robust_fin.evaluation.verdict import verdict
from tests.evaluation.tables import predictions, with_models

ES = {"root": "ES", "tick": 0.25, "half_spread_ticks": 0.5}
NONE = Interval(0.0, 0.0, 0.0)


def figures(skill: tuple[float, ...], ic: tuple[float, ...], dates: int = 100) -> Significance:
    return Significance(Interval(*skill), Interval(*ic), NONE, NONE, NONE, 0.0, dates, 1.0)


@pytest.mark.parametrize(
    ("skill_ends", "ic", "words"),
    [
        ((0.002, 0.001, 0.003), (0.04, 0.03, 0.05), "Skill 0.200 % [0.100, 0.300] over"),
        ((-0.002, -0.003, -0.001), (0.001, -0.002, 0.004), "No skill: -0.200 % [-0.300, -0.100]"),
        ((0.001, -0.001, 0.003), (0.04, 0.03, 0.05), "No skill over the constant: 0.100 %"),
    ],
)
def test_verdict_follows_the_intervals(
    skill_ends: tuple[float, float, float], ic: tuple[float, float, float], words: str
) -> None:
    assert verdict(figures(skill_ends, ic)).startswith(words)


def test_pure_noise_is_called_no_skill() -> None:
    table = predictions(strength=0.0)
    table["score"] = 0.5 + 0.01 * np.random.default_rng(3).normal(size=len(table))
    assert verdict(significance(table, trivial=0.5)).startswith("No skill")
    assert verdict(judge(with_models(table, {}))).startswith("No skill")


def test_a_planted_signal_is_called_skill() -> None:
    assert verdict(significance(predictions(strength=0.1), trivial=0.5)).startswith("Skill")


def test_constant_forecast_is_called_constant() -> None:
    table = predictions(strength=0.1).assign(score=0.5)
    assert verdict(significance(table, trivial=0.5)).endswith("the forecast is constant.")


def test_single_date_supports_no_claim() -> None:
    result = significance(predictions(strength=0.5, dates=1), trivial=0.5)
    assert verdict(result) == "No skill can be claimed: the test span has 1 trading date."


def test_few_dates_are_mentioned() -> None:
    result = significance(predictions(strength=0.5, dates=5), trivial=0.5)
    assert verdict(result).endswith(
        "With only 5 trading dates, the intervals themselves are uncertain."
    )


def test_each_baseline_is_named_with_its_paired_interval() -> None:
    table = predictions(strength=0.2)
    noise = np.random.default_rng(0).normal(size=len(table))
    worse = 0.5 + 0.5 * (table["score"].to_numpy() - 0.5) + 0.2 * noise
    alike = table["score"].to_numpy() + 0.001 * np.random.default_rng(5).normal(size=len(table))
    text = verdict(judge(with_models(table, {"ridge": worse, "lightgbm": alike})))
    assert "better than ridge by " in text
    assert "not better than LightGBM (" in text
    timid = 0.5 + 0.2 * (table["score"].to_numpy() - 0.5)
    text = verdict(judge(with_models(table.assign(score=timid), {"lightgbm": alike})))
    assert "worse than LightGBM (-" in text


def test_edge_is_compared_with_the_half_spread() -> None:
    from robust_fin.evaluation.breakdowns import Instrument

    table = with_models(predictions(strength=0.1), {})
    text = verdict(judge(table, instrument=Instrument(**ES)))
    assert "; the edge is 0.3" in text
    assert "below a half-spread of 0.5." in text
    assert "; the edge is 0.1" in verdict(judge(table))  # basis points alone
    assert " bp [" in verdict(judge(table))


def test_reversal_that_ranks_as_well_is_mentioned() -> None:
    table = predictions(strength=0.1)
    text = verdict(judge(with_models(table, {"minus_last_return": table["score"].to_numpy()})))
    assert text.endswith(
        "It orders the outcomes no better than minus the last return (0.0000 [0.0000, 0.0000])."
    )
