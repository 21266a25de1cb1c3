"""Bar tables with damaged cells and rows, as vendors deliver them.

A kind of damage changes a valid table in place. It states the settings that the table is read with,
and what the reader must do with such a table: refuse it, accept it, or agree with the reference
reader. Every kind is written as CSV and as Parquet.
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

from tests.market.by_hand import (
    Bar,
    ReadSettings,
    RefusedError,
    parse_iso,
    parse_number,
    read_cells,
    read_csv,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]
Expected = Callable[[], tuple[list[Bar], bool]]
MINUTE = timedelta(minutes=1)
PRICES = ("open", "high", "low", "close")
FILES = ("es.csv", "es.parquet", "es.csv.gz", "es.csv.zst", "es.parquet.zst")
REFUSED, ACCEPTED = "refused", "accepted"
BY_HAND = "read as by the reference reader"
IF_READ = "refused, or read as by the reference reader"
UNKNOWN = "refused, or read identically at once and in blocks"


class DamagedFile(NamedTuple):
    """A damaged file and how to read it.

    Attributes:
        name: of the file; its ending says the format.
        content: bytes of the file.
        reading: settings that the file is read with.
        expected: returns its bars by the reference reader, or raises `RefusedError`.
    """

    name: str
    content: bytes
    reading: ReadSettings
    expected: Expected


class DamageKind(NamedTuple):
    """A kind of damage.

    Attributes:
        make: draws one file.
        expectation: what the reader must do with every file of this kind, one of the five above.
        unreadable: the file may not be a table at all; the reader may then raise SourceError.
        undone: the reader must return the bars of the table before the damage.
    """

    make: Callable[[Draw], DamagedFile]
    expectation: str
    unreadable: bool
    undone: bool


KINDS: dict[str, DamageKind] = {}


@dataclass
class Table:
    """A bar table as text."""

    header: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def position(self, name: str) -> int:
        return self.header.index(name)

    def set_cell(self, row: int, name: str, value: str) -> None:
        self.rows[row][self.position(name)] = value

    def column(self, name: str) -> list[str]:
        return [row[self.position(name)] for row in self.rows]

    def set_column(self, name: str, values: list[str]) -> None:
        for row, value in enumerate(values):
            self.set_cell(row, name, value)

    def times(self) -> list[datetime]:
        return [parse_iso(cell)[0] for cell in self.column("time")]


def valid_table(draw: Draw) -> Table:
    """Draw two to nine valid bars of one or two contracts, some with a VIX and a session."""
    rng = random.Random(draw(st.binary(min_size=6, max_size=6)))
    extra = [name for name in ("vix", "session", "note") if rng.random() < 0.4]
    table = Table(["time", *PRICES, "volume", "contract", *extra])
    time = datetime(2024, 3, 4, 15, tzinfo=UTC) + rng.randrange(-3_000_000, 3_000_000) * MINUTE
    rows = rng.randint(2, 9)
    roll = rng.choice([rows, rng.randint(1, rows)])
    codes = [f"ES{rng.choice('HMUZ')}{time.year % 100 + ahead:02d}" for ahead in (2, 3)]
    for row in range(rows):
        low = 4000 + rng.randrange(4000) / 4
        span = rng.randrange(20) / 4
        opened, close = (low + rng.choice([0, span]) for _ in range(2))
        cells = [f"{time:%Y-%m-%d %H:%M:%S}+00:00", opened, low + span, low, close]
        cells += [rng.randrange(1000), codes[row >= roll]]
        cells += [{"vix": "15.5", "session": "ETH", "note": "a, b"}[name] for name in extra]
        table.rows.append([f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells])
        time += rng.choice([1, 1, 2, 60, 4000]) * MINUTE
    return table


def csv_bytes(table: Table) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.header, *table.rows])
    return out.getvalue().encode()


def parquet_bytes(table: Table) -> bytes:
    """Write numbers as float64 and times as timestamps; columns with any other cell as text."""
    columns = [
        _column(name.strip().lower(), [row[position] for row in table.rows])
        for position, name in enumerate(table.header)
    ]
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_arrays(columns, table.header), out)
    return out.getvalue()


def _column(name: str, cells: list[str]) -> pa.Array:
    try:
        if name in (*PRICES, "volume", "vix"):
            return pa.array([parse_number(cell) for cell in cells], pa.float64())
        if name == "time":
            times = [parse_iso(cell) for cell in cells]
            if all(time.tzinfo is not None and nanos == 0 for time, nanos in times):
                return pa.array([time for time, _ in times], pa.timestamp("us", "UTC"))
    except (RefusedError, ValueError):
        pass
    return pa.array(cells, pa.string())


def compressed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return pa.compress(content, codec="zstd", asbytes=True) if name.endswith(".zst") else content


def register_cell_damage(
    name: str,
    expectation: str,
    damage: Callable[[Draw, Table], ReadSettings | None],
    *,
    undone: bool = False,
) -> None:
    """Register a kind of damage to the cells of a table.

    Args:
        name: of the kind.
        expectation: what the reader must do.
        damage: changes the table; may return settings to read it with.
        undone: the reader must return the bars of the table before the damage.
    """

    def make(draw: Draw) -> DamagedFile:
        table = valid_table(draw)
        before = copy.deepcopy(table)
        read = damage(draw, table) or ReadSettings()
        file = draw(st.sampled_from(FILES))
        content = csv_bytes(table) if ".csv" in file else parquet_bytes(table)
        expected: Expected = partial(read_cells, table.header, table.rows, read)
        if ".csv" in file:
            expected = partial(read_csv, content, read)
        if undone:
            expected = partial(read_cells, before.header, before.rows, ReadSettings())
        return DamagedFile(file, compressed(file, content), read, expected)

    assert name not in KINDS
    KINDS[name] = DamageKind(make, expectation, unreadable=False, undone=undone)


def register(
    expectation: str, *, unreadable: bool, undone: bool = False
) -> Callable[[Callable[[Draw], DamagedFile]], None]:
    """Register the decorated function, which draws a file, under its name."""

    def decorate(make: Callable[[Draw], DamagedFile]) -> None:
        name = make.__name__.replace("_", " ")
        assert name not in KINDS
        KINDS[name] = DamageKind(make, expectation, unreadable, undone)

    return decorate


def not_a_table() -> tuple[list[Bar], bool]:
    """Expect that the reader refuses the file."""
    raise RefusedError("no table can be read")


def damages_cells(
    expectation: str, *, undone: bool = False
) -> Callable[[Callable[[Draw, Table], ReadSettings | None]], None]:
    """Register the decorated function, which changes a table, under its name."""

    def decorate(damage: Callable[[Draw, Table], ReadSettings | None]) -> None:
        register_cell_damage(damage.__name__.replace("_", " "), expectation, damage, undone=undone)

    return decorate


def draw_row(draw: Draw, table: Table, first: int = 0) -> int:
    return int(draw(st.integers(first, len(table.rows) - 1)))


def register_values(
    name: str, expectation: str, columns: Sequence[str], values: Sequence[str]
) -> None:
    """Register a kind of damage that writes one of `values` into a cell of one of `columns`."""

    def damage(draw: Draw, table: Table) -> None:
        column = draw(st.sampled_from(columns))
        if column not in table.header:
            add_column(table, column, "15.5")
        table.set_cell(draw_row(draw, table), column, draw(st.sampled_from(values)))

    register_cell_damage(name, expectation, damage)


def add_column(table: Table, name: str, value: str) -> None:
    table.header.append(name)
    for row in table.rows:
        row.append(value)


# rows


@damages_cells(ACCEPTED, undone=True)
def repeated_row(draw: Draw, table: Table) -> None:
    row = draw_row(draw, table)
    table.rows.insert(row, list(table.rows[row]))


@damages_cells(IF_READ, undone=True)
def same_time_with_other_prices(draw: Draw, table: Table) -> None:
    """Must be refused, unless the drawn prices are equal, which makes an exact repeat."""
    row = draw_row(draw, table)
    other = valid_table(draw).rows[0][1:5]
    table.rows.insert(row, [table.rows[row][0], *other, *table.rows[row][5:]])


@damages_cells(IF_READ, undone=True)
def swapped_rows(draw: Draw, table: Table) -> None:
    row = draw_row(draw, table, first=1)
    table.rows[row - 1 : row + 1] = reversed(table.rows[row - 1 : row + 1])


@damages_cells(ACCEPTED, undone=True)
def rows_newest_first(_: Draw, table: Table) -> None:
    table.rows.reverse()


@damages_cells(ACCEPTED, undone=True)
def repeated_part_of_the_file(draw: Draw, table: Table) -> None:
    first = draw_row(draw, table)
    table.rows += [list(row) for row in table.rows[first : first + 3]]


@damages_cells(ACCEPTED)
def overlapping_contracts(draw: Draw, table: Table) -> None:
    """Bars of two contracts at the same times; the later contract is first, last or alternates."""
    old = [[*row[:6], "ESH40", *row[7:]] for row in table.rows]
    new = [[*row[:6], "ESM40", *row[7:]] for row in table.rows]
    mixed = [row for pair in zip(new, old, strict=True) for row in pair]
    table.rows = draw(st.sampled_from([old + new, new + old, mixed]))


# numbers

MISSING = ["", "nan", "NaN", "NULL", "null", "None", "n/a", "#N/A", "NA", " "]
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
BAD_SEPARATORS = ["5_000.25", "5.000.25", "5,00.25", "50,00"]
NUMBERS = [*PRICES, "volume"]

register_values("a price is missing", REFUSED, PRICES, MISSING)
register_values(
    "a price is infinite", REFUSED, PRICES, ["inf", "-inf", "Infinity", "+INF", "1e400"]
)
register_values(
    "a price is zero or negative", REFUSED, PRICES, ["0", "-0.0", "-5000.25", "1e-400", "0e5"]
)
register_values("a volume is missing", REFUSED, ["volume"], MISSING)
register_values(
    "a volume is negative or infinite", REFUSED, ["volume"], ["-1", "-0.5", "inf", "1e999"]
)
register_values("a word instead of a number", REFUSED, NUMBERS, WORDS)
register_values("wrong thousands separators", REFUSED, PRICES, BAD_SEPARATORS)
register_values("a vix is missing", ACCEPTED, ["vix"], MISSING)
register_values("a vix is a word", REFUSED, ["vix"], WORDS)
register_values(
    "a vix is zero, negative or infinite", REFUSED, ["vix"], ["0", "-15", "inf", "-inf"]
)
register_values(
    "an unusual spelling of the volume",
    ACCEPTED,
    ["volume"],
    ["1e3", "+7", " 7 ", "007", "7.", ".5"],
)


@damages_cells(ACCEPTED, undone=True)
def decimal_commas(_: Draw, table: Table) -> None:
    for name in PRICES:
        table.set_column(
            name, [f"{float(price):.2f}".replace(".", ",") for price in table.column(name)]
        )
    if "vix" in table.header:  # a file has one decimal mark
        table.set_column("vix", [cell.replace(".", ",") for cell in table.column("vix")])


@damages_cells(REFUSED)
def high_below_low(draw: Draw, table: Table) -> None:
    row = draw_row(draw, table)
    table.set_cell(row, "high", str(float(table.column("low")[row]) - draw(st.integers(1, 99)) / 4))


@damages_cells(REFUSED)
def open_or_close_out_of_range(draw: Draw, table: Table) -> None:
    row, beyond = draw_row(draw, table), draw(st.integers(1, 99)) / 4
    edge, by = draw(st.sampled_from([("high", beyond), ("low", -beyond)]))
    name = draw(st.sampled_from(["open", "close"]))
    table.set_cell(row, name, str(float(table.column(edge)[row]) + by))


@damages_cells(REFUSED)
def swapped_headers(_: Draw, table: Table) -> None:
    """The headers of high and low are swapped; at least one bar has a range."""
    table.set_cell(0, "high", str(float(table.column("high")[0]) + 1))
    table.header[2], table.header[3] = table.header[3], table.header[2]


@damages_cells(BY_HAND)
def one_character_changed(draw: Draw, table: Table) -> None:
    row, name = draw_row(draw, table), draw(st.sampled_from(["time", *PRICES, "volume"]))
    cell = table.rows[row][table.position(name)]
    place = draw(st.integers(0, len(cell) - 1))
    character = draw(st.sampled_from("0123456789.-+: eT"))
    table.set_cell(row, name, cell[:place] + character + cell[place + 1 :])


@damages_cells(ACCEPTED)
def prices_with_many_digits(draw: Draw, table: Table) -> None:
    """Prices on no tick grid; the reader must return the float nearest to the text."""
    for row in range(len(table.rows)):
        price = f"{draw(st.integers(1, 10**6))}.{draw(st.integers(0, 10**25)):025d}"
        for name in PRICES:
            table.set_cell(row, name, price)


# times

INVALID_TIMES = ["", "now", "today", "NaT", "null", "2024", "2024-03", "15:01", "03/04/2024 15:01"]
INVALID_TIMES += ["2024-03-04 24:00", "2024-13-04 15:01", "2024-02-30 15:01", "2024-03-04 15:60"]
INVALID_TIMES += [
    "2024-03-04 15:01:00 CST",
    "4 Mar 2024 15:01",
    "2024-03-04 15:01+25:00",
    "0",
    "\0",
]
FAR_TIMES = ["9999-12-31 00:00", "0001-01-01 00:00", "1600-01-01 00:00", "2300-01-01 00:00"]
FAR_TIMES += ["1950-01-02 00:00", "2070-01-02 00:00", "2262-04-11 23:47:16.9", "1677-09-21 00:12"]

register_values("an invalid time", REFUSED, ["time"], INVALID_TIMES)
register_values(
    "a number among times", REFUSED, ["time"], ["1709564460", "45355.625", "20240304", "1.7e9"]
)
register_values("one time without a zone", REFUSED, ["time"], ["2024-03-04 15:01", "2024-03-04"])


@damages_cells(REFUSED)
def one_time_beyond_the_calendar(draw: Draw, table: Table) -> None:
    """The first or last row, so that times may still increase."""
    time = draw(st.sampled_from(FAR_TIMES))
    table.set_cell(draw(st.sampled_from([0, -1])), "time", f"{time}Z")


@damages_cells(REFUSED)
def all_times_beyond_the_calendar(draw: Draw, table: Table) -> None:
    year = draw(st.sampled_from([1200, 1677, 1700, 1958, 2067, 2199, 2262, 2500, 9998]))
    table.set_column(
        "time", [f"{year}-03-04 15:{minute:02d}Z" for minute in range(len(table.rows))]
    )


@damages_cells(ACCEPTED)
def times_with_fractions_of_a_second(draw: Draw, table: Table) -> None:
    fraction = draw(st.integers(1, 10**9 - 1))
    table.set_column(
        "time", [f"{time:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z" for time in table.times()]
    )


@damages_cells(ACCEPTED)
def times_with_different_offsets(draw: Draw, table: Table) -> None:
    rng = random.Random(draw(st.binary(min_size=6, max_size=6)))
    zones = [timezone(timedelta(minutes=15 * rng.randint(-48, 48))) for _ in table.rows]
    pairs = zip(table.times(), zones, strict=True)
    table.set_column(
        "time", [f"{time.astimezone(zone):%Y-%m-%d %H:%M:%S%z}" for time, zone in pairs]
    )


@damages_cells(ACCEPTED)
def times_in_different_formats(draw: Draw, table: Table) -> None:
    spellings = ["%Y-%m-%d %H:%M:%SZ", "%Y-%m-%dT%H:%M+0000", "%Y%m%dT%H%M%SZ", "%Y/%m/%d %H:%MZ"]
    spellings += ["%Y-%m-%d %H:%M:%S.0 +00:00", " %Y-%m-%d %H:%M+00 ", "%Y%m%d %H%MZ"]
    table.set_column(
        "time", [f"{time:{draw(st.sampled_from(spellings))}}" for time in table.times()]
    )


@damages_cells(REFUSED)
def no_zone_in_file_or_settings(_: Draw, table: Table) -> None:
    table.set_column("time", [f"{time:%Y-%m-%d %H:%M:%S}" for time in table.times()])


@damages_cells(ACCEPTED)
def zone_only_in_the_settings(draw: Draw, table: Table) -> ReadSettings:
    """In UTC, or in a zone without daylight saving time."""
    table.set_column("time", [f"{time:%Y-%m-%d %H:%M:%S}" for time in table.times()])
    return ReadSettings(timezone=draw(st.sampled_from(["UTC", "Asia/Tokyo", "Etc/GMT+6"])))


@damages_cells(BY_HAND)
def local_times_around_a_clock_change(draw: Draw, table: Table) -> ReadSettings:
    """Chicago times every five minutes, before and within the ambiguous or skipped hour."""
    day = draw(st.sampled_from(["2024-11-03", "2024-03-10", "2007-11-04", "1998-10-25"]))
    first = draw(st.integers(0, 35))
    minutes = [5 * (first + row) for row in range(len(table.rows))]
    table.set_column(
        "time", [f"{day} {minute // 60:02d}:{minute % 60:02d}:00" for minute in minutes]
    )
    return ReadSettings(timezone="America/Chicago")


@damages_cells(REFUSED)
def ambiguous_hour_written_twice(draw: Draw, table: Table) -> ReadSettings:
    """A vendor that writes local times writes the hour of the clock change twice."""
    minutes = sorted(draw(st.lists(st.integers(60, 119), min_size=1, max_size=8, unique=True)))
    texts = [f"2024-11-03 {minute // 60:02d}:{minute % 60:02d}" for minute in minutes] * 2
    table.rows = [list(table.rows[0]) for _ in texts]
    table.set_column("time", texts)
    return ReadSettings(timezone="America/Chicago")


@damages_cells(ACCEPTED, undone=True)
def seconds_since_1970(draw: Draw, table: Table) -> ReadSettings:
    """Or milli-, micro- or nanoseconds, as an integer or a decimal."""
    unit = draw(st.sampled_from([1, 10**3, 10**6, 10**9]))
    ending = draw(st.sampled_from(["", ".0"]))
    table.set_column("time", [f"{int(time.timestamp()) * unit}{ending}" for time in table.times()])
    return ReadSettings(timezone="UTC")


@damages_cells(REFUSED)
def spreadsheet_day_numbers(_: Draw, table: Table) -> ReadSettings:
    start = datetime(1899, 12, 30, tzinfo=UTC)
    table.set_column(
        "time", [f"{(time - start) / timedelta(days=1):.6f}" for time in table.times()]
    )
    return ReadSettings(timezone="UTC")


@damages_cells(IF_READ, undone=True)
def american_dates_without_a_format(_: Draw, table: Table) -> ReadSettings:
    table.set_column("time", [f"{time:%m/%d/%Y %H:%M}" for time in table.times()])
    return ReadSettings(timezone="UTC")


@damages_cells(ACCEPTED)
def dates_with_their_format(draw: Draw, table: Table) -> ReadSettings:
    formats = [
        "%m/%d/%Y %H:%M",
        "%d.%m.%Y %H:%M:%S",
        "%Y%m%d %H%M%S",
        "%Y%m%d%H%M",
        "%b %d %Y %H:%M",
    ]
    pattern = draw(st.sampled_from(formats))
    table.set_column("time", [f"{time:{pattern}}" for time in table.times()])
    return ReadSettings(timezone="UTC", time_format=pattern)


@damages_cells(REFUSED)
def dates_in_another_format_than_set(draw: Draw, table: Table) -> ReadSettings:
    table.set_column("time", [f"{time:%Y-%m-%d %H:%M}" for time in table.times()])
    pattern = draw(
        st.sampled_from(["%m/%d/%Y %H:%M", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y%m%d%H%M"])
    )
    return ReadSettings(timezone="UTC", time_format=pattern)


@damages_cells(REFUSED)
def leading_zeros_lost(draw: Draw, table: Table) -> ReadSettings:
    """A writer that took 000930 for a number wrote 930."""
    minute = draw(st.integers(1, 50))
    texts = [f"20240304 {int(f'00{minute + row:02d}00')}" for row in range(len(table.rows))]
    table.set_column("time", texts)
    return ReadSettings(timezone="UTC", time_format="%Y%m%d %H%M%S")


@damages_cells(ACCEPTED)
def separate_date_and_time_columns(draw: Draw, table: Table) -> ReadSettings:
    day = draw(st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%Y/%m/%d"]))
    add_column(table, "Date", "")
    table.set_column("Date", [f"{time:{day}}" for time in table.times()])
    table.set_column("time", [f"{time:%H:%M}" for time in table.times()])
    return ReadSettings(timezone="UTC")


# columns


@damages_cells(REFUSED)
def missing_column(draw: Draw, table: Table) -> None:
    position = table.position(draw(st.sampled_from(["time", *PRICES, "volume"])))
    for row in [table.header, *table.rows]:
        del row[position]


@damages_cells(IF_READ, undone=True)
def column_with_an_unknown_name(draw: Draw, table: Table) -> None:
    position = table.position(draw(st.sampled_from(["time", *PRICES, "volume"])))
    table.header[position] = draw(
        st.sampled_from(["settle", "", "open_interest", "price", "\ufeffx", "\0"])
    )


@damages_cells(REFUSED)
def repeated_column(draw: Draw, table: Table) -> None:
    name = draw(st.sampled_from(["time", *PRICES, "volume", "contract"]))
    again = {"time": "Timestamp", "close": "Last", "contract": "Symbol"}.get(name, name.upper())
    position = table.position(name)
    for row in table.rows:
        row.append(row[position])
    table.header.append(draw(st.sampled_from([name, again, f" {name} "])))


@damages_cells(ACCEPTED)
def unused_columns(draw: Draw, table: Table) -> None:
    """With any content; the names may repeat."""
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["trades", "trades", "vwap", "open_interest", "Unnamed: 0"]))
        add_column(
            table, name, draw(st.sampled_from(["", "nan", "a, b", '6" pipe', "é", "-1", "="]))
        )


@damages_cells(ACCEPTED)
def known_names_in_another_order(draw: Draw, table: Table) -> None:
    names = {"time": "Date Time", "open": "O", "high": " High", "low": "LOW ", "close": "Last"}
    names |= {"volume": "Vol", "contract": "Symbol", "vix": "VIX Close"}
    order = draw(st.permutations(range(len(table.header))))
    table.header = [names.get(name, name) for name in table.header]
    table.header = [table.header[position] for position in order]
    table.rows = [[row[position] for position in order] for row in table.rows]


# contracts and sessions

MISSING_CODES = ["", " ", "nan", "NaN", "None", "null", "NULL", "N/A", "#N/A", "<NA>"]
register_values("a contract is missing", REFUSED, ["contract"], MISSING_CODES)
register_values(
    "an unprintable contract code", REFUSED, ["contract"], ["ES\tH40", "\0", "ES\x1bH40"]
)
register_values("an unknown session", ACCEPTED, ["session"], ["", "night", "RTH?", "\t", "9:30"])


@damages_cells(BY_HAND)
def unusual_contract_codes(draw: Draw, table: Table) -> None:
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
    table.set_column("contract", [draw(st.sampled_from(codes)) for _ in table.rows])


@damages_cells(REFUSED)
def two_spellings_of_a_contract(draw: Draw, table: Table) -> None:
    pairs = [("ESH40", "ESH40 "), ("ESH40", "esh40"), ("ESH40", "ESH2040"), ("mine", " Mine")]
    one, other = draw(st.sampled_from(pairs))
    table.set_column("contract", [one] * (len(table.rows) - 1) + [other])


@damages_cells(REFUSED)
def contracts_of_two_products(draw: Draw, table: Table) -> None:
    other = draw(st.sampled_from(["NQH40", "CLF41", "6EZ40"]))
    table.set_column("contract", ["ESH40"] * (len(table.rows) - 1) + [other])
