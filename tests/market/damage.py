"""Bar tables spoilt cell by cell and row by row, in the ways that vendors spoil them.

A kind of damage takes a valid table and changes it in place; it says with what settings the table
is read, and whether such a table must be refused, must be accepted, or is left to the parse by hand
alone. Every one is thrown as CSV and as Parquet.
"""

import copy
import csv
import gzip
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

from tests.market.by_hand import Bar, Reading, RefusedError, iso, number, read_cells, read_csv

Draw = Callable[[st.SearchStrategy[Any]], Any]
Truth = Callable[[], tuple[list[Bar], bool]]
MINUTE = timedelta(minutes=1)
PRICES = ("open", "high", "low", "close")
FILES = ("es.csv", "es.parquet", "es.csv.gz", "es.csv.zst", "es.parquet.zst")
REFUSED, ACCEPTED = "refused", "accepted"
BY_HAND = "as the parse by hand says"
IF_READ = "refused, or as the parse by hand says"
UNKNOWN = "refused, or read in both ways alike"


class Thrown(NamedTuple):
    """A file to be read.

    Attributes:
        name: of the file; its ending tells the kind.
        content: bytes of the file.
        reading: the settings it is read with.
        truth: what it means, by hand; raises `RefusedError`.
    """

    name: str
    content: bytes
    reading: Reading
    truth: Truth


class Kind(NamedTuple):
    """A kind of damage.

    Attributes:
        make: draws one file.
        fate: of every file of this kind, one of the five above.
        unreadable: the file may be no table at all, which is a SourceError.
        undone: the file is read as the table before the damage.
    """

    make: Callable[[Draw], Thrown]
    fate: str
    unreadable: bool
    undone: bool


KINDS: dict[str, Kind] = {}


@dataclass
class Table:
    """A bar table as text."""

    header: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def at(self, name: str) -> int:
        return self.header.index(name)

    def put(self, row: int, name: str, value: str) -> None:
        self.rows[row][self.at(name)] = value

    def column(self, name: str) -> list[str]:
        return [row[self.at(name)] for row in self.rows]

    def write(self, name: str, values: list[str]) -> None:
        for row, value in enumerate(values):
            self.put(row, name, value)

    def times(self) -> list[datetime]:
        return [iso(cell)[0] for cell in self.column("time")]


def valid_table(draw: Draw) -> Table:
    """Two to nine valid bars of one contract or two, perhaps with a VIX and a session."""
    rng = random.Random(draw(st.binary(min_size=6, max_size=6)))
    extra = [name for name in ("vix", "session", "note") if rng.random() < 0.4]
    table = Table(["time", *PRICES, "volume", "contract", *extra])
    when = datetime(2024, 3, 4, 15, tzinfo=UTC) + rng.randrange(-3_000_000, 3_000_000) * MINUTE
    rows = rng.randint(2, 9)
    roll = rng.choice([rows, rng.randint(1, rows)])
    codes = [f"ES{rng.choice('HMUZ')}{when.year % 100 + ahead:02d}" for ahead in (2, 3)]
    for row in range(rows):
        low = 4000 + rng.randrange(4000) / 4
        span = rng.randrange(20) / 4
        opened, close = (low + rng.choice([0, span]) for _ in range(2))
        cells = [f"{when:%Y-%m-%d %H:%M:%S}+00:00", opened, low + span, low, close]
        cells += [rng.randrange(1000), codes[row >= roll]]
        cells += [{"vix": "15.5", "session": "ETH", "note": "a, b"}[name] for name in extra]
        table.rows.append([f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells])
        when += rng.choice([1, 1, 2, 60, 4000]) * MINUTE
    return table


def in_csv(table: Table) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.header, *table.rows])
    return out.getvalue().encode()


def in_parquet(table: Table) -> bytes:
    """Numbers as float64 and stamps as timestamps, where every cell of the column is one."""
    columns = [
        _column(name.strip().lower(), [row[at] for row in table.rows])
        for at, name in enumerate(table.header)
    ]
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_arrays(columns, table.header), out)
    return out.getvalue()


def _column(name: str, cells: list[str]) -> pa.Array:
    try:
        if name in (*PRICES, "volume", "vix"):
            return pa.array([number(cell) for cell in cells], pa.float64())
        if name == "time":
            stamps = [iso(cell) for cell in cells]
            if all(when.tzinfo is not None and below == 0 for when, below in stamps):
                return pa.array([when for when, _ in stamps], pa.timestamp("us", "UTC"))
    except (RefusedError, ValueError):
        pass
    return pa.array(cells, pa.string())


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return pa.compress(content, codec="zstd", asbytes=True) if name.endswith(".zst") else content


def spoils(
    name: str,
    fate: str,
    spoil: Callable[[Draw, Table], Reading | None],
    *,
    undone: bool = False,
) -> None:
    """Register a kind of damage to the cells of a table; `spoil` may name settings to read with.

    With `undone` the file means what the table meant before the damage.
    """

    def make(draw: Draw) -> Thrown:
        table = valid_table(draw)
        before = copy.deepcopy(table)
        read = spoil(draw, table) or Reading()
        file = draw(st.sampled_from(FILES))
        content = in_csv(table) if ".csv" in file else in_parquet(table)
        truth: Truth = partial(read_cells, table.header, table.rows, read)
        if ".csv" in file:
            truth = partial(read_csv, content, read)
        if undone:
            truth = partial(read_cells, before.header, before.rows, Reading())
        return Thrown(file, packed(file, content), read, truth)

    assert name not in KINDS
    KINDS[name] = Kind(make, fate, unreadable=False, undone=undone)


def register(
    fate: str, *, unreadable: bool, undone: bool = False
) -> Callable[[Callable[[Draw], Thrown]], None]:
    """Register a function that makes a file, under its name."""

    def keep(make: Callable[[Draw], Thrown]) -> None:
        name = make.__name__.replace("_", " ")
        assert name not in KINDS
        KINDS[name] = Kind(make, fate, unreadable, undone)

    return keep


def nothing() -> tuple[list[Bar], bool]:
    """What a file means that is no table."""
    raise RefusedError("no table can be read")


def cells(
    fate: str, *, undone: bool = False
) -> Callable[[Callable[[Draw, Table], Reading | None]], None]:
    """Register a function under its name."""

    def register(spoil: Callable[[Draw, Table], Reading | None]) -> None:
        spoils(spoil.__name__.replace("_", " "), fate, spoil, undone=undone)

    return register


def some_row(draw: Draw, table: Table, first: int = 0) -> int:
    return int(draw(st.integers(first, len(table.rows) - 1)))


def one_cell(name: str, fate: str, columns: Sequence[str], values: Sequence[str]) -> None:
    """Register a kind of damage that writes one of some values into one cell."""

    def spoil(draw: Draw, table: Table) -> None:
        column = draw(st.sampled_from(columns))
        if column not in table.header:
            add_column(table, column, "15.5")
        table.put(some_row(draw, table), column, draw(st.sampled_from(values)))

    spoils(name, fate, spoil)


def add_column(table: Table, name: str, value: str) -> None:
    table.header.append(name)
    for row in table.rows:
        row.append(value)


# rows


@cells(ACCEPTED, undone=True)
def a_row_twice(draw: Draw, table: Table) -> None:
    row = some_row(draw, table)
    table.rows.insert(row, list(table.rows[row]))


@cells(IF_READ, undone=True)
def a_stamp_twice_with_other_prices(draw: Draw, table: Table) -> None:
    """Refused, unless the drawn prices are the same, which makes an exact repeat."""
    row = some_row(draw, table)
    other = valid_table(draw).rows[0][1:5]
    table.rows.insert(row, [table.rows[row][0], *other, *table.rows[row][5:]])


@cells(IF_READ, undone=True)
def two_rows_swapped(draw: Draw, table: Table) -> None:
    row = some_row(draw, table, first=1)
    table.rows[row - 1 : row + 1] = reversed(table.rows[row - 1 : row + 1])


@cells(ACCEPTED, undone=True)
def newest_first(_: Draw, table: Table) -> None:
    table.rows.reverse()


@cells(ACCEPTED, undone=True)
def a_part_of_the_file_again(draw: Draw, table: Table) -> None:
    first = some_row(draw, table)
    table.rows += [list(row) for row in table.rows[first : first + 3]]


@cells(ACCEPTED)
def contracts_side_by_side(draw: Draw, table: Table) -> None:
    """Bars of two contracts at the same times, the later contract first, last or in between."""
    old = [[*row[:6], "ESH40", *row[7:]] for row in table.rows]
    new = [[*row[:6], "ESM40", *row[7:]] for row in table.rows]
    mixed = [row for pair in zip(new, old, strict=True) for row in pair]
    table.rows = draw(st.sampled_from([old + new, new + old, mixed]))


# numbers

ABSENT = ["", "nan", "NaN", "NULL", "null", "None", "n/a", "#N/A", "NA", " "]
WORDS = [
    "halted",
    "-",
    ".",
    "true",
    "1.2.3",
    "5000.25x",
    "0x1388",
    "--5",
    "1e",
    "$5000",
    "५०००",
    "\0",
]
UNREADABLE_GROUPS = ["5_000.25", "5.000.25", "5,00.25", "50,00"]
ONE_NUMBER = [*PRICES, "volume"]

one_cell("a price is missing", REFUSED, PRICES, ABSENT)
one_cell("a price is infinite", REFUSED, PRICES, ["inf", "-inf", "Infinity", "+INF", "1e400"])
one_cell("a price is zero or negative", REFUSED, PRICES, ["0", "-0.0", "-5000.25", "1e-400", "0e5"])
one_cell("a volume is missing", REFUSED, ["volume"], ABSENT)
one_cell("a volume is negative or infinite", REFUSED, ["volume"], ["-1", "-0.5", "inf", "1e999"])
one_cell("a word for a number", REFUSED, ONE_NUMBER, WORDS)
one_cell("wrong thousands separators", REFUSED, PRICES, UNREADABLE_GROUPS)
one_cell("a vix is missing", ACCEPTED, ["vix"], ABSENT)
one_cell("a vix is a word", REFUSED, ["vix"], WORDS)
one_cell("a vix is zero, negative or infinite", REFUSED, ["vix"], ["0", "-15", "inf", "-inf"])
one_cell(
    "the volume is written oddly", ACCEPTED, ["volume"], ["1e3", "+7", " 7 ", "007", "7.", ".5"]
)


@cells(ACCEPTED, undone=True)
def decimal_commas(_: Draw, table: Table) -> None:
    for name in PRICES:
        table.write(name, [f"{float(price):.2f}".replace(".", ",") for price in table.column(name)])
    if "vix" in table.header:  # one mark in the whole file
        table.write("vix", [cell.replace(".", ",") for cell in table.column("vix")])


@cells(REFUSED)
def high_below_low(draw: Draw, table: Table) -> None:
    row = some_row(draw, table)
    table.put(row, "high", str(float(table.column("low")[row]) - draw(st.integers(1, 99)) / 4))


@cells(REFUSED)
def open_or_close_out_of_range(draw: Draw, table: Table) -> None:
    row, beyond = some_row(draw, table), draw(st.integers(1, 99)) / 4
    edge, by = draw(st.sampled_from([("high", beyond), ("low", -beyond)]))
    name = draw(st.sampled_from(["open", "close"]))
    table.put(row, name, str(float(table.column(edge)[row]) + by))


@cells(REFUSED)
def columns_in_a_wrong_order(_: Draw, table: Table) -> None:
    """High under the name of low; at least one bar has a range."""
    table.put(0, "high", str(float(table.column("high")[0]) + 1))
    table.header[2], table.header[3] = table.header[3], table.header[2]


@cells(BY_HAND)
def one_digit_changed(draw: Draw, table: Table) -> None:
    row, name = some_row(draw, table), draw(st.sampled_from(["time", *PRICES, "volume"]))
    cell = table.rows[row][table.at(name)]
    place = draw(st.integers(0, len(cell) - 1))
    mark = draw(st.sampled_from("0123456789.-+: eT"))
    table.put(row, name, cell[:place] + mark + cell[place + 1 :])


@cells(ACCEPTED)
def many_digits(draw: Draw, table: Table) -> None:
    """Prices that no tick explains; the float nearest to what is written must come out."""
    for row in range(len(table.rows)):
        price = f"{draw(st.integers(1, 10**6))}.{draw(st.integers(0, 10**25)):025d}"
        for name in PRICES:
            table.put(row, name, price)


# stamps

NO_STAMP = ["", "now", "today", "NaT", "null", "2024", "2024-03", "15:01", "03/04/2024 15:01"]
NO_STAMP += ["2024-03-04 24:00", "2024-13-04 15:01", "2024-02-30 15:01", "2024-03-04 15:60"]
NO_STAMP += ["2024-03-04 15:01:00 CST", "4 Mar 2024 15:01", "2024-03-04 15:01+25:00", "0", "\0"]
FAR = ["9999-12-31 00:00", "0001-01-01 00:00", "1600-01-01 00:00", "2300-01-01 00:00"]
FAR += ["1950-01-02 00:00", "2070-01-02 00:00", "2262-04-11 23:47:16.9", "1677-09-21 00:12"]

one_cell("a stamp that is none", REFUSED, ["time"], NO_STAMP)
one_cell(
    "a number among stamps", REFUSED, ["time"], ["1709564460", "45355.625", "20240304", "1.7e9"]
)
one_cell("a stamp without zone among others", REFUSED, ["time"], ["2024-03-04 15:01", "2024-03-04"])


@cells(REFUSED)
def a_stamp_far_away(draw: Draw, table: Table) -> None:
    """In the first row or the last, so that times may still increase."""
    when = draw(st.sampled_from(FAR))
    table.put(draw(st.sampled_from([0, -1])), "time", f"{when}Z")


@cells(REFUSED)
def all_stamps_far_away(draw: Draw, table: Table) -> None:
    year = draw(st.sampled_from([1200, 1677, 1700, 1958, 2067, 2199, 2262, 2500, 9998]))
    table.write("time", [f"{year}-03-04 15:{minute:02d}Z" for minute in range(len(table.rows))])


@cells(ACCEPTED)
def stamps_off_the_grid(draw: Draw, table: Table) -> None:
    fraction = draw(st.integers(1, 10**9 - 1))
    table.write("time", [f"{when:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z" for when in table.times()])


@cells(ACCEPTED)
def a_zone_of_its_own_for_each_stamp(draw: Draw, table: Table) -> None:
    rng = random.Random(draw(st.binary(min_size=6, max_size=6)))
    zones = [timezone(timedelta(minutes=15 * rng.randint(-48, 48))) for _ in table.rows]
    pairs = zip(table.times(), zones, strict=True)
    table.write("time", [f"{when.astimezone(zone):%Y-%m-%d %H:%M:%S%z}" for when, zone in pairs])


@cells(ACCEPTED)
def many_spellings_of_stamps(draw: Draw, table: Table) -> None:
    spellings = ["%Y-%m-%d %H:%M:%SZ", "%Y-%m-%dT%H:%M+0000", "%Y%m%dT%H%M%SZ", "%Y/%m/%d %H:%MZ"]
    spellings += ["%Y-%m-%d %H:%M:%S.0 +00:00", " %Y-%m-%d %H:%M+00 ", "%Y%m%d %H%MZ"]
    table.write("time", [f"{when:{draw(st.sampled_from(spellings))}}" for when in table.times()])


@cells(REFUSED)
def no_zone_and_none_set(_: Draw, table: Table) -> None:
    table.write("time", [f"{when:%Y-%m-%d %H:%M:%S}" for when in table.times()])


@cells(ACCEPTED)
def no_zone_and_one_set(draw: Draw, table: Table) -> Reading:
    """In UTC, or on a wall clock that does not change."""
    table.write("time", [f"{when:%Y-%m-%d %H:%M:%S}" for when in table.times()])
    return Reading(timezone=draw(st.sampled_from(["UTC", "Asia/Tokyo", "Etc/GMT+6"])))


@cells(BY_HAND)
def local_stamps_around_a_change_of_clocks(draw: Draw, table: Table) -> Reading:
    """Chicago, every five minutes over the hours that are there twice or never, and before them."""
    day = draw(st.sampled_from(["2024-11-03", "2024-03-10", "2007-11-04", "1998-10-25"]))
    first = draw(st.integers(0, 35))
    minutes = [5 * (first + row) for row in range(len(table.rows))]
    table.write("time", [f"{day} {minute // 60:02d}:{minute % 60:02d}:00" for minute in minutes])
    return Reading(timezone="America/Chicago")


@cells(REFUSED)
def an_hour_that_is_there_twice(draw: Draw, table: Table) -> Reading:
    """The hour is written twice, as a vendor does who keeps the wall clock."""
    minutes = sorted(draw(st.lists(st.integers(60, 119), min_size=1, max_size=8, unique=True)))
    texts = [f"2024-11-03 {minute // 60:02d}:{minute % 60:02d}" for minute in minutes] * 2
    table.rows = [list(table.rows[0]) for _ in texts]
    table.write("time", texts)
    return Reading(timezone="America/Chicago")


@cells(ACCEPTED, undone=True)
def seconds_since_1970(draw: Draw, table: Table) -> Reading:
    """Or milli-, micro- or nanoseconds, as a whole number or with a fraction."""
    unit = draw(st.sampled_from([1, 10**3, 10**6, 10**9]))
    ending = draw(st.sampled_from(["", ".0"]))
    table.write("time", [f"{int(when.timestamp()) * unit}{ending}" for when in table.times()])
    return Reading(timezone="UTC")


@cells(REFUSED)
def days_of_a_spreadsheet(_: Draw, table: Table) -> Reading:
    start = datetime(1899, 12, 30, tzinfo=UTC)
    table.write("time", [f"{(when - start) / timedelta(days=1):.6f}" for when in table.times()])
    return Reading(timezone="UTC")


@cells(IF_READ, undone=True)
def american_dates_without_a_format(_: Draw, table: Table) -> Reading:
    table.write("time", [f"{when:%m/%d/%Y %H:%M}" for when in table.times()])
    return Reading(timezone="UTC")


@cells(ACCEPTED)
def dates_with_their_format(draw: Draw, table: Table) -> Reading:
    formats = [
        "%m/%d/%Y %H:%M",
        "%d.%m.%Y %H:%M:%S",
        "%Y%m%d %H%M%S",
        "%Y%m%d%H%M",
        "%b %d %Y %H:%M",
    ]
    pattern = draw(st.sampled_from(formats))
    table.write("time", [f"{when:{pattern}}" for when in table.times()])
    return Reading(timezone="UTC", time_format=pattern)


@cells(REFUSED)
def another_format_than_the_one_set(draw: Draw, table: Table) -> Reading:
    table.write("time", [f"{when:%Y-%m-%d %H:%M}" for when in table.times()])
    pattern = draw(
        st.sampled_from(["%m/%d/%Y %H:%M", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y%m%d%H%M"])
    )
    return Reading(timezone="UTC", time_format=pattern)


@cells(REFUSED)
def leading_zeros_lost(draw: Draw, table: Table) -> Reading:
    """000930 written as 930 by a writer that took it for a number."""
    minute = draw(st.integers(1, 50))
    texts = [f"20240304 {int(f'00{minute + row:02d}00')}" for row in range(len(table.rows))]
    table.write("time", texts)
    return Reading(timezone="UTC", time_format="%Y%m%d %H%M%S")


@cells(ACCEPTED)
def a_date_beside_a_time(draw: Draw, table: Table) -> Reading:
    day = draw(st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%Y/%m/%d"]))
    add_column(table, "Date", "")
    table.write("Date", [f"{when:{day}}" for when in table.times()])
    table.write("time", [f"{when:%H:%M}" for when in table.times()])
    return Reading(timezone="UTC")


# columns


@cells(REFUSED)
def a_column_is_missing(draw: Draw, table: Table) -> None:
    at = table.at(draw(st.sampled_from(["time", *PRICES, "volume"])))
    for row in [table.header, *table.rows]:
        del row[at]


@cells(IF_READ, undone=True)
def a_column_under_another_name(draw: Draw, table: Table) -> None:
    at = table.at(draw(st.sampled_from(["time", *PRICES, "volume"])))
    table.header[at] = draw(
        st.sampled_from(["settle", "", "open_interest", "price", "\ufeffx", "\0"])
    )


@cells(REFUSED)
def a_column_twice(draw: Draw, table: Table) -> None:
    name = draw(st.sampled_from(["time", *PRICES, "volume", "contract"]))
    again = {"time": "Timestamp", "close": "Last", "contract": "Symbol"}.get(name, name.upper())
    at = table.at(name)
    for row in table.rows:
        row.append(row[at])
    table.header.append(draw(st.sampled_from([name, again, f" {name} "])))


@cells(ACCEPTED)
def columns_that_are_not_read(draw: Draw, table: Table) -> None:
    """With any content, and names that come twice."""
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["trades", "trades", "vwap", "open_interest", "Unnamed: 0"]))
        add_column(
            table, name, draw(st.sampled_from(["", "nan", "a, b", '6" pipe', "é", "-1", "="]))
        )


@cells(ACCEPTED)
def other_names_and_another_order(draw: Draw, table: Table) -> None:
    names = {"time": "Date Time", "open": "O", "high": " High", "low": "LOW ", "close": "Last"}
    names |= {"volume": "Vol", "contract": "Symbol", "vix": "VIX Close"}
    order = draw(st.permutations(range(len(table.header))))
    table.header = [names.get(name, name) for name in table.header]
    table.header = [table.header[at] for at in order]
    table.rows = [[row[at] for at in order] for row in table.rows]


# contracts and sessions

NO_CODES = ["", " ", "nan", "NaN", "None", "null", "NULL", "N/A", "#N/A", "<NA>"]
one_cell("a contract is missing", REFUSED, ["contract"], NO_CODES)
one_cell("a contract that cannot be printed", REFUSED, ["contract"], ["ES\tH40", "\0", "ES\x1bH40"])
one_cell("a session that says nothing", ACCEPTED, ["session"], ["", "night", "RTH?", "\t", "9:30"])


@cells(BY_HAND)
def odd_contract_codes(draw: Draw, table: Table) -> None:
    codes = [
        "ESH40",
        "ESM40",
        "ES 03-40",
        "202403",
        "ES1!",
        "é",
        "ESH4",
        "ESH040",
        "mine",
        "@ES",
        "1",
    ]
    table.write("contract", [draw(st.sampled_from(codes)) for _ in table.rows])


@cells(REFUSED)
def one_contract_written_two_ways(draw: Draw, table: Table) -> None:
    ways = [("ESH40", "ESH40 "), ("ESH40", "esh40"), ("ESH40", "ESH2040"), ("mine", " Mine")]
    one, other = draw(st.sampled_from(ways))
    table.write("contract", [one] * (len(table.rows) - 1) + [other])


@cells(REFUSED)
def contracts_of_two_products(draw: Draw, table: Table) -> None:
    other = draw(st.sampled_from(["NQH40", "CLF41", "6EZ40"]))
    table.write("contract", ["ESH40"] * (len(table.rows) - 1) + [other])
