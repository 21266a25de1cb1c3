import math

import numpy as np
import pandas as pd
import pytest

from robust_fin.features.registry import compute_features
from robust_fin.features.session import (
    BIN,
    DateGrid,
    binned_volume,
    seconds_of_day,
    value_area,
    volume_profile,
)
from tests.bars import close_bars, hand_bars

NAN = float("nan")


def assert_feature(text: str, name: str, expected: list[float]) -> None:
    found = compute_features(hand_bars(text), [name])[name]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


# a bar opens at its low; 17:00 begins the next trading date; M is twice H, rolled at midday
DAYS = """
ESH24 2024-02-06T12:00 110 100 105 1
ESH24 2024-02-06T12:01 108 90 100 1
ESH24 2024-02-06T12:02 120 95 110 1
ESH24 2024-02-06T17:00 115 112 114 1
ESH24 2024-02-07T12:00 114 113 113 1
ESM24 2024-02-07T12:01 226 224 226 1
ESM24 2024-02-07T12:02 240 220 230 1
"""


def test_session_high_continues_across_a_roll() -> None:
    expected = [110 / 105, 1.1, 120 / 110, 115 / 114, 115 / 113, 230 / 226, 240 / 230]
    assert_feature(DAYS, "session_high", [value - 1 for value in expected])


def test_session_low_continues_across_a_roll() -> None:
    expected = [100 / 105, 0.9, 90 / 110, 112 / 114, 112 / 113, 224 / 226, 220 / 230]
    assert_feature(DAYS, "session_low", [value - 1 for value in expected])


def test_opening_gap_is_from_last_close_to_first_open() -> None:
    assert_feature(DAYS, "opening_gap", [NAN] * 3 + [112 / 110 - 1] * 4)


def test_opening_gap_is_nan_after_a_date_without_bars() -> None:
    assert_feature(
        """
        ESH24 2024-02-06T12:00 100 100 100 1
        ESH24 2024-02-08T12:00 110 110 110 1
        ESH24 2024-02-09T12:00 121 121 121 1
        """,
        "opening_gap",
        [NAN, NAN, 0.1],
    )


def bars_at(*times: str):
    return close_bars("\n".join(f"ESH24 {time} 100" for time in times))


def test_seconds_of_day_use_chicago_time_in_winter_and_summer() -> None:
    bars = bars_at("2024-03-08T08:30", "2024-03-11T08:30", "2024-03-11T08:31", "2024-03-11T23:59")
    assert bars["time"].dt.hour.tolist() == [14, 13, 13, 4]
    clock = [8 * 3600 + 1800, 8 * 3600 + 1800, 8 * 3600 + 1860, 23 * 3600 + 59 * 60]
    assert seconds_of_day(bars).tolist() == clock


def test_seconds_of_day_follow_a_clock_change_within_a_day() -> None:
    # the clocks go back at 07:00 UTC, from 01:59 to 01:00
    stamps = [f"2024-11-03 {clock}" for clock in ("06:59", "07:00", "08:00")]
    bars = pd.DataFrame({"time": pd.to_datetime(stamps, utc=True)})
    assert (seconds_of_day(bars) / 60).tolist() == [119, 60, 120]


def test_time_of_day_is_encoded_as_an_angle() -> None:
    bars = bars_at("2024-03-11T00:00", "2024-03-11T06:00", "2024-03-11T12:00", "2024-03-11T21:00")
    found = compute_features(bars, ["time_of_day_sin", "time_of_day_cos"])
    half = 0.5**0.5
    assert found["time_of_day_sin"].tolist() == pytest.approx([0, 1, 0, -half], abs=1e-12)
    assert found["time_of_day_cos"].tolist() == pytest.approx([1, 0, -1, half], abs=1e-12)


def test_minutes_past_count_from_multiples_on_the_clock() -> None:
    bars = bars_at("2024-03-11T08:30", "2024-03-11T08:34", "2024-03-11T08:36", "2024-03-11T09:59")
    found = compute_features(bars, ["minutes_past_5min", "minutes_past_half_hour"])
    assert found["minutes_past_5min"].tolist() == [0, 4, 1, 4]
    assert found["minutes_past_half_hour"].tolist() == [0, 4, 6, 29]


def test_vix_changes_by_trading_date() -> None:
    bars = close_bars("""
        ESH24 2024-02-06T12:00 100
        ESH24 2024-02-06T15:59 100
        ESH24 2024-02-06T17:00 100
        ESH24 2024-02-07T12:00 100
        ESM24 2024-02-07T12:01 500
        ESM24 2024-02-08T12:00 500
        ESM24 2024-02-12T12:00 500
    """).assign(vix=[20.0, 20.0, 25.0, 25.0, 25.0, 15.0, 18.0])
    found = compute_features(bars, ["vix", "vix_change_1d"])
    assert found["vix"].tolist() == [20, 20, 25, 25, 25, 15, 18]
    expected = [NAN, NAN, 0.25, 0.25, 0.25, -0.4, NAN]  # the 9th has no bar
    np.testing.assert_allclose(found["vix_change_1d"], expected, rtol=1e-12)


NAMES = ["point_of_control_1d", "value_area_high_1d", "value_area_low_1d"]


def price_at(place: float) -> float:
    """The price so many bins above 5000."""
    return 5000 * math.exp(place * BIN)


def areas(rows: list[list[float]], control: list[int]) -> list[list[int]]:
    found = value_area(np.array(rows, dtype=np.float64), np.array(control))
    return [edge.tolist() for edge in found]


def test_value_area_adds_the_larger_neighbour_up_to_70_percent() -> None:
    # goal 70: 40, then 20 above, then 15 below makes 75
    assert areas([[5, 15, 40, 20, 10, 10]], [2]) == [[1], [3]]
    # goal 70: the control alone; and all of it upwards, then downwards
    assert areas([[10, 80, 10], [40, 30, 30], [30, 30, 40]], [1, 0, 2]) == [[1, 0, 1], [1, 1, 2]]


def test_value_area_adds_the_upper_neighbour_in_a_tie() -> None:
    assert areas([[20, 50, 20, 10]], [1]) == [[1], [2]]


def test_value_area_extends_over_empty_bins() -> None:
    assert areas([[0, 50, 0, 0, 50]], [1]) == [[1], [4]]


def test_value_area_ignores_bins_of_other_dates() -> None:
    assert areas([[30, 0, 60, 0, 0], [0, 0, 60, 0, 30]], [2, 2]) == [[0, 2], [2, 4]]


def test_value_area_of_a_date_without_volume_is_a_single_bin() -> None:
    assert areas([[0, 0, 0]], [0]) == [[0], [0]]


def test_volume_is_spread_evenly_over_the_bins_of_a_bar() -> None:
    # the second bar touches bins 0 to 3, the third bin 2 alone; the date after it begins anew
    bars = hand_bars(f"""
        ESH24 2024-02-06T12:00 {price_at(0)} {price_at(0)} {price_at(0)} 5
        ESH24 2024-02-06T12:01 {price_at(3.5)} {price_at(0.5)} {price_at(1)} 8
        ESH24 2024-02-06T12:02 {price_at(2.9)} {price_at(2.1)} {price_at(2.5)} 3
        ESH24 2024-02-07T12:00 {price_at(7.2)} {price_at(6)} {price_at(7)} 2
    """)
    volume = binned_volume(bars, np.array([price_at(0), price_at(6)]))
    assert volume.tolist() == [[7, 2, 5, 2], [1, 1, 0, 0]]


def test_volume_profile_is_in_prices() -> None:
    bars = hand_bars(f"""
        ESH24 2024-02-06T12:00 {price_at(0)} {price_at(0)} {price_at(0)} 10
        ESH24 2024-02-06T12:01 {price_at(4.5)} {price_at(4.5)} {price_at(4.5)} 50
        ESH24 2024-02-06T12:02 {price_at(5.5)} {price_at(5.5)} {price_at(5.5)} 40
        ESH24 2024-02-07T12:00 {price_at(0)} {price_at(0)} {price_at(0)} 0
    """)
    profile = volume_profile(bars)
    assert profile.control.tolist() == pytest.approx([price_at(4.5), NAN], nan_ok=True)
    assert profile.high.tolist() == pytest.approx([price_at(6), NAN], nan_ok=True)
    assert profile.low.tolist() == pytest.approx([price_at(4), NAN], nan_ok=True)


def test_profile_features_use_only_the_previous_trading_date() -> None:
    bars = hand_bars(f"""
        ESH24 2024-02-06T12:00 {price_at(0)} {price_at(0)} {price_at(0)} 30
        ESH24 2024-02-06T12:01 {price_at(9.5)} {price_at(9.5)} {price_at(9.5)} 70
        ESH24 2024-02-06T17:00 5100 5100 5100 1000
        ESH24 2024-02-07T12:00 4900 4900 4900 1
        ESH24 2024-02-09T12:00 5000 5000 5000 1
    """)
    found = compute_features(bars, NAMES)
    for name, place in zip(NAMES, (9.5, 10, 9), strict=True):
        expected = [NAN, NAN, price_at(place) / 5100 - 1, price_at(place) / 4900 - 1, NAN]
        np.testing.assert_allclose(found[name], expected, rtol=1e-9)


def test_profile_levels_are_rescaled_at_a_roll() -> None:
    bars = hand_bars(f"""
        ESH24 2024-02-06T12:00 {price_at(0)} {price_at(0)} {price_at(0)} 9
        ESH24 2024-02-06T12:01 {price_at(2)} {price_at(2)} {price_at(2)} 1
        ESM24 2024-02-06T12:02 {2 * price_at(2)} {2 * price_at(2)} {2 * price_at(2)} 1
        ESM24 2024-02-07T12:00 {2 * price_at(3)} {2 * price_at(3)} {2 * price_at(3)} 1
    """)
    found = compute_features(bars, NAMES)["point_of_control_1d"]
    np.testing.assert_allclose(found, [NAN] * 3 + [math.exp(-2.5 * BIN) - 1], rtol=1e-9)


# the 8th has no bar; 12:00 is bought on three dates, 12:01 on two
FEW = """
ESH24 2024-02-05T12:00 100 100 100 1
ESH24 2024-02-06T12:00 100 100 100 3
ESH24 2024-02-06T12:01 100 100 100 8
ESH24 2024-02-07T12:00 100 100 100 5
ESH24 2024-02-07T12:01 100 100 100 4
ESH24 2024-02-09T12:00 100 100 100 7
ESH24 2024-02-09T12:01 100 100 100 2
"""


def earlier(dates: int, missing: tuple[int, ...] = ()) -> list[float]:
    bars = hand_bars(FEW)
    volume = bars["volume"].to_numpy().copy()
    volume[list(missing)] = np.nan
    return DateGrid.from_bars(bars).mean_of_earlier(volume, dates=dates).tolist()


def test_mean_of_earlier_uses_dates_with_such_a_bar() -> None:
    # two dates before the 9th are the 8th without bars and the 7th; on the 5th there was no 12:01
    assert earlier(2) == pytest.approx([NAN, NAN, NAN, 2, 8, 5, 4], nan_ok=True)


def test_mean_of_earlier_is_nan_if_the_oldest_date_has_no_bars() -> None:
    assert earlier(1) == pytest.approx([NAN, 1, NAN, 3, 8, NAN, NAN], nan_ok=True)


def test_mean_of_earlier_ignores_nan() -> None:
    assert earlier(2, missing=(1,)) == pytest.approx([NAN, NAN, NAN, 1, 8, 5, 4], nan_ok=True)


def test_date_grid_uses_local_time_in_summer_and_winter() -> None:
    bars = close_bars("""
        ESH24 2024-03-08T12:00 100
        ESH24 2024-03-11T12:00 100
        ESH24 2024-03-11T13:00 100
    """)
    grid = DateGrid.from_bars(bars)
    assert (grid.dates, grid.times, grid.cell.tolist()) == (2, 2, [0, 2, 3])


def dates(count: int) -> list[str]:
    """So many trading dates from Monday, 2024-04-01; none of them is a holiday."""
    return [f"{day:%Y-%m-%d}" for day in pd.bdate_range("2024-04-01", periods=count)]


def test_volume_surprise_compares_with_the_mean_of_twenty_dates() -> None:
    lines = [f"ESM24 {day}T12:00 100 100 100 {n}" for n, day in enumerate(dates(23))]
    found = compute_features(hand_bars("\n".join(lines)), ["volume_surprise_20d"])
    expected = [math.log((1 + n) / (1 + n - 10.5)) for n in (20, 21, 22)]
    np.testing.assert_allclose(found["volume_surprise_20d"], [NAN] * 20 + expected)


def test_volume_surprise_is_chained_across_a_roll() -> None:
    days = dates(22)
    lines = [f"ESM24 {day}T12:00 100 100 100 9" for day in days[:20]]
    last = zip(days[20:], (9, 0), strict=True)
    lines += [f"ESU24 {day}T12:00 500 500 500 {volume}" for day, volume in last]
    found = compute_features(hand_bars("\n".join(lines)), ["volume_surprise_20d"])
    assert found["volume_surprise_20d"].iloc[20:].tolist() == pytest.approx([0, -math.log(10)])


def test_next_minute_direction_uses_the_next_bar_of_earlier_dates() -> None:
    # after 12:00 it rose on 15 of the first 20 dates and fell on 3; after 12:01 it went back
    lines, steps = [], [1] * 15 + [-1] * 3 + [0] * 2 + [-1] * 2
    for day, step in zip(dates(22), steps, strict=True):
        closes = (("12:00", 100), ("12:01", 100 + step), ("15:00", 100))
        lines += [f"ESM24 {day}T{clock} {close}" for clock, close in closes]
    found = compute_features(close_bars("\n".join(lines)), ["next_minute_direction_20d"])
    rows = found["next_minute_direction_20d"].to_numpy().reshape(22, 3)
    assert np.isnan(rows[:20]).all()
    np.testing.assert_allclose(rows[20], [12 / 20, -12 / 20, 0])
    np.testing.assert_allclose(rows[21], [10 / 20, -10 / 20, 0])


def test_next_minute_direction_ignores_the_step_across_a_roll() -> None:
    lines = []
    for n, day in enumerate(dates(21)):
        before, after = ("ESM24", 100.1) if n < 10 else ("ESU24", 777.7), ("ESU24", 777.7)
        lines.append(f"{before[0]} {day}T12:00 {before[1]}")
        if n >= 9:
            lines.append(f"{after[0]} {day}T12:01 {after[1]}")
    found = compute_features(close_bars("\n".join(lines)), ["next_minute_direction_20d"])
    assert found["next_minute_direction_20d"].iloc[-2] == 0


def assert_vwap(text: str, expected: list[float]) -> None:
    values = compute_features(hand_bars(text), ["vwap"])["vwap"]
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)


def test_vwap_weights_typical_prices_by_volume() -> None:
    # typical prices 102 and 108
    assert_vwap(
        """
        ESH24 2024-03-11T08:30 104 100 102 3
        ESH24 2024-03-11T08:31 110 105 109 1
        """,
        [0.0, (102 * 3 + 108 * 1) / 4 / 109 - 1],
    )


def test_vwap_restarts_at_1700_in_chicago() -> None:
    assert_vwap(
        """
        ESH24 2024-03-11T15:59 100 100 100 5
        ESH24 2024-03-11T17:00 200 200 200 1
        ESH24 2024-03-11T23:59 300 300 300 1
        ESH24 2024-03-12T00:00 400 400 400 2
        """,
        [0.0, 0.0, 250 / 300 - 1, 325 / 400 - 1],
    )


def test_vwap_includes_late_bars_in_the_session() -> None:
    assert_vwap(
        """
        ESH24 2024-03-11T15:59 100 100 100 1
        ESH24 2024-03-11T16:05 300 300 300 1
        ESH24 2024-03-11T17:00 500 500 500 1
        """,
        [0.0, 200 / 300 - 1, 0.0],
    )


def test_vwap_is_nan_until_the_session_has_volume() -> None:
    assert_vwap(
        """
        ESH24 2024-03-11T15:59 100 100 100 5
        ESH24 2024-03-11T17:00 200 200 200 0
        ESH24 2024-03-11T17:01 210 210 210 0
        ESH24 2024-03-11T17:02 220 220 220 2
        ESH24 2024-03-11T17:03 240 240 240 0
        """,
        [0.0, NAN, NAN, 0.0, 220 / 240 - 1],
    )


def test_vwap_restarts_at_a_roll_and_separates_contracts() -> None:
    assert_vwap(
        """
        ESH24 2024-03-11T08:30 100 100 100 5
        ESM24 2024-03-11T08:30 800 800 800 1
        ESH24 2024-03-11T08:31 110 110 110 5
        ESM24 2024-03-11T08:31 900 900 900 3
        """,
        [0.0, 0.0, 105 / 110 - 1, 875 / 900 - 1],
    )
