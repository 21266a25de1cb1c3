"""Zone, clock shifts, stamp side and calendar of bars that fill the sessions exactly."""

import numpy as np
import pandas as pd
import pytest

from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.intake.clock import (
    ZONES,
    DayCounts,
    Sessions,
    clock_shifts,
    fit_calendar,
    fit_zones,
    fitting_calendars,
    read_in_zone,
    stamp_side,
)
from tests.for_every import for_every

HOUR_NS, MINUTE_NS = 3600 * 1_000_000_000, 60 * 1_000_000_000
BAR = pd.Timedelta("5min")


def session_bars(name: str, first: str, last: str) -> tuple[TradingCalendar, np.ndarray]:
    """A calendar, and the start of every five-minute bar of its sessions."""
    calendar = TradingCalendar.named(name, first="2021-01-01", last="2026-12-31")
    sessions = calendar.sessions(first, last)
    opened, closed = (sessions[end].dt.tz_localize(None) for end in ("open", "close"))
    spans = [
        np.arange(low, high, BAR.value)
        for low, high in zip(
            opened.to_numpy("M8[ns]").view(np.int64),
            closed.to_numpy("M8[ns]").view(np.int64),
            strict=True,
        )
    ]
    return calendar, np.concatenate(spans)


def test_bars_that_fill_the_sessions_fit_everything() -> None:
    calendar, start = session_bars("CME_Equity", "2024-02-01", "2024-05-31")
    assert fit_zones(calendar, start, configured="UTC").better == ()
    assert clock_shifts(calendar, start) == []
    fit = fit_calendar(calendar, start)
    assert (fit.share, fit.closed, fit.missing) == (0.0, (), ())


def test_days_count_the_bars_outside_the_sessions() -> None:
    day = 86_400 * 1_000_000_000
    edges = np.array([[-6, 10], [30, 40], [40, 47], [60, 80]]) * HOUR_NS  # hours from 1970
    random = np.random.default_rng(0)
    start = np.sort(random.integers(0, 100, 500)) * HOUR_NS
    counts = DayCounts.of(Sessions(edges[:, 0], edges[:, 1]), start)
    outside = ~((start[:, None] >= edges[:, 0]) & (start[:, None] < edges[:, 1])).any(axis=1)
    assert counts.first == 0
    assert counts.bars.tolist() == np.bincount(start // day).tolist()
    assert counts.outside.tolist() == np.bincount(start[outside] // day, minlength=5).tolist()
    kept = sorted(counts.outside.tolist())[:-2]
    assert counts.share == pytest.approx(sum(kept) / 500)
    nothing = np.empty(0, dtype=np.int64)
    assert DayCounts.of(Sessions(nothing, nothing), start).outside.sum() == 500


def test_reading_in_another_zone_is_that_of_pandas_for_every_stamp() -> None:
    _, start = session_bars("CME_Equity", "2022-01-03", "2023-12-29")
    wall = pd.DatetimeIndex(start).tz_localize("UTC").tz_convert("America/Chicago")
    for zone in ZONES:
        first = np.ones(start.size, dtype=bool)
        local = wall.tz_localize(None).tz_localize(
            zone, ambiguous=first, nonexistent="shift_forward"
        )
        read = read_in_zone(start, configured="America/Chicago", zone=zone)
        assert (
            read == local.tz_convert("UTC").tz_localize(None).to_numpy("M8[ns]").view("i8")
        ).all()


@pytest.mark.parametrize(
    ("stamped", "configured"),
    [
        ("UTC", "America/Chicago"),
        ("America/New_York", "America/Chicago"),
        ("America/Chicago", "UTC"),
        ("Europe/Berlin", "UTC"),
    ],
)
def test_wrong_zone_is_recognised(stamped: str, configured: str) -> None:
    calendar, start = session_bars("CME_Equity", "2024-02-01", "2024-05-31")
    read = read_in_zone(start, configured=stamped, zone=configured)
    fit = fit_zones(calendar, np.sort(read), configured=configured)
    assert fit.better[0] == stamped
    assert fit.share < 0.001
    assert fit.configured > 0.03


def test_zones_that_do_not_differ_are_equal() -> None:
    calendar, start = session_bars("CME_Equity", "2024-01-02", "2024-03-01")
    assert "Europe/London" in fit_zones(calendar, start, configured="UTC").equal
    calendar, start = session_bars("CME_Equity", "2024-01-02", "2024-05-01")
    assert fit_zones(calendar, start, configured="UTC").equal == ()


def test_zone_is_unknown_on_few_days_and_around_the_clock() -> None:
    calendar, start = session_bars("CME_Equity", "2024-01-02", "2024-01-12")
    assert np.isnan(fit_zones(calendar, start, configured="UTC").configured)
    always = TradingCalendar.named("24/7", first="2023-01-01", last="2024-12-31")
    start = np.arange(60 * 24 * 12, dtype=np.int64) * BAR.value + always.open[300]
    assert np.isnan(fit_zones(always, start, configured="UTC").configured)
    assert stamp_side(always, start, bar=BAR) is None


def test_weeks_with_a_shifted_clock_are_named() -> None:
    calendar, start = session_bars("CME_Equity", "2024-02-01", "2024-05-31")
    moved = (start >= pd.Timestamp("2024-03-09").value) & (start < pd.Timestamp("2024-03-30").value)
    shifts = clock_shifts(calendar, np.sort(start + moved * HOUR_NS))
    saturdays = ["2024-03-09", "2024-03-16", "2024-03-23"]
    assert shifts == [(pd.Timestamp(saturday), -1) for saturday in saturdays]


def test_stamp_side_follows_the_first_bar_of_each_session() -> None:
    calendar, start = session_bars("CME_Equity", "2024-02-01", "2024-05-31")
    assert stamp_side(calendar, start, bar=BAR) == "start"
    assert stamp_side(calendar, start + BAR.value, bar=BAR) == "end"
    assert stamp_side(calendar, start + MINUTE_NS, bar=BAR) is None
    assert stamp_side(calendar, start, bar=pd.Timedelta("1D")) is None
    few = start < start[0] + 11 * 24 * HOUR_NS  # eight sessions
    assert stamp_side(calendar, start[few], bar=BAR) is None


@for_every(
    "opened, moved, side",
    [  # sessions of 40 with a stamp at the open; whether all stamps are one bar later
        (40, False, "start"),
        (37, False, "start"),
        (36, False, None),  # 90 %, not over 90 %
        (2, False, None),  # 5 %, not under 5 %
        (1, False, "end"),  # the bar after the open is there in all of them
        (0, False, "end"),
        (40, True, "end"),
        (37, True, "end"),
        (36, True, None),
    ],
)
def test_limits_of_the_stamp_side(opened: int, moved: bool, side: str | None) -> None:
    calendar, start = session_bars("CME_Equity", "2024-02-01", "2024-03-28")
    first = np.flatnonzero(np.isin(start, calendar.open))
    stamp = np.delete(start[: first[40]], first[opened:40])
    assert stamp_side(calendar, stamp + moved * BAR.value, bar=BAR) == side


def test_bars_around_the_clock_do_not_fit_exchange_hours() -> None:
    calendar, _ = session_bars("CME_Equity", "2024-02-01", "2024-02-02")
    start = np.arange(pd.Timestamp("2024-02-01").value, pd.Timestamp("2024-04-01").value, BAR.value)
    assert 0.25 < fit_calendar(calendar, start).share < 0.4
    assert list(fitting_calendars(start, names=["CME_Equity", "24/7"])) == ["24/7"]


def test_full_day_on_a_closed_date_is_named() -> None:
    calendar, start = session_bars("CME_Equity", "2024-10-01", "2025-01-31")
    day = pd.Timestamp("2024-12-25 02:00").value
    start = np.union1d(start, np.arange(day, day + 20 * HOUR_NS, BAR.value))
    assert fit_calendar(calendar, start).closed == ("2024-12-25",)


def test_trading_dates_without_a_bar_are_named() -> None:
    calendar, start = session_bars("NYSE", "2024-02-01", "2024-05-31")
    day = pd.Timestamp("2024-03-05").value
    start = start[(start < day) | (start >= day + 24 * HOUR_NS)]
    assert fit_calendar(calendar, start).missing == ("2024-03-05",)
