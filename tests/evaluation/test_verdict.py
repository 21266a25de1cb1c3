from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from robust_fin.evaluation.breakdowns import Edge, Instrument
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.significance import (
    Judgement,
    PlausibleLimits,
    Significance,
    judge,
    significance,
)
from robust_fin.evaluation.verdict import claims_order, claims_skill, headline, verdict
from tests.evaluation.tables import predictions, with_models

ES = Instrument(root="ES", tick=0.25, half_spread_ticks=0.5, multiplier=50, fee=2.25)
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


@pytest.mark.parametrize(("dates", "words"), [(1, "1 trading date,"), (4, "4 trading dates,")])
def test_fewer_than_five_dates_support_no_claim(dates: int, words: str) -> None:
    result = significance(predictions(strength=0.5, dates=dates), trivial=0.5)
    assert (
        verdict(result) == f"No skill can be claimed: the test span has {words} and 5 are needed."
    )
    five = significance(predictions(strength=0.5, dates=5), trivial=0.5)
    assert verdict(five).startswith("Skill")
    assert verdict(five).endswith(
        "With only 5 trading dates, the intervals themselves are uncertain."
    )


def test_short_dates_are_counted_but_support_no_claim() -> None:
    table = predictions(strength=0.5, dates=7)
    date = table["trading_date"].to_numpy()
    kept = table[(np.arange(len(table)) % 80 < 3) | (date < np.sort(np.unique(date))[4])]
    result = significance(kept, trivial=0.5)
    assert (result.dates, result.short_dates) == (4, 3)
    assert verdict(result) == (
        "No skill can be claimed: the test span has 4 trading dates, and 5 are needed. 3 short "
        "dates, with less than 25% of the usual rows, are not counted."
    )


@pytest.mark.parametrize("unknown", ["skill", "rank_ic"])
def test_interval_that_is_not_known_supports_no_claim(unknown: str) -> None:
    nan = float("nan")
    ends = {"skill": (0.002, 0.001, 0.003), "ic": (0.04, 0.03, 0.05)}
    ends["skill" if unknown == "skill" else "ic"] = (0.004, nan, nan)
    net = figures(**ends)
    assert not claims_skill(net)
    assert not claims_order(net)
    assert verdict(net).startswith("No skill can be claimed without intervals: ")
    assert "nan" not in verdict(net)


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


def edge_of(ticks: Interval, round_trip: float) -> Edge:
    return Edge(
        NONE, NONE, Interval(0.1, 0.0, 0.2), ticks, ticks, ticks, 0.5, 0.2, round_trip, 0.3, 100
    )


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((1.6, 1.4, 1.8), "the edge is 1.60 tick [1.40, 1.80], above the 1.36 of a round trip"),
        ((1.6, 1.3, 1.8), "1.60 tick [1.30, 1.80], not shown to be above the 1.36 of a round trip"),
        ((0.9, 0.6, 1.2), "0.90 tick [0.60, 1.20], below the 1.36 of a round trip"),
        ((1.6, np.nan, np.nan), "1.60 tick [none], not shown to be above the 1.36 of a round trip"),
    ],
)
def test_edge_is_above_a_round_trip_only_if_its_whole_interval_is(
    ends: tuple[float, float, float], words: str
) -> None:
    net = figures((0.002, 0.001, 0.003), (0.04, 0.03, 0.05))
    calibration = judge(with_models(predictions(strength=0.0, dates=5), {})).calibration
    edge = edge_of(Interval(*ends), ES.round_trip_ticks)
    assert words in verdict(Judgement(net, {}, {}, calibration, edge))


def test_costs_off_the_instrument_are_called_unknown() -> None:
    for strength in (0.0, 0.1):
        table = with_models(predictions(strength=strength), {})
        assert "not known" not in verdict(judge(table, instrument=ES))
        other = verdict(judge(table.assign(contract="NQH24"), instrument=ES))
        assert "Spread and fees of NQH24 are not known, so no cost is subtracted: " in other
    assert "; the edge is 0.17 bp [" in other
    assert "] before costs." in other


@pytest.mark.parametrize(
    ("minutes", "planted", "rank_ic", "skill", "leak"),
    [
        (2, 0.0, 0.10, 0.005, False),
        (2, 0.0, 0.20, 0.005, True),
        (2, 0.0, 0.10, 0.020, True),
        (31, 0.0, 0.12, 0.005, True),
        (2, 0.1, 0.20, 0.020, False),  # synthetic bars
        (2, 0.1, 0.30, 0.020, True),
    ],
)
def test_implausible_figures_look_like_a_leak(
    minutes: float, planted: float, rank_ic: float, skill: float, leak: bool
) -> None:
    net = figures((skill, 0.9 * skill, 1.1 * skill), (rank_ic, 0.9 * rank_ic, 1.1 * rank_ic))
    judged = judge(with_models(predictions(strength=0.0, dates=5), {}))
    limits = PlausibleLimits.for_labels(minutes, planted=planted)
    judged = replace(judged, net=net, limits=limits)
    warning = "This looks like a leak: run python -m robust_fin.leakcheck"
    assert verdict(judged).startswith(warning) == leak
    assert (headline(judged) == "Looks like a leak") == leak


def test_limits_follow_the_length_of_the_label() -> None:
    table = with_models(predictions(strength=0.3, dates=6), {})
    for minutes, limit in ((2, 0.15), (31, 0.1)):
        ends = table.assign(label_end=table["time"] + pd.Timedelta(minutes=minutes))
        assert judge(ends).limits.rank_ic == limit
    assert verdict(judge(table)).startswith("This looks like a leak")
    assert verdict(judge(table, planted=0.3)).startswith("Skill ")


def test_implausible_figure_that_may_be_luck_is_not_called_a_leak() -> None:
    net = figures((0.03, -0.02, 0.05), (0.2, -0.01, 0.4))
    assert not PlausibleLimits.for_labels(2.0).exceeded_by(net)


def test_reversal_that_ranks_as_well_is_mentioned() -> None:
    table = predictions(strength=0.1)
    models = with_models(table, {"minus_last_return": table["score"].to_numpy()})
    assert verdict(judge(models, instrument=ES)).endswith(
        "It orders the outcomes no better than minus the last return (0.0000 [0.0000, 0.0000])."
    )


def test_accepted_disagreements_are_named_with_and_without_skill() -> None:
    accepted = ["12 holes of over 3 days", "the calendar closes 2024-01-01"]
    closing = (
        "Accepted against the checks: 12 holes of over 3 days; the calendar closes 2024-01-01."
    )
    for strength in (0.0, 0.1):
        table = with_models(predictions(strength=strength), {})
        assert verdict(judge(table, accepted=accepted)).endswith(closing)
        assert "Accepted" not in verdict(judge(table))
