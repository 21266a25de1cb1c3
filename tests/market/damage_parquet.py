"""Parquet files with damaged types or bytes.

Importing this module adds these kinds to `tests.market.damage.KINDS`.
"""

import io
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

from tests.market.by_hand import Bar, ReadSettings, parse_iso, read_cells
from tests.market.damage import (
    ACCEPTED,
    BY_HAND,
    IF_READ,
    PRICES,
    REFUSED,
    UNKNOWN,
    DamagedFile,
    Draw,
    Table,
    compressed,
    not_a_table,
    register,
    valid_table,
)

NUMBERS = (*PRICES, "volume")
Columns = dict[str, pa.Array]


def typed_columns(table: Table) -> Columns:
    """Return the columns with the types that a good writer uses."""
    times = [time for time, _ in map(parse_iso, table.column("time"))]
    columns = {"time": pa.array(times, pa.timestamp("us", "UTC"))}
    columns |= {name: pa.array(list(map(float, table.column(name)))) for name in NUMBERS}
    return columns | {"contract": pa.array(table.column("contract"))}


def parquet_bytes(table: pa.Table | Columns, **options: Any) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(
        table if isinstance(table, pa.Table) else pa.table(table), out, **options
    )
    return out.getvalue()


def bars_of_columns(columns: Columns, reading: ReadSettings) -> tuple[list[Bar], bool]:
    """Return the bars of the columns by the reference reader."""
    lists = [column.to_pylist() for column in columns.values()]
    return read_cells(list(columns), list(zip(*lists, strict=True)), reading)


def columnar(
    expectation: str, *, unreadable: bool = False, undone: bool = False
) -> Callable[[Callable[[Draw, Columns], ReadSettings | None]], None]:
    """Register the decorated function, which changes typed columns, under its name.

    Args:
        expectation: what the reader must do.
        unreadable: the reader may raise SourceError.
        undone: the reader must return the bars of the columns before the change.
    """

    def decorate(change: Callable[[Draw, Columns], ReadSettings | None]) -> None:
        def make(draw: Draw) -> DamagedFile:
            columns = typed_columns(valid_table(draw))
            before = dict(columns)
            reading = change(draw, columns) or ReadSettings()
            name = draw(st.sampled_from(["es.parquet", "es.pq", "es.parquet.gz"]))
            expected = (
                not_a_table
                if expectation == REFUSED
                else partial(bars_of_columns, columns, reading)
            )
            if undone:
                expected = partial(bars_of_columns, before, ReadSettings())
            return DamagedFile(name, compressed(name, parquet_bytes(columns)), reading, expected)

        make.__name__ = change.__name__
        register(expectation, unreadable=unreadable, undone=undone)(make)

    return decorate


def with_cell(draw: Draw, column: pa.Array, value: Any) -> pa.Array:
    values = column.to_pylist()
    values[draw(st.integers(0, len(values) - 1))] = value
    return pa.array(values, column.type)


# other types with the same meaning


def other_types(prices: list[float]) -> list[pa.Array]:
    decimals, texts = [Decimal(str(price)) for price in prices], list(map(str, prices))
    return [
        pa.array(prices, pa.float32()),
        pa.array(decimals, pa.decimal128(12, 2)),
        pa.array(decimals, pa.decimal256(50, 10)),
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(texts).dictionary_encode(),
        pa.array(prices).dictionary_encode(),
    ]


@columnar(ACCEPTED)
def numbers_of_other_types(draw: Draw, columns: Columns) -> None:
    for name in NUMBERS:
        columns[name] = draw(st.sampled_from(other_types(columns[name].to_pylist())))
    kind = draw(st.sampled_from([pa.int16(), pa.int32(), pa.uint64(), pa.float32()]))
    columns["volume"] = pa.array(range(len(columns["time"])), kind)


@columnar(ACCEPTED)
def times_of_other_units_and_zones(draw: Draw, columns: Columns) -> None:
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    zone = draw(st.sampled_from(["UTC", "America/Chicago", "+05:30", "Asia/Tokyo"]))
    columns["time"] = columns["time"].cast(pa.timestamp(unit, zone))


@columnar(ACCEPTED)
def times_without_zone_and_a_zone_set(draw: Draw, columns: Columns) -> ReadSettings:
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    columns["time"] = columns["time"].cast(pa.timestamp(unit))
    return ReadSettings(timezone=draw(st.sampled_from(["UTC", "Asia/Tokyo", "Etc/GMT+6"])))


@columnar(ACCEPTED)
def contract_codes_of_other_types(draw: Draw, columns: Columns) -> None:
    rows = len(columns["time"])
    makers = [
        lambda: columns["contract"].dictionary_encode(),
        lambda: columns["contract"].cast(pa.large_string()),
        lambda: columns["contract"].cast(pa.string_view()),
        lambda: pa.array([202403] * rows, draw(st.sampled_from([pa.int32(), pa.uint64()]))),
    ]
    columns["contract"] = draw(st.sampled_from(makers))()


@columnar(ACCEPTED)
def vix_with_nulls(draw: Draw, columns: Columns) -> None:
    kind = draw(st.sampled_from([pa.float64(), pa.float32(), pa.decimal128(9, 4), pa.null()]))
    known = st.sampled_from([None, Decimal("15.5")] if pa.types.is_decimal(kind) else [None, 15.5])
    vix = [None if kind == pa.null() else draw(known) for _ in columns["time"]]
    columns["vix"] = pa.array(vix, kind)


@register(ACCEPTED, unreadable=False)
def unknown_time_zone(draw: Draw) -> DamagedFile:
    """Timestamps of Parquet are in UTC, whatever the name of their zone."""
    columns = typed_columns(valid_table(draw))
    name = draw(st.sampled_from(["Mars/Base", "CST", "Central Standard Time", "x" * 300]))
    odd = columns | {"time": columns["time"].cast(pa.int64()).cast(pa.timestamp("us", name))}
    return DamagedFile(
        "es.parquet",
        parquet_bytes(odd),
        ReadSettings(),
        partial(bars_of_columns, columns, ReadSettings()),
    )


@register(ACCEPTED, unreadable=False)
def date_and_time_of_day(draw: Draw) -> DamagedFile:
    columns = typed_columns(valid_table(draw))
    times = columns["time"].to_pylist()
    clock = draw(
        st.sampled_from([pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")])
    )
    day = draw(st.sampled_from([pa.date32(), pa.date64(), pa.string(), pa.timestamp("ms")]))
    dates = pa.array([time.date() for time in times])
    pair = {"Date": dates.cast(day), "time": pa.array([time.time() for time in times]).cast(clock)}
    expected = partial(bars_of_columns, columns, ReadSettings())
    return DamagedFile(
        "es.parquet", parquet_bytes(columns | pair), ReadSettings(timezone="UTC"), expected
    )


@register(ACCEPTED, unreadable=False)
def many_row_groups(draw: Draw) -> DamagedFile:
    """Some row groups are empty."""
    columns = typed_columns(valid_table(draw))
    table, out = pa.table(columns), io.BytesIO()
    with pyarrow.parquet.ParquetWriter(out, table.schema) as file:
        for row in range(len(table)):
            file.write_table(table.slice(row, 1))
            if draw(st.booleans()):
                file.write_table(table.slice(0, 0))
    return DamagedFile(
        "es.parquet",
        out.getvalue(),
        ReadSettings(),
        partial(bars_of_columns, columns, ReadSettings()),
    )


@columnar(ACCEPTED)
def unused_columns_of_other_types(_: Draw, columns: Columns) -> None:
    rows = len(columns["time"])
    columns["nested"] = pa.array([{"close": 1.0, "time": "x"}] * rows)
    columns["close.last"] = pa.array([b"\xff\xfe"] * rows)


# invalid types and missing cells


@columnar(REFUSED)
def number_of_an_invalid_type(draw: Draw, columns: Columns) -> None:
    rows, name = len(columns["time"]), draw(st.sampled_from(NUMBERS))
    kinds = [[True] * rows, [[1.0]] * rows, [{"a": 1.0}] * rows, [b"5000.25"] * rows]
    kinds += [[timedelta(1)] * rows, [datetime(2024, 3, 4).date()] * rows, [None] * rows]
    columns[name] = pa.array(draw(st.sampled_from(kinds)))


@columnar(REFUSED)
def time_of_an_invalid_type(draw: Draw, columns: Columns) -> ReadSettings:
    rows = len(columns["time"])
    kinds = [[True] * rows, [["2024-03-04"]] * rows, [b"2024-03-04 15:01Z"] * rows, [None] * rows]
    kinds += [[timedelta(row) for row in range(rows)], [{"a": "2024-03-04"}] * rows]
    kinds += [[datetime(2024, 3, 4, 1, row).time() for row in range(rows)]]
    columns["time"] = pa.array(draw(st.sampled_from(kinds)))
    return ReadSettings(timezone="UTC")


@columnar(REFUSED)
def contract_code_of_an_invalid_type(draw: Draw, columns: Columns) -> None:
    rows = len(columns["time"])
    kinds = [[["ESH40"]] * rows, [{"a": "ESH40"}] * rows, [b"ESH40"] * rows, [None] * rows]
    columns[draw(st.sampled_from(["contract", "session"]))] = pa.array(
        draw(st.sampled_from(kinds[:3]))
    )
    if draw(st.booleans()):
        columns["contract"] = pa.array(kinds[3])


@columnar(REFUSED)
def one_null(draw: Draw, columns: Columns) -> None:
    name = draw(st.sampled_from(["time", *NUMBERS, "contract"]))
    columns[name] = with_cell(draw, columns[name], None)


@columnar(IF_READ, undone=True)
def times_as_numbers(draw: Draw, columns: Columns) -> ReadSettings:
    """Since 1970, in any unit, of any type."""
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    ticks = columns["time"].cast(pa.timestamp(unit, "UTC")).cast(pa.int64())
    columns["time"] = ticks.cast(
        draw(st.sampled_from([pa.int64(), pa.uint64(), pa.float64()])), safe=False
    )
    return ReadSettings(timezone="UTC")


@columnar(REFUSED)
def times_without_zone_and_no_zone_set(draw: Draw, columns: Columns) -> None:
    columns["time"] = columns["time"].cast(
        pa.timestamp(draw(st.sampled_from(["s", "ms", "us", "ns"])))
    )


@columnar(REFUSED)
def times_beyond_the_calendar_in_parquet(draw: Draw, columns: Columns) -> ReadSettings:
    """Up to the largest integers, as when seconds are taken for milliseconds or the reverse."""
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    edge = draw(st.sampled_from([-(2**63) + 1, 2**63 - 20, 2**62, -(2**62)]))
    edge = edge // 2000 if unit == "s" else edge  # Parquet keeps seconds as milliseconds
    ticks = pa.array([edge + row for row in range(len(columns["time"]))], pa.int64())
    columns["time"] = ticks.cast(pa.timestamp(unit, draw(st.sampled_from(["UTC", None]))))
    return ReadSettings(timezone=draw(st.sampled_from(["UTC", "Asia/Tokyo", "America/Chicago"])))


@columnar(REFUSED)
def date_and_time_as_integers(draw: Draw, columns: Columns) -> ReadSettings:
    """Integers lose leading zeros: 930 may be 9:30 or 0:09:30."""
    times = columns["time"].to_pylist()
    pattern = draw(st.sampled_from(["%H%M", "%H%M%S"]))
    columns["date"] = pa.array([int(f"{time:%Y%m%d}") for time in times])
    columns["time"] = pa.array([int(f"{time:{pattern}}") for time in times])
    return ReadSettings(
        timezone="UTC", time_format=draw(st.sampled_from([None, f"%Y%m%d {pattern}"]))
    )


@columnar(REFUSED, unreadable=True)
def text_that_is_not_unicode(draw: Draw, columns: Columns) -> None:
    name = draw(st.sampled_from(["time", "close", "contract", "session"]))
    raw = pa.array([b"\xff\xfe"] * len(columns["time"]))
    columns[name] = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@register(REFUSED, unreadable=False)
def repeated_column_in_parquet(draw: Draw) -> DamagedFile:
    columns = typed_columns(valid_table(draw))
    name = draw(st.sampled_from(list(columns)))
    table = pa.Table.from_arrays([*columns.values(), columns[name]], [*columns, name])
    return DamagedFile("es.parquet", parquet_bytes(table), ReadSettings(), not_a_table)


@register(REFUSED, unreadable=False)
def no_rows_or_no_columns_in_parquet(draw: Draw) -> DamagedFile:
    table = pa.table(typed_columns(valid_table(draw)))
    lost = draw(st.sampled_from(["time", *NUMBERS]))
    empty = [table.slice(0, 0), table.select([])]
    poor = draw(st.sampled_from([table.drop_columns(lost)] * 6 + empty))
    return DamagedFile("es.parquet", parquet_bytes(poor), ReadSettings(), not_a_table)


@register(BY_HAND, unreadable=False)
def int96_times(draw: Draw) -> DamagedFile:
    """Some writers still use INT96, which covers more years than 64-bit nanoseconds."""
    columns = typed_columns(valid_table(draw))
    year = draw(st.sampled_from([1000, 1650, 1955, 2000, 2024, 2071, 2300, 2608, 9999]))
    times = [datetime(year, 3, 4, 15, row, tzinfo=UTC) for row in range(len(columns["time"]))]
    columns["time"] = pa.array(times, pa.timestamp("us", "UTC"))
    days = [(time - datetime(1970, 1, 1, tzinfo=UTC)).days + 2_440_588 for time in times]
    nanos = [(15 * 60 + row) * 60 * 10**9 for row in range(len(times))]
    wanted = b"".join(struct.pack("<qi", *pair) for pair in zip(nanos, days, strict=True))
    placeholder = columns | {
        "time": pa.array(
            [datetime(2024, 3, 4, 15, row) for row in range(len(times))], pa.timestamp("us")
        )
    }
    plain = {
        "compression": "none",
        "use_dictionary": False,
        "use_deprecated_int96_timestamps": True,
    }
    content = parquet_bytes(placeholder, **plain)
    stored = b"".join(struct.pack("<qi", nano, 2_460_374) for nano in nanos)
    assert content.count(stored) == 1
    content = content.replace(stored, wanted)
    reading = ReadSettings(timezone="UTC")
    return DamagedFile("es.parquet", content, reading, partial(bars_of_columns, columns, reading))


# bytes


@register(BY_HAND, unreadable=True)
def changed_bytes_of_a_price(draw: Draw) -> DamagedFile:
    """The eight bytes of a price are reversed, or replaced by those of an invalid price."""
    columns = typed_columns(valid_table(draw))
    name = draw(st.sampled_from(PRICES))
    marked = 5000.0 + draw(st.integers(1, 10**6)) / 2**21
    columns[name] = with_cell(draw, columns[name], marked)
    old = struct.pack("<d", marked)
    content = parquet_bytes(
        columns, compression="none", use_dictionary=False, write_statistics=False
    )
    assert content.count(old) == 1
    values = [float("nan"), float("inf"), -marked, 0.0, 5e-324, marked + 1]
    new = draw(st.sampled_from([old[::-1], *(struct.pack("<d", value) for value in values)]))
    cells = [
        struct.unpack("<d", new)[0] if one == marked else one for one in columns[name].to_pylist()
    ]
    columns[name] = pa.array(cells)
    expected = partial(bars_of_columns, columns, ReadSettings())
    return DamagedFile("es.parquet", content.replace(old, new), ReadSettings(), expected)


@register(REFUSED, unreadable=True)
def truncated_parquet(draw: Draw) -> DamagedFile:
    """The end is missing, as after an interrupted copy, or the beginning."""
    content = parquet_bytes(typed_columns(valid_table(draw)))
    place = draw(st.integers(1, len(content) - 1))
    cut = draw(st.sampled_from([content[:place], content[place:]]))
    return DamagedFile("es.parquet", cut, ReadSettings(), not_a_table)


@register(IF_READ, unreadable=True)
def changed_bytes_of_pages_with_checksums(draw: Draw) -> DamagedFile:
    """With page checksums, no changed value may be read."""
    columns = typed_columns(valid_table(draw))
    how = draw(st.sampled_from(["none", "snappy", "zstd"]))
    content = bytearray(parquet_bytes(columns, compression=how, write_page_checksum=True))
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for _ in range(draw(st.integers(1, 3))):
        content[draw(st.integers(4, len(content) - footer - 1))] ^= draw(st.integers(1, 255))
    return DamagedFile(
        "es.parquet",
        bytes(content),
        ReadSettings(),
        partial(bars_of_columns, columns, ReadSettings()),
    )


@register(UNKNOWN, unreadable=True)
def changed_bytes_of_parquet(draw: Draw) -> DamagedFile:
    """Any bytes, including those of the metadata."""
    how = draw(st.sampled_from(["none", "snappy"]))
    content = bytearray(parquet_bytes(typed_columns(valid_table(draw)), compression=how))
    for _ in range(draw(st.integers(1, 5))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return DamagedFile("es.parquet", bytes(content), ReadSettings(), not_a_table)
