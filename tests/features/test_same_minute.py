import math

import numpy as np
import pandas as pd
import pytest

from robust_fin.features.registry import compute_features
from robust_fin.features.session import DateGrid
from tests.bars import close_bars, hand_bars

NAN = float("nan")

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


def test_the_mean_is_over_the_dates_that_had_such_a_bar() -> None:
    # two dates before the 9th are the 8th without bars and the 7th; on the 5th there was no 12:01
    assert earlier(2) == pytest.approx([NAN, NAN, NAN, 2, 8, 5, 4], nan_ok=True)


def test_no_mean_is_known_where_the_oldest_of_the_dates_has_no_bar() -> None:
    assert earlier(1) == pytest.approx([NAN, 1, NAN, 3, 8, NAN, NAN], nan_ok=True)


def test_a_missing_value_is_not_counted() -> None:
    assert earlier(2, missing=(1,)) == pytest.approx([NAN, NAN, NAN, 1, 8, 5, 4], nan_ok=True)


def test_the_same_minute_is_that_of_the_clock_in_summer_and_winter() -> None:
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


def test_volume_surprise_is_over_the_mean_of_twenty_dates() -> None:
    lines = [f"ESM24 {day}T12:00 100 100 100 {n}" for n, day in enumerate(dates(23))]
    found = compute_features(hand_bars("\n".join(lines)), ["volume_surprise_20d"])
    expected = [math.log((1 + n) / (1 + n - 10.5)) for n in (20, 21, 22)]
    np.testing.assert_allclose(found["volume_surprise_20d"], [NAN] * 20 + expected)


def test_volume_is_compared_across_a_roll_with_that_of_the_contract_before() -> None:
    days = dates(22)
    lines = [f"ESM24 {day}T12:00 100 100 100 9" for day in days[:20]]
    last = zip(days[20:], (9, 0), strict=True)
    lines += [f"ESU24 {day}T12:00 500 500 500 {volume}" for day, volume in last]
    found = compute_features(hand_bars("\n".join(lines)), ["volume_surprise_20d"])
    assert found["volume_surprise_20d"].iloc[20:].tolist() == pytest.approx([0, -math.log(10)])


def test_the_direction_is_that_of_the_bar_after_the_minute_on_earlier_dates() -> None:
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


def test_the_step_across_a_roll_is_no_direction() -> None:
    lines = []
    for n, day in enumerate(dates(21)):
        before, after = ("ESM24", 100.1) if n < 10 else ("ESU24", 777.7), ("ESU24", 777.7)
        lines.append(f"{before[0]} {day}T12:00 {before[1]}")
        if n >= 9:
            lines.append(f"{after[0]} {day}T12:01 {after[1]}")
    found = compute_features(close_bars("\n".join(lines)), ["next_minute_direction_20d"])
    assert found["next_minute_direction_20d"].iloc[-2] == 0
