"""Parquet files spoilt in their types and in their bytes.

These kinds join those of `tests.market.damage`.
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

from tests.market.by_hand import Bar, Reading, iso, read_cells
from tests.market.damage import (
    ACCEPTED,
    BY_HAND,
    IF_READ,
    PRICES,
    REFUSED,
    UNKNOWN,
    Draw,
    Table,
    Thrown,
    nothing,
    packed,
    register,
    valid_table,
)

NUMBERS = (*PRICES, "volume")
Columns = dict[str, pa.Array]


def typed(table: Table) -> Columns:
    """Columns as a good writer types them."""
    times = [when for when, _ in map(iso, table.column("time"))]
    columns = {"time": pa.array(times, pa.timestamp("us", "UTC"))}
    columns |= {name: pa.array(list(map(float, table.column(name)))) for name in NUMBERS}
    return columns | {"contract": pa.array(table.column("contract"))}


def written(table: pa.Table | Columns, **options: Any) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(
        table if isinstance(table, pa.Table) else pa.table(table), out, **options
    )
    return out.getvalue()


def meant(columns: Columns, reading: Reading) -> tuple[list[Bar], bool]:
    """What the cells mean that were written."""
    lists = [column.to_pylist() for column in columns.values()]
    return read_cells(list(columns), list(zip(*lists, strict=True)), reading)


def columnar(
    fate: str, *, unreadable: bool = False, undone: bool = False
) -> Callable[[Callable[[Draw, Columns], Reading | None]], None]:
    """Register a way to change typed columns; it may return settings to read with."""

    def keep(change: Callable[[Draw, Columns], Reading | None]) -> None:
        def make(draw: Draw) -> Thrown:
            columns = typed(valid_table(draw))
            before = dict(columns)
            reading = change(draw, columns) or Reading()
            name = draw(st.sampled_from(["es.parquet", "es.pq", "es.parquet.gz"]))
            truth = nothing if fate == REFUSED else partial(meant, columns, reading)
            if undone:
                truth = partial(meant, before, Reading())
            return Thrown(name, packed(name, written(columns)), reading, truth)

        make.__name__ = change.__name__
        register(fate, unreadable=unreadable, undone=undone)(make)

    return keep


def spoilt_cell(draw: Draw, column: pa.Array, value: Any) -> pa.Array:
    values = column.to_pylist()
    values[draw(st.integers(0, len(values) - 1))] = value
    return pa.array(values, column.type)


# types that mean the same


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
def stamps_of_other_units_and_zones(draw: Draw, columns: Columns) -> None:
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    zone = draw(st.sampled_from(["UTC", "America/Chicago", "+05:30", "Asia/Tokyo"]))
    columns["time"] = columns["time"].cast(pa.timestamp(unit, zone))


@columnar(ACCEPTED)
def stamps_without_zone_and_one_set(draw: Draw, columns: Columns) -> Reading:
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    columns["time"] = columns["time"].cast(pa.timestamp(unit))
    return Reading(timezone=draw(st.sampled_from(["UTC", "Asia/Tokyo", "Etc/GMT+6"])))


@columnar(ACCEPTED)
def codes_of_other_types(draw: Draw, columns: Columns) -> None:
    rows = len(columns["time"])
    makers = [
        lambda: columns["contract"].dictionary_encode(),
        lambda: columns["contract"].cast(pa.large_string()),
        lambda: columns["contract"].cast(pa.string_view()),
        lambda: pa.array([202403] * rows, draw(st.sampled_from([pa.int32(), pa.uint64()]))),
    ]
    columns["contract"] = draw(st.sampled_from(makers))()


@columnar(ACCEPTED)
def a_vix_with_nulls(draw: Draw, columns: Columns) -> None:
    kind = draw(st.sampled_from([pa.float64(), pa.float32(), pa.decimal128(9, 4), pa.null()]))
    known = st.sampled_from([None, Decimal("15.5")] if pa.types.is_decimal(kind) else [None, 15.5])
    vix = [None if kind == pa.null() else draw(known) for _ in columns["time"]]
    columns["vix"] = pa.array(vix, kind)


@register(ACCEPTED, unreadable=False)
def a_zone_that_nobody_knows(draw: Draw) -> Thrown:
    """The stamps of Parquet are in UTC whatever their zone is called."""
    columns = typed(valid_table(draw))
    name = draw(st.sampled_from(["Mars/Base", "CST", "Central Standard Time", "x" * 300]))
    odd = columns | {"time": columns["time"].cast(pa.int64()).cast(pa.timestamp("us", name))}
    return Thrown("es.parquet", written(odd), Reading(), partial(meant, columns, Reading()))


@register(ACCEPTED, unreadable=False)
def a_date_and_a_time_of_day(draw: Draw) -> Thrown:
    columns = typed(valid_table(draw))
    times = columns["time"].to_pylist()
    clock = draw(
        st.sampled_from([pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")])
    )
    day = draw(st.sampled_from([pa.date32(), pa.date64(), pa.string(), pa.timestamp("ms")]))
    dates = pa.array([when.date() for when in times])
    pair = {"Date": dates.cast(day), "time": pa.array([when.time() for when in times]).cast(clock)}
    truth = partial(meant, columns, Reading())
    return Thrown("es.parquet", written(columns | pair), Reading(timezone="UTC"), truth)


@register(ACCEPTED, unreadable=False)
def many_row_groups(draw: Draw) -> Thrown:
    """Some of them without rows."""
    columns = typed(valid_table(draw))
    table, out = pa.table(columns), io.BytesIO()
    with pyarrow.parquet.ParquetWriter(out, table.schema) as file:
        for row in range(len(table)):
            file.write_table(table.slice(row, 1))
            if draw(st.booleans()):
                file.write_table(table.slice(0, 0))
    return Thrown("es.parquet", out.getvalue(), Reading(), partial(meant, columns, Reading()))


@columnar(ACCEPTED)
def columns_of_other_types_that_are_not_read(_: Draw, columns: Columns) -> None:
    rows = len(columns["time"])
    columns["nested"] = pa.array([{"close": 1.0, "time": "x"}] * rows)
    columns["close.last"] = pa.array([b"\xff\xfe"] * rows)


# types that mean nothing, and missing cells


@columnar(REFUSED)
def a_number_of_a_type_that_is_none(draw: Draw, columns: Columns) -> None:
    rows, name = len(columns["time"]), draw(st.sampled_from(NUMBERS))
    kinds = [[True] * rows, [[1.0]] * rows, [{"a": 1.0}] * rows, [b"5000.25"] * rows]
    kinds += [[timedelta(1)] * rows, [datetime(2024, 3, 4).date()] * rows, [None] * rows]
    columns[name] = pa.array(draw(st.sampled_from(kinds)))


@columnar(REFUSED)
def a_stamp_of_a_type_that_is_none(draw: Draw, columns: Columns) -> Reading:
    rows = len(columns["time"])
    kinds = [[True] * rows, [["2024-03-04"]] * rows, [b"2024-03-04 15:01Z"] * rows, [None] * rows]
    kinds += [[timedelta(row) for row in range(rows)], [{"a": "2024-03-04"}] * rows]
    kinds += [[datetime(2024, 3, 4, 1, row).time() for row in range(rows)]]
    columns["time"] = pa.array(draw(st.sampled_from(kinds)))
    return Reading(timezone="UTC")


@columnar(REFUSED)
def a_code_of_a_type_that_is_none(draw: Draw, columns: Columns) -> None:
    rows = len(columns["time"])
    kinds = [[["ESH40"]] * rows, [{"a": "ESH40"}] * rows, [b"ESH40"] * rows, [None] * rows]
    columns[draw(st.sampled_from(["contract", "session"]))] = pa.array(
        draw(st.sampled_from(kinds[:3]))
    )
    if draw(st.booleans()):
        columns["contract"] = pa.array(kinds[3])


@columnar(REFUSED)
def a_null(draw: Draw, columns: Columns) -> None:
    name = draw(st.sampled_from(["time", *NUMBERS, "contract"]))
    columns[name] = spoilt_cell(draw, columns[name], None)


@columnar(IF_READ, undone=True)
def numbers_for_stamps(draw: Draw, columns: Columns) -> Reading:
    """Since 1970, in any unit, of any type."""
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    ticks = columns["time"].cast(pa.timestamp(unit, "UTC")).cast(pa.int64())
    columns["time"] = ticks.cast(
        draw(st.sampled_from([pa.int64(), pa.uint64(), pa.float64()])), safe=False
    )
    return Reading(timezone="UTC")


@columnar(REFUSED)
def stamps_without_zone_and_none_set(draw: Draw, columns: Columns) -> None:
    columns["time"] = columns["time"].cast(
        pa.timestamp(draw(st.sampled_from(["s", "ms", "us", "ns"])))
    )


@columnar(REFUSED)
def stamps_beyond_the_calendar(draw: Draw, columns: Columns) -> Reading:
    """As where seconds are taken for milliseconds, or the other way round; to the last bit."""
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    edge = draw(st.sampled_from([-(2**63) + 1, 2**63 - 20, 2**62, -(2**62)]))
    edge = edge // 2000 if unit == "s" else edge  # Parquet keeps seconds as milliseconds
    ticks = pa.array([edge + row for row in range(len(columns["time"]))], pa.int64())
    columns["time"] = ticks.cast(pa.timestamp(unit, draw(st.sampled_from(["UTC", None]))))
    return Reading(timezone=draw(st.sampled_from(["UTC", "Asia/Tokyo", "America/Chicago"])))


@columnar(REFUSED)
def a_date_beside_a_number(draw: Draw, columns: Columns) -> Reading:
    """Whole numbers keep no leading zeros: 930 may be 9:30 or 0:09:30."""
    times = columns["time"].to_pylist()
    pattern = draw(st.sampled_from(["%H%M", "%H%M%S"]))
    columns["date"] = pa.array([int(f"{when:%Y%m%d}") for when in times])
    columns["time"] = pa.array([int(f"{when:{pattern}}") for when in times])
    return Reading(timezone="UTC", time_format=draw(st.sampled_from([None, f"%Y%m%d {pattern}"])))


@columnar(REFUSED, unreadable=True)
def text_that_is_no_unicode(draw: Draw, columns: Columns) -> None:
    name = draw(st.sampled_from(["time", "close", "contract", "session"]))
    raw = pa.array([b"\xff\xfe"] * len(columns["time"]))
    columns[name] = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@register(REFUSED, unreadable=False)
def a_column_twice_in_parquet(draw: Draw) -> Thrown:
    columns = typed(valid_table(draw))
    name = draw(st.sampled_from(list(columns)))
    table = pa.Table.from_arrays([*columns.values(), columns[name]], [*columns, name])
    return Thrown("es.parquet", written(table), Reading(), nothing)


@register(REFUSED, unreadable=False)
def no_rows_or_no_columns_in_parquet(draw: Draw) -> Thrown:
    table = pa.table(typed(valid_table(draw)))
    lost = draw(st.sampled_from(["time", *NUMBERS]))
    empty = [table.slice(0, 0), table.select([])]
    poor = draw(st.sampled_from([table.drop_columns(lost)] * 6 + empty))
    return Thrown("es.parquet", written(poor), Reading(), nothing)


@register(BY_HAND, unreadable=False)
def stamps_of_96_bits(draw: Draw) -> Thrown:
    """Some writers still use them; they reach further than nanoseconds of 64 bits."""
    columns = typed(valid_table(draw))
    year = draw(st.sampled_from([1000, 1650, 1955, 2000, 2024, 2071, 2300, 2608, 9999]))
    times = [datetime(year, 3, 4, 15, row, tzinfo=UTC) for row in range(len(columns["time"]))]
    columns["time"] = pa.array(times, pa.timestamp("us", "UTC"))
    days = [(when - datetime(1970, 1, 1, tzinfo=UTC)).days + 2_440_588 for when in times]
    nanos = [(15 * 60 + row) * 60 * 10**9 for row in range(len(times))]
    wanted = b"".join(struct.pack("<qi", *pair) for pair in zip(nanos, days, strict=True))
    near = columns | {
        "time": pa.array(
            [datetime(2024, 3, 4, 15, row) for row in range(len(times))], pa.timestamp("us")
        )
    }
    plain = {
        "compression": "none",
        "use_dictionary": False,
        "use_deprecated_int96_timestamps": True,
    }
    content = written(near, **plain)
    there = b"".join(struct.pack("<qi", nano, 2_460_374) for nano in nanos)
    assert content.count(there) == 1
    content = content.replace(there, wanted)
    reading = Reading(timezone="UTC")
    return Thrown("es.parquet", content, reading, partial(meant, columns, reading))


# bytes


@register(BY_HAND, unreadable=True)
def a_price_in_other_bytes(draw: Draw) -> Thrown:
    """The eight bytes of a price turned round, or those of something that is no price."""
    columns = typed(valid_table(draw))
    name = draw(st.sampled_from(PRICES))
    marked = 5000.0 + draw(st.integers(1, 10**6)) / 2**21
    columns[name] = spoilt_cell(draw, columns[name], marked)
    old = struct.pack("<d", marked)
    content = written(columns, compression="none", use_dictionary=False, write_statistics=False)
    assert content.count(old) == 1
    values = [float("nan"), float("inf"), -marked, 0.0, 5e-324, marked + 1]
    new = draw(st.sampled_from([old[::-1], *(struct.pack("<d", value) for value in values)]))
    cells = [
        struct.unpack("<d", new)[0] if one == marked else one for one in columns[name].to_pylist()
    ]
    columns[name] = pa.array(cells)
    truth = partial(meant, columns, Reading())
    return Thrown("es.parquet", content.replace(old, new), Reading(), truth)


@register(REFUSED, unreadable=True)
def parquet_cut(draw: Draw) -> Thrown:
    """At its end, as where a copy stopped, or at its beginning."""
    content = written(typed(valid_table(draw)))
    place = draw(st.integers(1, len(content) - 1))
    cut = draw(st.sampled_from([content[:place], content[place:]]))
    return Thrown("es.parquet", cut, Reading(), nothing)


@register(IF_READ, unreadable=True)
def bytes_of_checked_pages_changed(draw: Draw) -> Thrown:
    """Where the writer left checksums, no change of a value gets through."""
    columns = typed(valid_table(draw))
    how = draw(st.sampled_from(["none", "snappy", "zstd"]))
    content = bytearray(written(columns, compression=how, write_page_checksum=True))
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for _ in range(draw(st.integers(1, 3))):
        content[draw(st.integers(4, len(content) - footer - 1))] ^= draw(st.integers(1, 255))
    return Thrown("es.parquet", bytes(content), Reading(), partial(meant, columns, Reading()))


@register(UNKNOWN, unreadable=True)
def bytes_of_parquet_changed(draw: Draw) -> Thrown:
    """Anywhere, its description of itself included."""
    how = draw(st.sampled_from(["none", "snappy"]))
    content = bytearray(written(typed(valid_table(draw)), compression=how))
    for _ in range(draw(st.integers(1, 5))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return Thrown("es.parquet", bytes(content), Reading(), nothing)
