"""Clock of a bar table: time zone, shifts of the clock, stamp side, and the calendar that fits.

Sessions and daily halts tell the zone: bars read in a wrong zone fall into the halts. The figure is
the *share outside*: bars outside every session, or after its close, with the two worst UTC days
left out, because vendors differ on holidays and early closes.

Bars are counted by looking up the edges of the sessions and of the days among the bars, and zones
are converted once per day, so a million bars take a few hundredths of a second.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from robust_fin.market.calendar import ALWAYS_OPEN, DAY_NS, TradingCalendar

ZONES = (
    "UTC",
    "America/Chicago",
    "America/New_York",
    "America/Los_Angeles",
    "Etc/GMT+5",  # EST without daylight saving, as HistData writes
    "Europe/London",
    "Europe/Berlin",
    "Europe/Athens",
    "Europe/Moscow",
    "Asia/Kolkata",
    "Asia/Shanghai",
    "Asia/Tokyo",
    "Australia/Sydney",
)
CALENDARS = (
    "NYSE",
    "LSE",
    "XETR",
    "EUREX",
    "JPX",
    "HKEX",
    "ASX",
    "CME_Equity",
    "CME_Agriculture",
    "CME_Rate",
    "CMEGlobex_FX",
    "CMEGlobex_GC",
    "CMEGlobex_CL",
    "ICE",
    "24/5",
    ALWAYS_OPEN,
)
MIN_DAYS = 12  # UTC days with bars below which nothing is concluded; 20 calendar days have 12 to 18
MIN_WEEK_DAYS = 3
MAX_OUTSIDE = 0.03  # share above which a calendar does not fit
MIN_GAIN = 0.01  # by which another zone must lower the share, to at most half
MIN_SHIFT_GAIN = 0.02  # the same within one week
FITS = 0.01  # share up to which a calendar is named as fitting
MAX_MISSING = 0.05  # share of sessions without bars up to which a calendar is named as fitting
_WORST_DAYS = 2
_HALF_HOUR_NS = 1800 * 1_000_000_000
_OFFSETS = np.arange(-12, 13)  # hours
_MAX_BAR = pd.Timedelta("4h")  # longer bars say nothing about a halt of an hour
_SATURDAY = 2  # days from 1970-01-01 to the first Saturday

Stamps = Int[np.ndarray, " _stamps"]
Edges = Int[np.ndarray, " _sessions"]
Days = Int[np.ndarray, " _days"]


class Sessions(NamedTuple):
    """Sessions of a calendar around a span of time, sorted and without overlap.

    Attributes:
        opened: starts, UTC nanoseconds since 1970.
        closed: ends (exclusive), in the same unit.
    """

    opened: Edges
    closed: Edges

    @classmethod
    def around(cls, calendar: TradingCalendar, start: Stamps) -> "Sessions":
        """Return the sessions from two days before the first bar to two days after the last."""
        low = np.searchsorted(calendar.close, start[0] - 2 * DAY_NS)
        high = np.searchsorted(calendar.open, start[-1] + 2 * DAY_NS)
        return cls(calendar.open[low:high], calendar.close[low:high])

    def shifted(self, shift: int) -> "Sessions":
        """Return the sessions moved by a number of nanoseconds."""
        return Sessions(self.opened + shift, self.closed + shift)

    def within(self, low: int, high: int) -> "Sessions":
        """Return the parts of the sessions within [low, high)."""
        opened, closed = np.maximum(self.opened, low), np.minimum(self.closed, high)
        held = opened < closed
        return Sessions(opened[held], closed[held])


class DayCounts(NamedTuple):
    """Bars by UTC day, from the day of the first bar to that of the last.

    Attributes:
        first: number of the first day since 1970-01-01.
        bars: number of bars.
        outside: number of bars outside every session, or after the close of theirs.
    """

    first: int
    bars: Days
    outside: Days

    @classmethod
    def of(cls, sessions: Sessions, start: Stamps) -> "DayCounts":
        """Count bars.

        Args:
            sessions: of the market.
            start: starts of the bars, UTC nanoseconds, increasing.
        """
        first, last = int(start[0] // DAY_NS), int(start[-1] // DAY_NS)
        midnight = np.arange(first, last + 2) * DAY_NS
        before = np.searchsorted(start, midnight)  # bars before each midnight
        bars = np.diff(before)
        if not sessions.opened.size:
            return cls(first, bars, bars)
        low, high = (np.searchsorted(start, edge) for edge in sessions)
        earlier = np.cumsum(high - low) - (high - low)  # bars in the sessions before each one
        at = np.searchsorted(sessions.opened, midnight, side="right") - 1
        inside = earlier[at] + np.clip(before, low[at], high[at]) - low[at]
        return cls(first, bars, bars - np.diff(np.where(at < 0, 0, inside)))

    @property
    def share(self) -> float:
        """Share of bars outside, without the two worst days."""
        kept = np.sort(self.outside)[:-_WORST_DAYS]
        return float(kept.sum() / max(1, self.bars.sum()))

    @property
    def days(self) -> int:
        """Number of days with bars."""
        return int(np.count_nonzero(self.bars))


class Reading(NamedTuple):
    """Spans of time in which reading wall-clock times in another zone shifts them alike.

    Attributes:
        first: start of each span, UTC nanoseconds, increasing.
        shift: what is added to the stamps of the span, nanoseconds.
    """

    first: Stamps
    shift: Stamps

    @classmethod
    def between(cls, start: Stamps, *, configured: str, zone: str) -> "Reading":
        """Compare two zones once per day, and every half hour on the days of a clock change.

        Args:
            start: stamps as read with the configured zone, UTC nanoseconds, increasing.
            configured: zone with which the stamps were read.
            zone: other zone.
        """
        day = np.arange(start[0] // DAY_NS, start[-1] // DAY_NS + 2) * DAY_NS
        shift = _shift(day, configured, zone)
        changed = np.flatnonzero(np.diff(shift))
        if not changed.size:
            return cls(day[:1], shift[:1])
        hours = day[changed, None] + _HALF_HOUR_NS * np.arange(48)
        stamp = np.union1d(day[:1], hours.ravel())
        shift = _shift(stamp, configured, zone)
        held = np.flatnonzero(np.diff(shift, prepend=shift[:1] - 1))
        first = stamp[held]
        used = np.diff(np.append(np.searchsorted(start, first), start.size)) > 0
        return cls(first[used], shift[held][used])

    def apply(self, start: Stamps) -> Stamps:
        """Return the shifted stamps, in the order of `start`."""
        counts = np.diff(np.append(np.searchsorted(start, self.first), start.size))
        return start + np.repeat(self.shift, counts)

    def sessions(self, sessions: Sessions) -> Sessions:
        """Return where the sessions lie among the stamps that are not shifted."""
        last = np.append(self.first[1:], np.iinfo(np.int64).max)
        spans = zip(self.first.tolist(), last.tolist(), self.shift.tolist(), strict=True)
        parts = [sessions.shifted(-shift).within(low, high) for low, high, shift in spans]
        return Sessions(*(np.concatenate(edges) for edges in zip(*parts, strict=True)))


def _shift(utc: Stamps, configured: str, zone: str) -> Stamps:
    """Return by how much UTC instants change if their wall-clock times are of another zone.

    A time that the clock skips moves forward; one that it repeats is its first occurrence.
    """
    wall = pd.DatetimeIndex(utc).tz_localize("UTC").tz_convert(configured).tz_localize(None)
    first = np.ones(wall.size, dtype=bool)
    local = wall.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")
    moved = local.tz_convert("UTC").tz_localize(None).as_unit("ns").to_numpy().view(np.int64)
    return moved - utc


def read_in_zone(start: Stamps, *, configured: str, zone: str) -> Stamps:
    """Return the UTC instants of the same wall-clock times, read in another zone.

    Args:
        start: stamps as read with the configured zone, UTC nanoseconds, increasing.
        configured: zone with which the stamps were read.
        zone: other zone.
    """
    return Reading.between(start, configured=configured, zone=zone).apply(start)


@dataclass(frozen=True, slots=True)
class ZoneFit:
    """Share outside by candidate zone.

    Attributes:
        configured: share outside as the file was read; NaN if there is too little data.
        better: zones that fit much better, the best first.
        share: share outside of the first of them; NaN if there is none.
        equal: zones that do not differ from the configured one over the span of the file.
    """

    configured: float
    better: tuple[str, ...]
    share: float
    equal: tuple[str, ...]


def fit_zones(calendar: TradingCalendar, start: Stamps, *, configured: str) -> ZoneFit:
    """Compare how well the wall-clock times of a file fit the sessions in each zone.

    Args:
        calendar: of the market.
        start: starts of the bars as read with the configured zone, UTC nanoseconds, increasing.
        configured: zone with which the file was read.
    """
    sessions = Sessions.around(calendar, start)
    own = DayCounts.of(sessions, start)
    if own.days < MIN_DAYS or calendar.name == ALWAYS_OPEN:
        return ZoneFit(np.nan, (), np.nan, ())
    share, equal = own.share, []
    shares: dict[str, float] = {}
    for zone in ZONES:
        reading = Reading.between(start, configured=configured, zone=zone)
        if not reading.shift.any():
            equal += [zone] if zone != configured else []
        elif share >= MIN_GAIN:  # else no zone can be that much better
            shares[zone] = DayCounts.of(reading.sessions(sessions), start).share
    low = min(shares.values(), default=share)
    if share - low < MIN_GAIN or low > share / 2:
        return ZoneFit(share, (), np.nan, tuple(equal))
    better = [zone for zone in sorted(shares, key=shares.__getitem__) if shares[zone] <= low + 1e-3]
    return ZoneFit(share, tuple(better), low, tuple(equal))


def clock_shifts(calendar: TradingCalendar, start: Stamps) -> list[tuple[pd.Timestamp, int]]:
    """Find weeks in which another offset of whole hours fits much better than the file's own.

    Args:
        calendar: of the market.
        start: starts of the bars, UTC nanoseconds, increasing.

    Returns:
        (Saturday before the week, hours to add) of each such week; empty if there is too little
        data, or if every week has the same offset, which is a matter of the zone.
    """
    sessions = Sessions.around(calendar, start)
    own = DayCounts.of(sessions, start)
    if own.days < MIN_DAYS or calendar.name == ALWAYS_OPEN:
        return []
    week = (own.first + np.arange(own.bars.size) - _SATURDAY) // 7
    edges = np.flatnonzero(np.diff(week, prepend=week[:1] - 1))  # first day of each week
    full = np.add.reduceat(own.bars > 0, edges, dtype=np.int64) >= MIN_WEEK_DAYS
    present = _weekly_share(own, edges)
    if not (full & (present >= MIN_SHIFT_GAIN)).any():
        return []
    moved = [sessions.shifted(-int(hours) * 2 * _HALF_HOUR_NS) for hours in _OFFSETS]
    shares = np.stack([_weekly_share(DayCounts.of(each, start), edges) for each in moved])
    low = shares.min(axis=0)
    shifted = full & (present - low >= MIN_SHIFT_GAIN) & (low <= present / 2)
    if shifted[full].all():
        return []
    hours = _OFFSETS[shares.argmin(axis=0)]
    saturdays = pd.to_datetime((week[edges] * 7 + _SATURDAY) * DAY_NS, unit="ns")
    return [(saturdays[int(at)], int(hours[at])) for at in np.flatnonzero(shifted)]


def _weekly_share(counts: DayCounts, edges: Days) -> Float[np.ndarray, " weeks"]:
    """Return the share of bars outside by week, without the worst day of each week.

    Args:
        counts: bars by day.
        edges: position of the first day of each week.
    """
    outside = np.add.reduceat(counts.outside, edges) - np.maximum.reduceat(counts.outside, edges)
    return outside / np.maximum(1, np.add.reduceat(counts.bars, edges))


def stamp_side(calendar: TradingCalendar, stamp: Stamps, *, bar: pd.Timedelta) -> str | None:
    """Infer the side of the bar that a stamp marks from the first bar of each session.

    Args:
        calendar: of the market.
        stamp: the stamps of the file, UTC nanoseconds, increasing.
        bar: length of a bar.

    Returns:
        "start" if the open is stamped in over 90 % of the sessions with bars; "end" if it is in
        under 5 % and open + bar in over 90 %; else None. Always None on 24/7.
    """
    if calendar.name == ALWAYS_OPEN or bar > _MAX_BAR:
        return None
    opened, closed = Sessions.around(calendar, stamp)
    low = np.searchsorted(stamp, opened)
    high = np.searchsorted(stamp, closed, side="right")  # a bar stamped at its end may equal it
    held = opened[np.minimum(high, np.append(low[1:], stamp.size)) > low]
    if held.size < MIN_DAYS:
        return None
    at_open = _stamped(stamp, held)
    if at_open > 0.9:
        return "start"
    after = _stamped(stamp, held + bar.value)
    return "end" if at_open < 0.05 and after > 0.9 else None


def _stamped(stamp: Stamps, moments: Stamps) -> float:
    """Return the share of the moments that occur among increasing stamps."""
    position = np.minimum(np.searchsorted(stamp, moments), stamp.size - 1)
    return float((stamp[position] == moments).mean())


@dataclass(frozen=True, slots=True)
class CalendarFit:
    """Fit of the sessions of a calendar.

    Attributes:
        share: share outside; NaN if there is too little data.
        closed: dates on which the calendar is closed and the file has a full day of bars.
        missing: trading dates of the calendar without a bar.
        sessions: trading dates of the calendar within the span of the file.
    """

    share: float
    closed: tuple[str, ...]
    missing: tuple[str, ...]
    sessions: int


def fit_calendar(calendar: TradingCalendar, start: Stamps) -> CalendarFit:
    """Compare the bars with the sessions of a calendar.

    Args:
        calendar: of the market.
        start: starts of the bars, UTC nanoseconds, increasing.
    """
    counts = DayCounts.of(Sessions.around(calendar, start), start)
    first, last = np.searchsorted(calendar.open, start[[0, -1]], side="right") - 1
    every = slice(max(first, 0), last + 1)
    low, high = (np.searchsorted(start, edge[every]) for edge in (calendar.open, calendar.close))
    missing = calendar.date[every][low == high].astype("M8[D]")
    enough = counts.days >= MIN_DAYS
    return CalendarFit(
        counts.share if enough else np.nan,
        _closed_dates(counts) if enough else (),
        tuple(map(str, missing)),
        low.size,
    )


def _closed_dates(counts: DayCounts) -> tuple[str, ...]:
    """Return UTC dates with at least half a usual day of bars outside the calendar."""
    usual = np.median(counts.bars[counts.bars > 0])
    day = counts.first + np.flatnonzero(counts.outside >= usual / 2)
    return tuple(map(str, day.astype("M8[D]")))


def fitting_calendars(start: Stamps, *, names: Iterable[str] = CALENDARS) -> Mapping[str, float]:
    """Return the calendars that fit, the one with the shortest sessions first.

    Args:
        start: starts of the bars, UTC nanoseconds, increasing.
        names: of pandas_market_calendars, or 24/7.

    Returns:
        Name -> share outside.
    """
    found: list[tuple[int, str, float]] = []
    for name in names:
        calendar = TradingCalendar.named(name)
        fit = fit_calendar(calendar, start)
        if fit.share <= FITS and len(fit.missing) <= MAX_MISSING * fit.sessions:
            opened, closed = Sessions.around(calendar, start)
            found.append((int((closed - opened).sum()), name, fit.share))
    return {name: share for _, name, share in sorted(found)}
