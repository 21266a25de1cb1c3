"""Reference reader of bar files: parses every cell by the documented rules.

It uses neither pandas nor Arrow, and is slow and simple. The reader of the package is compared with
it.
"""

import csv
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

NAMES = {
    "time": "time timestamp datetime date date_time ts",
    "open": "open o",
    "high": "high h",
    "low": "low l",
    "close": "close c last",
    "volume": "volume vol v",
    "contract": "contract symbol ticker",
    "vix": "vix vix_close",
}
REQUIRED = ("time", "open", "high", "low", "close", "volume")
MISSING_NUMBERS = {"", "nan", "-nan", "na", "n/a", "#n/a", "null", "none"}
MISSING_CODES = {"", "nan", "NaN", "<NA>", "None", "none", "null", "NULL", "N/A", "#N/A"}
MONTHS = "FGHJKMNQUVXZ"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ISO_TIME = re.compile(
    r"(\d{4})(?:-(\d\d?)-(\d\d?)|/(\d\d?)/(\d\d?)|(\d\d)(\d\d))"
    r"(?:[T ](?:(\d\d?):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"|(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,9}))?)?)?)"
    r"(?: ?(Z|[+-]\d\d(?::?\d\d)?))?)?",
    re.ASCII,
)


class RefusedError(Exception):
    """The table breaks a rule."""


class Bar(NamedTuple):
    """One bar as the reader must return it; a missing VIX is None."""

    time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vix: float | None
    contract: str


class ReadSettings(NamedTuple):
    """Settings that a file is read with."""

    timezone: str | None = None
    time_format: str | None = None


def read_csv(content: bytes, reading: ReadSettings) -> tuple[list[Bar], bool]:
    """Return the sorted bars of a CSV, and True if its rows were in time order."""
    try:
        text = content.decode("utf-8-sig")
        lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RefusedError("not a CSV in UTF-8") from error
    if not lines:
        raise RefusedError("the file is empty")
    header, *rows = lines
    if any(len(row) != len(header) for row in rows):
        raise RefusedError("a row and the header differ in length")
    if any(mark in cell for row in lines for cell in row for mark in "\r\n"):
        raise RefusedError("a value contains a line break")
    return read_cells(header, rows, reading)


def read_cells(
    header: Sequence[str], rows: Sequence[Sequence[Any]], reading: ReadSettings
) -> tuple[list[Bar], bool]:
    """Return the sorted bars of a table of cells, and True if its rows were in time order."""
    if not rows:
        raise RefusedError("the table has no rows")
    positions = find_columns(header)
    times = parse_times([join_cells(row, positions, "date", "time") for row in rows], reading)
    bars = [parse_bar(row, positions, time) for row, time in zip(rows, times, strict=True)]
    last: dict[str, int] = {}
    for bar in bars:
        if bar.time <= last.get(bar.contract, bar.time - 1):
            raise RefusedError("times must increase within a contract")
        last[bar.contract] = bar.time
    rank = {code: number for number, code in enumerate(sort_by_expiry(bars))}
    is_sorted = all(a.time <= b.time for a, b in itertools.pairwise(bars))
    return sorted(bars, key=lambda bar: (bar.time, rank[bar.contract])), is_sorted


def find_columns(header: Sequence[str]) -> dict[str, int]:
    """Return the position of each known column."""
    plain = [name.strip().lower().replace(" ", "_") for name in header]
    positions: dict[str, int] = {}
    has_both = "date" in plain and "time" in plain
    for name, aliases in NAMES.items():
        matches = [position for position, one in enumerate(plain) if one in aliases.split()]
        if name == "time" and has_both:
            dates = [position for position in matches if plain[position] == "date"]
            matches = [position for position in matches if plain[position] != "date"]
            if len(dates) > 1:
                raise RefusedError("two columns for the date")
            positions["date"] = dates[0]
        if len(matches) > 1 or (name in REQUIRED and not matches):
            raise RefusedError(f"{len(matches)} columns for {name}")
        if matches:
            positions[name] = matches[0]
    return positions


def join_cells(row: Sequence[Any], positions: Mapping[str, int], *names: str) -> Any:
    """Return the cells of the named columns that exist, joined if there is more than one."""
    cells = [row[positions[name]] for name in names if name in positions]
    return cells[0] if len(cells) == 1 else " ".join(cells)


def parse_bar(row: Sequence[Any], positions: Mapping[str, int], time: int) -> Bar:
    prices = [parse_number(row[positions[name]]) for name in ("open", "high", "low", "close")]
    volume = parse_number(row[positions["volume"]])
    vix = parse_number(row[positions["vix"]]) if "vix" in positions else None
    code = str(row[positions["contract"]]) if "contract" in positions else "ONE"
    if any(price is None or not 0 < price < math.inf for price in prices):
        raise RefusedError("a price must be a finite number above 0")
    if volume is None or not 0 <= volume < math.inf:
        raise RefusedError("a volume must be a finite number of at least 0")
    opened, high, low, close = prices
    if not (low <= opened <= high and low <= close <= high):
        raise RefusedError("open and close must lie between low and high")
    if vix is not None and not 0 < vix < math.inf:
        raise RefusedError("a vix must be above 0 and finite")
    if code.strip() in MISSING_CODES:
        raise RefusedError("a contract must be present")
    if not code.isprintable():
        raise RefusedError("a contract must be printable")
    return Bar(time, opened, high, low, close, volume, vix, code)


def parse_number(cell: Any) -> float | None:
    """Parse a number; None if it is missing."""
    if isinstance(cell, bool):
        raise RefusedError("a boolean is not a number")
    if cell is None or isinstance(cell, int | float | Decimal):
        return None if cell is None or math.isnan(cell) else float(cell)
    if not isinstance(cell, str):
        raise RefusedError(f"{cell!r} is not a number")
    text = cell.strip(" \t").lower()
    if text in MISSING_NUMBERS or re.fullmatch(r"[+-]?nan(\(\w*\))?", text, re.ASCII):
        return None
    if re.fullmatch(r"[+-]?inf(inity)?", text):
        return -math.inf if text[0] == "-" else math.inf
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII):
        raise RefusedError(f"{cell!r} is not a number")
    return float(Decimal(text))


def parse_times(cells: Sequence[Any], reading: ReadSettings) -> list[int]:
    """Return each time as nanoseconds since 1970."""
    times = [parse_time(cell, reading) for cell in cells]
    if len({time.tzinfo is None for time, _ in times}) > 1:
        raise RefusedError("some times have a zone and others have none")
    return [utc_microseconds(time, reading) * 1000 + nanos for time, nanos in times]


def parse_time(cell: Any, reading: ReadSettings) -> tuple[datetime, int]:
    """Return a time to the microsecond, with or without a zone, and the nanoseconds beyond it."""
    if isinstance(cell, datetime):
        return cell, 0
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day), 0
    if not isinstance(cell, str):
        raise RefusedError(f"{cell!r} is not a time")
    text = cell.strip()
    try:
        return parse_iso(text) if reading.time_format is None else (parse_format(text, reading), 0)
    except ValueError as error:
        raise RefusedError(f"{cell!r} is not a time") from error


def parse_iso(text: str) -> tuple[datetime, int]:
    match = ISO_TIME.fullmatch(text)
    if match is None or text.isdigit():
        raise ValueError(text)
    year, *rest = match.groups()
    month, day = (part for part in rest[:6] if part)
    clock = rest[6:10] if rest[6] else rest[10:14]
    hour, minute, second, fraction = (part or "0" for part in clock)
    nanos = int(fraction.ljust(9, "0"))
    zone = rest[14]
    time = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))
    time = time.replace(microsecond=nanos // 1000, tzinfo=parse_offset(zone) if zone else None)
    return time, nanos % 1000


def parse_offset(zone: str) -> timezone:
    if zone == "Z":
        return UTC
    hours, minutes = int(zone[1:3]), int(zone[-2:]) if len(zone) > 3 else 0
    if hours > 23 or minutes > 59:
        raise ValueError(zone)
    return timezone((1 if zone[0] == "+" else -1) * timedelta(hours=hours, minutes=minutes))


def parse_format(text: str, reading: ReadSettings) -> datetime:
    """Parse by the pattern; fields without a separator between them must have their full width."""
    pattern = str(reading.time_format)
    if re.search(r"%\w%\w", pattern) and len(text) != len(datetime(2024, 3, 4).strftime(pattern)):
        raise ValueError(text)
    return datetime.strptime(text, pattern)


def utc_microseconds(time: datetime, reading: ReadSettings) -> int:
    """Return the microseconds since 1970."""
    if not 1700 <= time.year < 2200:
        raise RefusedError("a time before 1700 or after 2199")
    if time.tzinfo is None:
        if reading.timezone is None:
            raise RefusedError("times without a zone, and no timezone is set")
        zone = ZoneInfo(reading.timezone)
        early, late = (time.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        if early.utcoffset() != late.utcoffset():
            raise RefusedError("a local time that is ambiguous or does not exist")
        time = early
    micros = (time - EPOCH) // timedelta(microseconds=1)
    # from a day before the calendar's first session to half an hour after its last
    if not datetime(1959, 12, 31, tzinfo=UTC) <= time < datetime(2066, 1, 1, 0, 30, tzinfo=UTC):
        raise RefusedError("a time beyond the calendar")
    return micros


def sort_by_expiry(bars: Sequence[Bar]) -> list[str]:
    """Return the contract codes by expiry, or by first bar if any code is unknown."""
    first: dict[str, int] = {}
    for bar in bars:
        first[bar.contract] = min(bar.time, first.get(bar.contract, bar.time))
    expiries = {code: parse_expiry(code, first[code]) for code in first}
    known = [key for key in expiries.values() if key]
    plain = [code.strip().upper() for code in first]
    if len(set(plain)) < len(plain) or len(set(known)) < len(known):
        raise RefusedError("two spellings of one contract")
    if len(known) < len(first):
        return sorted(first, key=lambda code: (first[code], code))
    if len({root for root, *_ in known}) > 1:
        raise RefusedError("contracts of two products")
    return sorted(first, key=lambda code: expiries[code] or ())


def parse_expiry(code: str, first_bar: int) -> tuple[str, int, int] | None:
    """Return root, year and month of a code such as ESZ4, ESZ24 or ESZ2024; None for others."""
    match = re.fullmatch(r"([A-Z0-9]{1,4}?)([FGHJKMNQUVXZ])(\d|\d\d|\d{4})", code.strip().upper())
    if match is None:
        return None
    root, month, digits = match.groups()
    year = (EPOCH + timedelta(microseconds=first_bar // 1000)).year
    while str(year)[-len(digits) :] != digits and len(digits) < 4:
        year += 1
    return root, year if len(digits) < 4 else int(digits), MONTHS.index(month) + 1
