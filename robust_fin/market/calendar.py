"""Trading dates, sessions and regular trading hours of bars.

Bars are labelled by comparing integer timestamps with the opens and closes of the sessions. Time
zones are converted once per session, not once per bar, so a million rows take 0.2 seconds.
"""

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pandas_market_calendars
from jaxtyping import Bool, Int, Shaped

from robust_fin.errors import ConfigError, SchemaError, SourceError
from robust_fin.market.files import read_texts

FIRST_DATE = "1960-01-01"
LAST_DATE = "2065-12-31"
ORIGIN = np.datetime64("1990-01-01", "s")
LATE_NS = 30 * 60 * 1_000_000_000
DAY_NS = 86_400 * 1_000_000_000
CHICAGO_HOURS = frozenset({"CME_Equity", "CBOT_Equity", "CME Globex Equity"})
ALWAYS_OPEN = "24/7"
_OF_EXCHANGE = {
    "NYMEX": ("CMEGlobex_CL", "CMEGlobex_NG", "CMEGlobex_HO", "CMEGlobex_RB"),
    "COMEX": ("CMEGlobex_GC", "CMEGlobex_SI"),
}
# what a calendar raises whose class lacks holidays or hours
_INCOMPLETE = (ValueError, NotImplementedError, LookupError, TypeError, AttributeError)

Dates = Shaped[np.ndarray, " sessions"]
Stamps = Int[np.ndarray, " sessions"]


class BarLabels(NamedTuple):
    """Calendar labels of bars, one entry per bar.

    Attributes:
        trading_date: datetime64[s] at midnight, naive.
        trading_day: int32 number of that date among the calendar's sessions; 0 is the first session
            on or after 1990-01-01, independent of the file.
        rth: the bar starts within regular trading hours.
        late: the bar starts less than 30 minutes after a close and belongs to that session.
        outside: the bar starts outside every session and belongs to the next session.
    """

    trading_date: Shaped[np.ndarray, " rows"]
    trading_day: Int[np.ndarray, " rows"]
    rth: Bool[np.ndarray, " rows"]
    late: Bool[np.ndarray, " rows"]
    outside: Bool[np.ndarray, " rows"]


def exchange_hours(name: str) -> tuple[str, int]:
    """Return the time zone of an exchange, and the hour of its clock at which a session starts.

    Args:
        name: a name of pandas_market_calendars, or "24/7".

    >>> exchange_hours("CME_Equity"), exchange_hours("24/7")
    (('America/Chicago', 17), ('UTC', 0))
    """
    if name == ALWAYS_OPEN:
        return "UTC", 0
    exchange = pandas_market_calendars.get_calendar(name)
    return str(exchange.tz), exchange.open_time.hour


@dataclass(frozen=True, slots=True)
class TradingCalendar:
    """Sessions of a market, sorted and without overlap.

    Attributes:
        name: name in pandas_market_calendars, or "24/7".
        date: trading dates, datetime64[s] at midnight.
        open: starts of the sessions, UTC nanoseconds since 1970.
        close: ends of the sessions (exclusive), in the same unit.
        rth_open: starts of regular trading hours, in the same unit.
        rth_close: ends of regular trading hours; at or before rth_open if a date has none.
    """

    name: str
    date: Dates
    open: Stamps
    close: Stamps
    rth_open: Stamps
    rth_close: Stamps

    @classmethod
    def named(
        cls,
        name: str = "CME_Equity",
        *,
        override_path: str | Path | None = None,
        first: str = FIRST_DATE,
        last: str = LAST_DATE,
    ) -> "TradingCalendar":
        """Build the calendar of a market.

        Args:
            name: a name of pandas_market_calendars, or "24/7" for UTC days without breaks.
            override_path: CSV with trading_date, open, close (timestamps with a zone) whose rows
                replace or add sessions; an empty open and close remove the date.
            first: first trading date, "YYYY-MM-DD".
            last: last trading date, "YYYY-MM-DD".

        Raises:
            ConfigError: the name is unknown, or the override file is invalid.

        Source: hours and holidays by pandas_market_calendars.
        """
        date, opened, closed = _schedule(name, first, last)
        if override_path is not None:
            date, opened, closed = _apply_override(Path(override_path), date, opened, closed)
        rth_open, rth_close = opened, closed
        if name in CHICAGO_HOURS:
            rth_open = chicago_ns(date, "08:30")
            rth_close = np.minimum(chicago_ns(date, "15:00"), closed)
        return cls(name, date, opened, closed, rth_open, rth_close)

    def label(self, time: pd.DatetimeIndex | pd.Series | Shaped[np.ndarray, " rows"]) -> BarLabels:
        """Label bars by their start.

        Args:
            time: starts of the bars, in any order and any zone; naive timestamps are UTC.

        Raises:
            SchemaError: a bar lies beyond the first or last session of the calendar.
        """
        start = _ns(pd.DatetimeIndex(time))
        self._check_span(start)
        opened = np.searchsorted(self.open, start, side="right") - 1
        past_close = start - self.close[opened]
        outside = (past_close >= LATE_NS) | (opened < 0)
        late = (past_close >= 0) & ~outside
        at = opened + outside
        rth = (start >= self.rth_open[at]) & (start < self.rth_close[at])
        # an outside bar precedes its session, even if rth_open is wide
        rth &= ~outside
        return BarLabels(self.date[at], self.ordinal(at), rth, late, outside)

    def ordinal(self, position: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """Number sessions from the first session on or after 1990-01-01.

        Args:
            position: positions in this calendar's arrays.

        Returns:
            int32 numbers, negative before 1990. They do not depend on `first` and `last` unless
            `first` is after 1990.
        """
        return (position - np.searchsorted(self.date, ORIGIN)).astype(np.int32)

    def sessions(self, first: str | pd.Timestamp, last: str | pd.Timestamp) -> pd.DataFrame:
        """List the sessions of a range of trading dates.

        Args:
            first: first trading date, inclusive.
            last: last trading date, inclusive.

        Returns:
            Columns trading_date (naive), open and close (UTC); one row per session.
        """
        bounds = [
            np.datetime64(pd.Timestamp(edge).normalize().tz_localize(None), "s")
            for edge in (first, last)
        ]
        low = np.searchsorted(self.date, bounds[0], side="left")
        high = np.searchsorted(self.date, bounds[1], side="right")
        return pd.DataFrame(
            {
                "trading_date": self.date[low:high],
                "open": pd.to_datetime(self.open[low:high], unit="ns", utc=True),
                "close": pd.to_datetime(self.close[low:high], unit="ns", utc=True),
            }
        )

    def _check_span(self, start: Int[np.ndarray, " rows"]) -> None:
        if start.size == 0:
            return
        # a bar long before the first open would belong to an earlier session, which is not here
        low, high = self.open[0] - DAY_NS, self.close[-1] + LATE_NS
        beyond = np.flatnonzero((start < low) | (start >= high))
        if beyond.size:
            raise SchemaError(
                f"calendar {self.name!r} covers {self.date[0].astype('M8[D]')} to "
                f"{self.date[-1].astype('M8[D]')}, but bar {beyond[0]} starts at "
                f"{pd.Timestamp(start[beyond[0]], unit='ns')} UTC; {beyond.size} such bars in all. "
                "Check the unit and the zone of the timestamps"
            )


@lru_cache(maxsize=64)
def _schedule(name: str, first: str, last: str) -> tuple[Dates, Stamps, Stamps]:
    if name == ALWAYS_OPEN:
        date = np.arange(np.datetime64(first, "D"), np.datetime64(last, "D") + 1).astype("M8[s]")
        opened = _ns(pd.DatetimeIndex(date))
        return _read_only(date, opened, opened + DAY_NS)
    known = pandas_market_calendars.get_calendar_names()
    if name not in known:
        close = [*_OF_EXCHANGE.get(name.upper(), ())]
        close = close or difflib.get_close_matches(name, known, n=4, cutoff=0.4)
        close = close or ["CME_Equity", "NYSE"]
        raise ConfigError(
            f"source.calendar={name!r} is not a calendar of pandas_market_calendars; similar: "
            f"{', '.join(close)}. Use source.calendar={ALWAYS_OPEN} for a market that never closes"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pandas, on NYSE's calendar
            table = pandas_market_calendars.get_calendar(name).schedule(first, last)
    except _INCOMPLETE as error:
        raise ConfigError(
            f"source.calendar={name!r} is incomplete in pandas_market_calendars "
            f"({type(error).__name__}: {error}). Use the calendar of another market with the same "
            f"hours, source.calendar={ALWAYS_OPEN}, or correct one with source.calendar_overrides"
        ) from error
    date = table.index.to_numpy().astype("M8[s]")
    return _read_only(date, _ns(table["market_open"]), _ns(table["market_close"]))


def _apply_override(
    path: Path, date: Dates, opened: Stamps, closed: Stamps
) -> tuple[Dates, Stamps, Stamps]:
    rows = _read_override(path)
    kept = ~np.isin(date, rows["date"].to_numpy())
    held = rows[rows["open"].notna()]
    date = np.concatenate([date[kept], held["date"].to_numpy()])
    opened = np.concatenate([opened[kept], _ns(held["open"])])
    closed = np.concatenate([closed[kept], _ns(held["close"])])
    order = np.argsort(date)
    date, opened, closed = date[order], opened[order], closed[order]
    bad = np.flatnonzero((closed <= opened) | (opened < np.append(opened[:1], closed[:-1])))
    if bad.size:
        raise ConfigError(
            f"sessions must close after they open and must not overlap, but with {path} the "
            f"session of {date[bad[0]].astype('M8[D]')} opens {pd.Timestamp(opened[bad[0]])} and "
            f"closes {pd.Timestamp(closed[bad[0]])} UTC; {bad.size} such sessions. Fix that row"
        )
    return _read_only(date, opened, closed)


def _read_override(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ConfigError(
            f"calendar override file {path} does not exist; correct the path or remove it"
        )
    try:
        text = read_texts(path)
    except SourceError as error:
        raise ConfigError(f"calendar override file: {error}") from error
    missing = [name for name in ("trading_date", "open", "close") if name not in text]
    if missing:
        raise ConfigError(f"calendar override file {path} lacks the columns {missing}; add them")
    date = text["trading_date"]
    _check_rows(path, date.isna() | date.duplicated(), "trading_date must be present and unique")
    _check_rows(
        path,
        text["open"].isna() != text["close"].isna(),
        "open and close must both be set or both be empty",
    )
    return pd.DataFrame(
        {
            "date": _parse(path, date, _parse_date).astype("M8[s]"),
            "open": _parse(path, text["open"], _parse_zoned),
            "close": _parse(path, text["close"], _parse_zoned),
        }
    )


def _check_rows(path: Path, bad: pd.Series, rule: str) -> None:
    if bad.any():
        raise ConfigError(f"calendar override file {path}: {rule}; see line {bad.argmax() + 2}")


def _parse(path: Path, text: pd.Series, parse: Callable[[str], pd.Timestamp]) -> pd.Series:
    stamps = []
    for line, value in enumerate(text, start=2):
        try:
            stamps.append(pd.NaT if pd.isna(value) else parse(value))
        except ValueError as error:
            raise ConfigError(
                f"calendar override file {path}, line {line}: {text.name} is {value!r}; write a "
                f"date, or a timestamp with its zone, such as 2023-11-24T12:15:00-06:00 ({error})"
            ) from error
    return pd.Series(pd.DatetimeIndex(stamps))


def _parse_date(value: str) -> pd.Timestamp:
    return pd.Timestamp(value).normalize()


def _parse_zoned(value: str) -> pd.Timestamp:
    stamp = pd.Timestamp(value)
    if stamp.tz is None:
        raise ValueError("the timestamp has no time zone")
    return stamp.tz_convert("UTC")


def chicago_ns(date: Dates, clock: str) -> Stamps:
    """Convert a Chicago local time on given dates to UTC.

    Args:
        date: datetime64 at midnight.
        clock: "HH:MM" in Chicago.

    Returns:
        UTC nanoseconds since 1970.
    """
    local = pd.DatetimeIndex(date) + pd.Timedelta(f"{clock}:00")
    return _ns(local.tz_localize("America/Chicago"))


def _ns(time: pd.DatetimeIndex | pd.Series) -> Int[np.ndarray, " stamps"]:
    index = pd.DatetimeIndex(time)
    naive = index if index.tz is None else index.tz_convert("UTC").tz_localize(None)
    return naive.to_numpy().astype("M8[ns]").view(np.int64)


def _read_only(date: Dates, opened: Stamps, closed: Stamps) -> tuple[Dates, Stamps, Stamps]:
    for array in (date, opened, closed):
        array.setflags(write=False)  # the cache returns the same arrays to every calendar
    return date, opened, closed
