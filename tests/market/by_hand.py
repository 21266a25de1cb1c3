"""What a bar file means, told cell by cell from the rules as they are written down.

No pandas and no Arrow: csv, datetime, decimal and re alone. It is slow, plain, and the other half
of every comparison with the reader.
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
NEEDED = ("time", "open", "high", "low", "close", "volume")
NO_NUMBER = {"", "nan", "-nan", "na", "n/a", "#n/a", "null", "none"}
NO_CODE = {"", "nan", "NaN", "<NA>", "None", "none", "null", "NULL", "N/A", "#N/A"}
MONTHS = "FGHJKMNQUVXZ"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STAMP = re.compile(
    r"(\d{4})(?:-(\d\d?)-(\d\d?)|/(\d\d?)/(\d\d?)|(\d\d)(\d\d))"
    r"(?:[T ](?:(\d\d?):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"|(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,9}))?)?)?)"
    r"(?: ?(Z|[+-]\d\d(?::?\d\d)?))?)?",
    re.ASCII,
)


class RefusedError(Exception):
    """The table breaks a rule."""


class Bar(NamedTuple):
    """One bar, as it must come out; a VIX that is missing is None."""

    time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vix: float | None
    contract: str


class Reading(NamedTuple):
    """The settings a file is read with."""

    timezone: str | None = None
    time_format: str | None = None


def read_csv(content: bytes, reading: Reading) -> tuple[list[Bar], bool]:
    """The bars of a CSV, in order, and whether its rows are in the order of time."""
    try:
        text = content.decode("utf-8-sig")
        lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RefusedError("no CSV in UTF-8") from error
    if not lines:
        raise RefusedError("empty")
    header, *rows = lines
    if any(len(row) != len(header) for row in rows):
        raise RefusedError("rows of another length")
    if any(mark in cell for row in lines for cell in row for mark in "\r\n"):
        raise RefusedError("a value with a line break")
    return read_cells(header, rows, reading)


def read_cells(
    header: Sequence[str], rows: Sequence[Sequence[Any]], reading: Reading
) -> tuple[list[Bar], bool]:
    """The bars of a table of cells, in order, and whether its rows are in the order of time."""
    if not rows:
        raise RefusedError("no rows")
    place = columns(header)
    stamp = stamps([cell_of(row, place, "date", "time") for row in rows], reading)
    bars = [one_bar(row, place, at) for row, at in zip(rows, stamp, strict=True)]
    last: dict[str, int] = {}
    for bar in bars:
        if bar.time <= last.get(bar.contract, bar.time - 1):
            raise RefusedError("times must increase within a contract")
        last[bar.contract] = bar.time
    rank = {code: number for number, code in enumerate(in_order_of_expiry(bars))}
    in_time = all(a.time <= b.time for a, b in itertools.pairwise(bars))
    return sorted(bars, key=lambda bar: (bar.time, rank[bar.contract])), in_time


def columns(header: Sequence[str]) -> dict[str, int]:
    """Where the column of each name is."""
    plain = [name.strip().lower().replace(" ", "_") for name in header]
    place: dict[str, int] = {}
    pair = "date" in plain and "time" in plain
    for name, aliases in NAMES.items():
        claims = [at for at, one in enumerate(plain) if one in aliases.split()]
        if name == "time" and pair:
            dates = [at for at in claims if plain[at] == "date"]
            claims = [at for at in claims if plain[at] != "date"]
            if len(dates) > 1:
                raise RefusedError("two dates")
            place["date"] = dates[0]
        if len(claims) > 1 or (name in NEEDED and not claims):
            raise RefusedError(f"{len(claims)} columns for {name}")
        if claims:
            place[name] = claims[0]
    return place


def cell_of(row: Sequence[Any], place: Mapping[str, int], *names: str) -> Any:
    cells = [row[place[name]] for name in names if name in place]
    return cells[0] if len(cells) == 1 else " ".join(cells)


def one_bar(row: Sequence[Any], place: Mapping[str, int], time: int) -> Bar:
    prices = [number(row[place[name]]) for name in ("open", "high", "low", "close")]
    volume = number(row[place["volume"]])
    vix = number(row[place["vix"]]) if "vix" in place else None
    code = str(row[place["contract"]]) if "contract" in place else "ONE"
    if any(price is None or not 0 < price < math.inf for price in prices):
        raise RefusedError("a price must be a finite number above 0")
    if volume is None or not 0 <= volume < math.inf:
        raise RefusedError("a volume must be a finite number of at least 0")
    opened, high, low, close = prices
    if not (low <= opened <= high and low <= close <= high):
        raise RefusedError("low <= open, close <= high")
    if vix is not None and not 0 < vix < math.inf:
        raise RefusedError("a vix must be above 0 and finite")
    if code.strip() in NO_CODE:
        raise RefusedError("a contract must be there")
    if not code.isprintable():
        raise RefusedError("a contract must be printable")
    return Bar(time, opened, high, low, close, volume, vix, code)


def number(cell: Any) -> float | None:
    """A cell as a number; None where it is missing."""
    if isinstance(cell, bool):
        raise RefusedError("a truth value")
    if cell is None or isinstance(cell, int | float | Decimal):
        return None if cell is None or math.isnan(cell) else float(cell)
    if not isinstance(cell, str):
        raise RefusedError(f"{cell!r} is no number")
    text = cell.strip(" \t").lower()
    if text in NO_NUMBER or re.fullmatch(r"[+-]?nan(\(\w*\))?", text, re.ASCII):
        return None
    if re.fullmatch(r"[+-]?inf(inity)?", text):
        return -math.inf if text[0] == "-" else math.inf
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII):
        raise RefusedError(f"{cell!r} is no number")
    return float(Decimal(text))


def stamps(cells: Sequence[Any], reading: Reading) -> list[int]:
    """Nanoseconds since 1970 of each stamp."""
    found = [stamp(cell, reading) for cell in cells]
    if len({when.tzinfo is None for when, _ in found}) > 1:
        raise RefusedError("some stamps with a zone and some without")
    return [instant(when, reading) * 1000 + below for when, below in found]


def stamp(cell: Any, reading: Reading) -> tuple[datetime, int]:
    """A stamp to the microsecond, with or without zone, and the nanoseconds below it."""
    if isinstance(cell, datetime):
        return cell, 0
    if isinstance(cell, date):
        return datetime(cell.year, cell.month, cell.day), 0
    if not isinstance(cell, str):
        raise RefusedError(f"{cell!r} is no stamp")
    text = cell.strip()
    try:
        return iso(text) if reading.time_format is None else (by_format(text, reading), 0)
    except ValueError as error:
        raise RefusedError(f"{cell!r} is no stamp") from error


def iso(text: str) -> tuple[datetime, int]:
    match = STAMP.fullmatch(text)
    if match is None or text.isdigit():
        raise ValueError(text)
    year, *rest = match.groups()
    month, day = (part for part in rest[:6] if part)
    clock = rest[6:10] if rest[6] else rest[10:14]
    hour, minute, second, fraction = (part or "0" for part in clock)
    nanos = int(fraction.ljust(9, "0"))
    zone = rest[14]
    when = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))
    when = when.replace(microsecond=nanos // 1000, tzinfo=offset(zone) if zone else None)
    return when, nanos % 1000


def offset(zone: str) -> timezone:
    if zone == "Z":
        return UTC
    hours, minutes = int(zone[1:3]), int(zone[-2:]) if len(zone) > 3 else 0
    if hours > 23 or minutes > 59:
        raise ValueError(zone)
    return timezone((1 if zone[0] == "+" else -1) * timedelta(hours=hours, minutes=minutes))


def by_format(text: str, reading: Reading) -> datetime:
    """By the pattern, where fields that touch have their full width."""
    pattern = str(reading.time_format)
    if re.search(r"%\w%\w", pattern) and len(text) != len(datetime(2024, 3, 4).strftime(pattern)):
        raise ValueError(text)
    return datetime.strptime(text, pattern)


def instant(when: datetime, reading: Reading) -> int:
    """Microseconds since 1970."""
    if not 1700 <= when.year < 2200:
        raise RefusedError("a stamp before 1700 or after 2199")
    if when.tzinfo is None:
        if reading.timezone is None:
            raise RefusedError("no zone")
        zone = ZoneInfo(reading.timezone)
        early, late = (when.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        if early.utcoffset() != late.utcoffset():
            raise RefusedError("a wall clock that is there twice or never")
        when = early
    at = (when - EPOCH) // timedelta(microseconds=1)
    # a day before the first session of the calendar, half an hour after its last
    if not datetime(1959, 12, 31, tzinfo=UTC) <= when < datetime(2066, 1, 1, 0, 30, tzinfo=UTC):
        raise RefusedError("beyond the calendar")
    return at


def in_order_of_expiry(bars: Sequence[Bar]) -> list[str]:
    """The codes; those of futures by expiry, others by their first bar."""
    first: dict[str, int] = {}
    for bar in bars:
        first[bar.contract] = min(bar.time, first.get(bar.contract, bar.time))
    known = {code: expiry(code, first[code]) for code in first}
    dated = [key for key in known.values() if key]
    alike = [code.strip().upper() for code in first]
    if len(set(alike)) < len(alike) or len(set(dated)) < len(dated):
        raise RefusedError("one contract written two ways")
    if len(dated) < len(first):
        return sorted(first, key=lambda code: (first[code], code))
    if len({root for root, *_ in dated}) > 1:
        raise RefusedError("two products")
    return sorted(first, key=lambda code: known[code] or ())


def expiry(code: str, first_bar: int) -> tuple[str, int, int] | None:
    """Root, year and month of a code such as ESZ4, ESZ24 or ESZ2024."""
    match = re.fullmatch(r"([A-Z0-9]{1,4}?)([FGHJKMNQUVXZ])(\d|\d\d|\d{4})", code.strip().upper())
    if match is None:
        return None
    root, month, digits = match.groups()
    year = (EPOCH + timedelta(microseconds=first_bar // 1000)).year
    while str(year)[-len(digits) :] != digits and len(digits) < 4:
        year += 1
    return root, year if len(digits) < 4 else int(digits), MONTHS.index(month) + 1
