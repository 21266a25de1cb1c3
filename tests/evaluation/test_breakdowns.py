import math

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate

from robust_fin.errors import ConfigError
from robust_fin.evaluation.breakdowns import (
    Instrument,
    backtest_paths,
    by_hour,
    by_month,
    decile_index,
    group_metrics,
    path_metrics,
)
from robust_fin.evaluation.significance import judge, significance
from robust_fin.market.calendar import exchange_hours
from robust_fin.metrics import huber_loss, rank_ic, skill
from tests.bars import config
from tests.evaluation.tables import predictions, with_models


def test_deciles_hold_a_tenth_each() -> None:
    assert decile_index(np.arange(20.0)).tolist() == np.repeat(np.arange(10), 2).tolist()


def test_equal_forecasts_share_a_decile() -> None:
    assert decile_index(np.array([1.0, 1.0, 1.0, 1.0, 2.0])).tolist() == [4, 4, 4, 4, 9]


def test_calibration_has_the_means_of_each_decile() -> None:
    table = predictions(strength=0.3)
    result = judge(with_models(table, {})).calibration
    number = decile_index(table["score"].to_numpy())
    by_hand = table.groupby(number)[["score", "target", "outcome"]].mean()
    assert [one.rows for one in result.deciles] == [960] * 10
    for one, (_, mean) in zip(result.deciles, by_hand.iterrows(), strict=True):
        assert one.score == pytest.approx(mean["score"], rel=1e-9)
        assert one.target.estimate == pytest.approx(mean["target"], rel=1e-9)
        assert one.outcome_bp.estimate == pytest.approx(1e4 * mean["outcome"], rel=1e-9)
        assert one.target.low < one.target.estimate < one.target.high
    assert result.error == pytest.approx((by_hand["score"] - by_hand["target"]).abs().mean())


def test_constant_forecast_has_a_single_decile() -> None:
    result = judge(with_models(predictions(strength=0.1).assign(score=0.5), {})).calibration
    assert [one.rows for one in result.deciles] == [9600]
    assert result.deciles[0].target.estimate == pytest.approx(0.5)


HALF = 0.5


def trivial(rows: int) -> np.ndarray:
    return np.full(rows, HALF)


def test_group_has_the_metrics_of_its_rows() -> None:
    net = predictions(strength=0.3, dates=40)
    names = np.array(["even", "odd"])[np.arange(len(net)) % 2]
    odd, even = group_metrics(
        net, names, ["odd", "even"], trivial=trivial(len(net)), draws=50, block=2.0
    )
    assert (odd.name, even.name, odd.rows, odd.dates) == ("odd", "even", 1600, 40)
    own = net[names == "odd"]
    score, outcome, target = (own[k].to_numpy() for k in ("score", "outcome", "target"))
    assert odd.rank_ic.estimate == pytest.approx(rank_ic(score, outcome), rel=1e-12)
    wanted = skill(huber_loss(score, target), huber_loss(trivial(1600), target))
    assert odd.skill.estimate == pytest.approx(wanted, rel=1e-12)
    assert odd.rank_ic.low < odd.rank_ic.estimate < odd.rank_ic.high


def test_single_group_equals_the_full_span() -> None:
    net = predictions(strength=0.3, dates=60)
    whole = significance(net, trivial=HALF, draws=200)
    everything = np.full(len(net), "all")
    (one,) = group_metrics(
        net, everything, ["all"], trivial=trivial(len(net)), draws=200, block=whole.block
    )
    assert one.rank_ic == whole.rank_ic
    assert one.skill == whole.skill


def test_months_follow_the_trading_date_and_few_dates_have_no_interval() -> None:
    net = predictions(strength=0.3, dates=34)  # from 2024-01-01 on
    january, february = by_month(net, trivial=trivial(len(net)), draws=50, block=1.0)
    assert (january.name, january.dates, january.rows) == ("2024-01", 31, 31 * 80)
    assert (february.name, february.dates) == ("2024-02", 3)
    assert math.isnan(february.rank_ic.low)
    assert not math.isnan(february.rank_ic.estimate)
    assert january.rank_ic.is_above(0)


def test_hours_are_in_chicago_time_in_session_order() -> None:
    net = predictions(strength=0.3, dates=30, a_day=80)  # 40 hours from 18:00 Chicago on
    clock = {"zone": "America/Chicago", "first_hour": 17}
    hours = by_hour(net, trivial=trivial(len(net)), draws=20, block=1.0, **clock)
    names = [one.name for one in hours]
    assert names == [f"{hour % 24:02d}:00" for hour in range(17, 41)]
    assert sum(one.rows for one in hours) == len(net)
    assert [one.rows for one in hours if one.name in ("18:00", "17:00")] == [60, 120]


def test_hours_are_those_of_the_exchange() -> None:
    assert exchange_hours("CME_Equity") == ("America/Chicago", 17)
    assert exchange_hours("24/7") == ("UTC", 0)
    assert exchange_hours("EUREX")[0] == "Europe/Berlin"
    net = predictions(strength=0.3, dates=30, a_day=80)
    clock = {"zone": "UTC", "first_hour": 0}
    hours = by_hour(net, trivial=trivial(len(net)), draws=20, block=1.0, **clock)
    assert [one.name for one in hours] == [f"{hour:02d}:00" for hour in range(24)]
    assert {one.name: one.rows for one in hours}["00:00"] == 120  # 18:00 in Chicago, in winter


def test_group_interval_covers_the_planted_value() -> None:
    """The interval of a group's rank IC has its nominal coverage over 60 tables."""
    covered = 0
    for seed in range(60):
        net = predictions(strength=0.2, seed=seed, dates=60, a_day=40)
        names = np.full(len(net), "a")
        (one,) = group_metrics(net, names, ["a"], trivial=trivial(len(net)), draws=200, block=1.0)
        truth = 6 / math.pi * math.asin(0.2 / math.sqrt(1.04) / 2)  # Spearman's of a normal pair
        covered += one.rank_ic.low <= truth <= one.rank_ic.high
    assert 51 <= covered <= 60


ES = Instrument(root="ES", tick=0.25, half_spread_ticks=0.5, multiplier=50, fee=2.25)


def test_edge_is_the_mean_outcome_of_the_outer_deciles() -> None:
    table = predictions(strength=0.3)
    result = judge(with_models(table, {}), instrument=ES).edge
    ordered = table.sort_values("score")["outcome"].to_numpy()
    low, high = 1e4 * ordered[:960].mean(), 1e4 * ordered[-960:].mean()
    assert result.top_bp.estimate == pytest.approx(high, rel=1e-6)
    assert result.bottom_bp.estimate == pytest.approx(low, rel=1e-6)
    assert result.trade_bp.estimate == pytest.approx((high - low) / 2, rel=1e-6)
    assert result.trades == 1920
    # at 5,000 points a basis point is half a point, two ticks
    assert result.trade_ticks.estimate == pytest.approx(2 * result.trade_bp.estimate, rel=1e-9)
    assert result.break_even_ticks == pytest.approx(result.trade_bp.estimate, rel=1e-9)
    assert result.half_spread_bp == pytest.approx(0.25)
    assert result.round_trip_ticks == pytest.approx(1.36)  # 2 * 0.5 + 2 * 2.25 / 12.50
    assert result.round_trip_bp == pytest.approx(0.68)


@pytest.mark.parametrize("why", ["other contracts", "no price", "no instrument"])
def test_ticks_are_nan_if_tick_size_or_price_is_unknown(why: str) -> None:
    table = with_models(predictions(strength=0.3), {})
    if why == "other contracts":
        table["contract"] = "CLH24"
    if why == "no price":
        table = table.drop(columns="close")
    result = judge(table, instrument=None if why == "no instrument" else ES).edge
    assert np.isnan(
        [
            result.trade_ticks.estimate,
            result.half_spread_ticks,
            result.half_spread_bp,
            result.round_trip_ticks,
        ]
    ).all()
    assert math.isfinite(result.trade_bp.estimate)


def test_negative_edge_breaks_even_at_0() -> None:
    table = predictions(strength=0.3)
    table["score"] = -table["score"]
    result = judge(with_models(table, {}), instrument=ES).edge
    assert result.trade_ticks.high < 0
    assert result.break_even_ticks == 0.0


@pytest.mark.parametrize("tick", [0.0, -1.0, math.nan])
def test_invalid_tick_raises(tick: float) -> None:
    with pytest.raises(ConfigError, match=rf"instrument.tick={tick} must be a positive price"):
        Instrument(root="ES", tick=tick, half_spread_ticks=0.5)


def test_negative_half_spread_raises() -> None:
    with pytest.raises(ConfigError, match=r"half_spread_ticks=-0\.5 must be >= 0"):
        Instrument(root="ES", tick=0.25, half_spread_ticks=-0.5)


@pytest.mark.parametrize(
    ("name", "ticks"),
    [
        ("es", 1.36), ("mes", 1.99), ("nq", 1.90), ("mnq", 3.48), ("gc", 1.49), ("si", 1.20),
        ("cl", 1.47), ("ng", 1.49), ("zn", 1.21), ("6e", 1.79),
    ],
)  # fmt: skip
def test_round_trip_of_each_instrument_is_two_half_spreads_and_two_fees(
    name: str, ticks: float
) -> None:
    instrument = instantiate(config(f"instrument={name}").instrument)
    assert instrument.round_trip_ticks == pytest.approx(ticks, abs=0.006)
    assert instrument.trades([f"{name.upper()}H24"])


def test_round_trip_without_multiplier_or_fee_is_unknown() -> None:
    assert math.isnan(Instrument(root="ES", tick=0.25, half_spread_ticks=0.5).round_trip_ticks)
    for bad in ({"multiplier": 0.0, "fee": 1.0}, {"multiplier": 50.0, "fee": -1.0}):
        with pytest.raises(ConfigError, match=r"instrument\.(multiplier=0|fee=-1)"):
            Instrument(root="ES", tick=0.25, half_spread_ticks=0.5, **bad)


def test_backtest_paths_have_the_figures_of_their_rows() -> None:
    table = predictions(strength=0.2, dates=12)
    folds = [table.assign(path=0), table.assign(path=1, score=0.5 + 0.001 * table["outcome"])]
    run = with_models(pd.concat(folds, ignore_index=True), {})
    first, second = backtest_paths(run)
    assert (first.name, first.rows, first.dates) == ("path 0", 960, 12)
    score, outcome = table["score"].to_numpy(), table["outcome"].to_numpy()
    assert first.rank_ic.estimate == pytest.approx(rank_ic(score, outcome), rel=1e-9)
    assert first.rank_ic.low < first.rank_ic.estimate < first.rank_ic.high
    target = table["target"].to_numpy()
    expected = skill(huber_loss(score, target), huber_loss(trivial(960), target))
    assert first.skill.estimate == pytest.approx(expected, rel=1e-9)
    assert second.rank_ic.estimate == pytest.approx(1.0)
    found = path_metrics((first, second))
    assert found["paths/count"] == 2
    assert found["paths/rank_ic_max"] == second.rank_ic.estimate
    assert found["paths/rank_ic_mean"] == pytest.approx((1 + first.rank_ic.estimate) / 2)
    assert backtest_paths(with_models(table, {})) == ()
    assert path_metrics(()) == {}
