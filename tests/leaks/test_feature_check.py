from functools import cache

import pandas as pd
import pytest

from robust_fin.features.registry import BARS, FEATURES, Lookback, feature
from robust_fin.leaks import feature_check
from robust_fin.leaks.feature_check import EARLIER, LATER, UNCHANGED, check_features
from robust_fin.leaks.perturbations import Findings, Leak, cut_points
from tests.bars import synthetic_bars
from tests.planted_leaks import (
    LOOKBACKS,
    day_price_gap,
    minutes_to_close,
    plant,
    registry,
    relative_level,
    shy_volume,
)

ROWS = 20_000  # eight trading dates of ESH22, then six and a half of ESM22
LONG = 44_000  # 23 trading dates of ESH22, then nine of ESM22: for lookbacks of 20 dates
REACH = {  # bars ahead, minutes ahead
    "smooth_return": (5, 5),
    "steady_volatility": (60, 60),
    "step_return": (1, 1),
    "minutes_to_close": (1376, 1379),
    "shy_volume": (1, 1),
    "day_price_gap": (1376, 1379),
    "volume_weight": (1376, 1379),
    "room_above": (1376, 1379),
}
PLANTED = [fn.__name__ for fn in (*LOOKBACKS, minutes_to_close, shy_volume)]
CLOCK = {"time_of_day_sin", "time_of_day_cos", "minutes_past_5min", "minutes_past_half_hour"}


def run_check(bars: pd.DataFrame, names: list[str], *, seed: int = 0, count: int = 3) -> Findings:
    cuts = cut_points(bars, count=count, seed=seed)
    return check_features(bars, names, cuts, starts=2, seed=seed)


@cache
def planted() -> Findings:
    """Check all planted leaks together with correct features, once."""
    with registry():
        names = [*plant(), *plant(minutes_to_close, shy_volume), "vwap", "close_change_pct"]
        return run_check(synthetic_bars(ROWS).table, names)


def leak_of(name: str) -> Leak:
    (leak,) = (leak for leak in planted().leaks if leak.column == name)
    return leak


def test_every_planted_leak_is_found_in_the_order_of_the_features_and_nothing_else() -> None:
    assert [leak.column for leak in planted().leaks] == PLANTED
    for leak in planted().leaks:
        assert str(leak).startswith(f"{leak.column} leaks: its value at bar 2022-03-")
        if leak.column == "slow_momentum":
            assert leak.reach is None
            assert "bars before its lookback (29 bars), but no later bar" in leak.evidence
        else:
            assert leak.reach is not None
            assert f"it sees {leak.reach.bars:,} bar" in leak.evidence


@pytest.mark.parametrize("name", REACH)
def test_reach_of_a_planted_leak_is_measured(name: str) -> None:
    reach = leak_of(name).reach
    assert reach is not None
    if name in ("minutes_to_close", "day_price_gap", "volume_weight", "room_above"):
        assert reach.bars <= REACH[name][0]  # to the end of the session the value is in
        assert reach.minutes > 400
    else:
        assert (reach.bars, reach.minutes) == REACH[name]


@pytest.mark.parametrize("name", ["relative_level", "scaled_range"])
def test_global_statistic_sees_to_the_end_of_its_contract(name: str) -> None:
    bars, reach = synthetic_bars(ROWS).table, leak_of(name).reach
    rows = int((bars["contract"] == "ESH22").sum())
    assert reach is not None
    assert rows - 20 <= reach.bars <= rows - 1


def test_leaks_are_found_with_other_cuts() -> None:
    with registry():
        names = plant(*[fn for fn in LOOKBACKS if fn not in (relative_level, day_price_gap)])
        findings = run_check(synthetic_bars(ROWS).table, names, seed=1)
    assert [leak.column for leak in findings.leaks] == names


def test_leak_in_few_rows_is_found_by_the_comb_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value in 400 is filled backwards."""
    bars = synthetic_bars(ROWS).table
    with registry():
        (name,) = plant(shy_volume)
        assert FEATURES[name].fn(bars).ne(bars["volume"]).mean() < 0.01
        assert [leak.column for leak in run_check(bars, [name]).leaks] == [name]
        monkeypatch.setattr(feature_check, "compare_with_comb", lambda *_, **__: ())
        assert run_check(bars, [name]).leaks == []


def test_no_registered_feature_leaks() -> None:
    bars = synthetic_bars(LONG, start="2022-02-09").table
    findings = run_check(bars, sorted(FEATURES), count=1)
    assert [str(leak) for leak in findings.leaks] == []
    by_what = {
        what: {c.column: c for c in findings.checked if c.what == what} for what in (LATER, EARLIER)
    }
    for name in FEATURES:
        later, earlier = by_what[LATER][name], by_what[EARLIER][name]
        assert later.rows > 20_000
        assert later.cuts >= 10
        assert earlier.rows > 500
        clock = name in CLOCK
        assert later.note == (UNCHANGED if clock else "")


def test_rounding_that_depends_on_older_bars_is_not_a_leak() -> None:
    """The running sum of pandas depends on all earlier bars in its last bits."""
    with registry():

        @feature(lookback=Lookback(20, BARS), unit="fraction")
        def mean_return(bars: pd.DataFrame) -> pd.Series:
            return bars["close"].pct_change().rolling(20).mean()

        findings = run_check(synthetic_bars(ROWS).table, ["mean_return"])
    assert findings.leaks == []


def test_too_short_lookback_is_found() -> None:
    with registry():

        @feature(lookback=Lookback(5, BARS), unit="fraction")
        def long_return(bars: pd.DataFrame) -> pd.Series:
            return bars["close"].pct_change(50)

        findings = run_check(synthetic_bars(ROWS).table, ["long_return"])
    (leak,) = findings.leaks
    assert "it reads bars before its lookback (5 bars)" in str(leak)
