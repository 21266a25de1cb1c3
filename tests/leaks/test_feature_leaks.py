from functools import cache

import pandas as pd
import pytest

from robust_fin.features.registry import BARS, FEATURES, Lookback, feature
from robust_fin.leaks import feature_check as feature_leaks
from robust_fin.leaks.feature_check import EARLIER, LATER, UNMOVED, check_features
from robust_fin.leaks.perturbations import Findings, Leak, cut_points
from tests.bars import synthetic_bars
from tests.planted import (
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
SEEN = {  # bars ahead, minutes ahead
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


def checked(bars: pd.DataFrame, names: list[str], *, seed: int = 0, count: int = 3) -> Findings:
    cuts = cut_points(bars, count=count, seed=seed)
    return check_features(bars, names, cuts, starts=2, seed=seed)


@cache
def planted() -> Findings:
    """All planted leaks beside honest features, in one check."""
    with registry():
        names = [*plant(), *plant(minutes_to_close, shy_volume), "vwap", "close_change_pct"]
        return checked(synthetic_bars(ROWS).table, names)


def leak_of(name: str) -> Leak:
    (leak,) = (one for one in planted().leaks if one.column == name)
    return leak


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_leak_is_found(name: str) -> None:
    leak = leak_of(name)
    assert str(leak).startswith(f"{name} leaks: its value at bar 2022-03-")
    if name == "slow_momentum":
        assert leak.reach is None
        assert "it reads beyond its lookback (29 bars), though no later bar" in leak.found
    else:
        assert leak.reach is not None
        assert f"it sees {leak.reach.bars:,} bar" in leak.found


@pytest.mark.parametrize("name", SEEN)
def test_how_far_it_sees_is_told(name: str) -> None:
    reach = leak_of(name).reach
    assert reach is not None
    if name in ("minutes_to_close", "day_price_gap", "volume_weight", "room_above"):
        assert reach.bars <= SEEN[name][0]  # to the end of the session the value is in
        assert reach.minutes > 400
    else:
        assert (reach.bars, reach.minutes) == SEEN[name]


@pytest.mark.parametrize("name", ["relative_level", "scaled_range"])
def test_a_global_statistic_sees_to_the_end_of_its_contract(name: str) -> None:
    bars, reach = synthetic_bars(ROWS).table, leak_of(name).reach
    own = int((bars["contract"] == "ESH22").sum())
    assert reach is not None
    assert own - 20 <= reach.bars <= own - 1


def test_leaks_come_in_the_order_of_the_features_and_honest_ones_are_none() -> None:
    assert [leak.column for leak in planted().leaks] == PLANTED


@pytest.mark.parametrize("seed", [1])
def test_leaks_are_found_wherever_the_bars_are_cut(seed: int) -> None:
    with registry():
        names = plant(*[fn for fn in LOOKBACKS if fn not in (relative_level, day_price_gap)])
        found = checked(synthetic_bars(ROWS).table, names, seed=seed)
    assert [leak.column for leak in found.leaks] == names


def test_a_leak_in_a_few_rows_is_found_by_many_cuts_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Backfill of one value in 400: the few cuts alone miss it."""
    bars = synthetic_bars(ROWS).table
    with registry():
        (name,) = plant(shy_volume)
        assert FEATURES[name].fn(bars).ne(bars["volume"]).mean() < 0.01
        assert [leak.column for leak in checked(bars, [name]).leaks] == [name]
        monkeypatch.setattr(feature_leaks, "compared_by_comb", lambda *_, **__: ())
        assert checked(bars, [name]).leaks == []


def test_no_registered_feature_leaks() -> None:
    bars = synthetic_bars(LONG, start="2022-02-09").table
    found = checked(bars, sorted(FEATURES), count=1)
    assert [str(leak) for leak in found.leaks] == []
    by_what = {
        what: {c.column: c for c in found.checked if c.what == what} for what in (LATER, EARLIER)
    }
    for name in FEATURES:
        later, earlier = by_what[LATER][name], by_what[EARLIER][name]
        assert later.rows > 20_000
        assert later.cuts >= 10
        assert earlier.rows > 500
        clock = name in CLOCK
        assert later.note == (UNMOVED if clock else "")


def test_rounding_that_depends_on_older_bars_is_no_leak() -> None:
    """pandas carries a running sum, whose last bits come from all bars before."""
    with registry():

        @feature(lookback=Lookback(20, BARS), unit="fraction")
        def mean_return(bars: pd.DataFrame) -> pd.Series:
            return bars["close"].pct_change().rolling(20).mean()

        found = checked(synthetic_bars(ROWS).table, ["mean_return"])
    assert found.leaks == []


def test_a_lookback_that_says_too_little_is_found() -> None:
    with registry():

        @feature(lookback=Lookback(5, BARS), unit="fraction")
        def long_return(bars: pd.DataFrame) -> pd.Series:
            return bars["close"].pct_change(50)

        found = checked(synthetic_bars(ROWS).table, ["long_return"])
    (leak,) = found.leaks
    assert "it reads beyond its lookback (5 bars)" in str(leak)
