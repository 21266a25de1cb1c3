import pandas as pd
import pytest

from robust_fin.features.registry import compute_features
from robust_fin.features.session import seconds_of_day
from tests.bars import close_bars


def bars_at(*times: str):
    return close_bars("\n".join(f"ESH24 {time} 100" for time in times))


def test_the_clock_is_that_of_chicago_in_winter_and_in_summer() -> None:
    bars = bars_at("2024-03-08T08:30", "2024-03-11T08:30", "2024-03-11T08:31", "2024-03-11T23:59")
    assert bars["time"].dt.hour.tolist() == [14, 13, 13, 4]
    clock = [8 * 3600 + 1800, 8 * 3600 + 1800, 8 * 3600 + 1860, 23 * 3600 + 59 * 60]
    assert seconds_of_day(bars).tolist() == clock


def test_the_clock_is_asked_every_hour_and_not_only_once() -> None:
    # the clocks go back at 07:00 UTC, from 01:59 to 01:00
    stamps = [f"2024-11-03 {clock}" for clock in ("06:59", "07:00", "08:00")]
    bars = pd.DataFrame({"time": pd.to_datetime(stamps, utc=True)})
    assert (seconds_of_day(bars) / 60).tolist() == [119, 60, 120]


def test_the_day_is_a_circle() -> None:
    bars = bars_at("2024-03-11T00:00", "2024-03-11T06:00", "2024-03-11T12:00", "2024-03-11T21:00")
    found = compute_features(bars, ["time_of_day_sin", "time_of_day_cos"])
    half = 0.5**0.5
    assert found["time_of_day_sin"].tolist() == pytest.approx([0, 1, 0, -half], abs=1e-12)
    assert found["time_of_day_cos"].tolist() == pytest.approx([1, 0, -1, half], abs=1e-12)


def test_minutes_count_from_the_marks_of_the_clock() -> None:
    bars = bars_at("2024-03-11T08:30", "2024-03-11T08:34", "2024-03-11T08:36", "2024-03-11T09:59")
    found = compute_features(bars, ["minutes_past_5min", "minutes_past_half_hour"])
    assert found["minutes_past_5min"].tolist() == [0, 4, 1, 4]
    assert found["minutes_past_half_hour"].tolist() == [0, 4, 6, 29]
