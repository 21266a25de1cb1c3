"""Damaged bar files: the text of a CSV, the bytes, the compression.

Importing this module adds these kinds to `tests.market.damage.KINDS`.
"""

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hypothesis import strategies as st

from tests.market.by_hand import Bar, ReadSettings, RefusedError, read_csv
from tests.market.damage import (
    ACCEPTED,
    BY_HAND,
    IF_READ,
    PRICES,
    REFUSED,
    DamagedFile,
    Draw,
    Table,
    compressed,
    csv_bytes,
    not_a_table,
    parquet_bytes,
    register,
    valid_table,
)

ENDINGS = ("es.csv", "es.csv.gz", "es.csv.zst")
NUMBERS = (*PRICES, "volume")


# the text of a CSV


def text(
    expectation: str, *, unreadable: bool = False, undone: bool = False
) -> Callable[[Callable[[Draw, Table], bytes]], None]:
    """Register the decorated function, which writes a table as a damaged CSV, under its name.

    Args:
        expectation: what the reader must do.
        unreadable: the reader may raise SourceError.
        undone: the reader must return the bars of the table before the damage.
    """

    def decorate(write: Callable[[Draw, Table], bytes]) -> None:
        def make(draw: Draw) -> DamagedFile:
            table = valid_table(draw)
            before = csv_bytes(table)
            content = write(draw, table)
            name = draw(st.sampled_from(ENDINGS))
            expected = partial(read_csv, before if undone else content, ReadSettings())
            return DamagedFile(name, compressed(name, content), ReadSettings(), expected)

        make.__name__ = write.__name__
        register(expectation, unreadable=unreadable, undone=undone)(make)

    return decorate


def quoted_csv(table: Table) -> bytes:
    lines = [table.header, *table.rows]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\r\n" for line in lines).encode()


def draw_index(draw: Draw, content: Sequence[Any], first: int = 0) -> int:
    return int(draw(st.integers(first, len(content) - 1)))


@text(ACCEPTED)
def byte_order_mark(_: Draw, table: Table) -> bytes:
    return b"\xef\xbb\xbf" + csv_bytes(table)


@text(ACCEPTED)
def mixed_line_ends(draw: Draw, table: Table) -> bytes:
    lines = csv_bytes(table).split(b"\n")[:-1]
    ends = st.sampled_from([b"\r\n", b"\r", b"\n"])
    same = draw(ends)
    return b"".join(line + (same if draw(st.booleans()) else draw(ends)) for line in lines)


@text(ACCEPTED)
def empty_lines(draw: Draw, table: Table) -> bytes:
    lines = csv_bytes(table).split(b"\n")
    for _ in range(draw(st.integers(1, 4))):
        lines.insert(draw_index(draw, lines), draw(st.sampled_from([b"", b"\r", b"\r\r"])))
    return b"\n".join(lines)


@text(ACCEPTED)
def no_line_end_after_the_last_row(_: Draw, table: Table) -> bytes:
    return csv_bytes(table)[:-1]


@text(ACCEPTED)
def quoted_values(_: Draw, table: Table) -> bytes:
    return quoted_csv(table)


@text(BY_HAND, unreadable=True)
def truncated_last_line(draw: Draw, table: Table) -> bytes:
    content = csv_bytes(table)
    last = content.rindex(b"\n", 0, len(content) - 1) + 1
    return content[: draw(st.integers(last, len(content) - 2))]


@text(BY_HAND, unreadable=True)
def truncated_text(draw: Draw, table: Table) -> bytes:
    content = csv_bytes(table)
    return content[: draw(st.integers(1, len(content) - 2))]


@text(REFUSED, unreadable=True)
def row_with_too_few_or_too_many_values(draw: Draw, table: Table) -> bytes:
    row = table.rows[draw_index(draw, table.rows)]
    wrong = [row[:-1], [*row, ""], [*row, *row], row[:1], [" "]]
    row[:] = draw(st.sampled_from(wrong))
    return csv_bytes(table)


@text(REFUSED, unreadable=True)
def trailing_comma_in_every_row(_: Draw, table: Table) -> bytes:
    header, *rows = csv_bytes(table).split(b"\n")
    return b"\n".join([header, *(row + b"," for row in rows if row)]) + b"\n"


@text(REFUSED, unreadable=True)
def unclosed_quotation_mark(draw: Draw, table: Table) -> bytes:
    """The value swallows the rows below, in a column that is read or in one that is not."""
    lines = [",".join([*line, "note"]) for line in [table.header, *(r[:7] for r in table.rows)]]
    lines[0] = ",".join([*table.header[:7], "remark"])
    opened = draw(st.integers(1, len(lines) - 2))
    closed = draw(st.integers(opened + 1, len(lines)))
    column = draw(st.sampled_from([6, 7]))
    for row in (opened, closed):
        if row < len(lines):
            cells = lines[row].split(",")
            cells[column] = f'"{cells[column]}' if row == opened else f'{cells[column]}"'
            lines[row] = ",".join(cells)
    return "\n".join([*lines, ""]).encode()


@text(REFUSED)
def line_break_inside_a_value(draw: Draw, table: Table) -> bytes:
    name = draw(st.sampled_from(["contract", "remark"]))
    table.header.append("remark")
    for row in table.rows:
        row.append("as usual")
    table.set_cell(
        draw_index(draw, table.rows), name, draw(st.sampled_from(["a\nb", "a\r\nb", "\r"]))
    )
    return quoted_csv(table)


@text(REFUSED)
def header_without_rows(draw: Draw, table: Table) -> bytes:
    table.header += [f"x{draw(st.integers(0, 10**6))}"]
    table.rows = []
    return csv_bytes(table).rstrip(b"\n") + draw(st.sampled_from([b"", b"\n", b"\n\n"]))


@text(REFUSED, unreadable=True)
def only_blank_lines(draw: Draw, _: Table) -> bytes:
    marks = [b"", b"\n", b"\r\n", b"\xef\xbb\xbf", b" ", b"\0", b"\t"]
    return b"".join(draw(st.lists(st.sampled_from(marks), max_size=40)))


@text(REFUSED, unreadable=True)
def rows_without_a_header(_: Draw, table: Table) -> bytes:
    return csv_bytes(table).split(b"\n", 1)[1]


@text(ACCEPTED, undone=True)
def repeated_header(draw: Draw, table: Table) -> bytes:
    """As in files that were concatenated."""
    table.rows.insert(draw(st.integers(1, len(table.rows))), table.header)
    return csv_bytes(table)


@text(ACCEPTED, undone=True)
def notes_above_the_header(draw: Draw, table: Table) -> bytes:
    words = [b"# made by a vendor\n", b"sep=,\n", b"ES minute bars\n\n", b'"a note, quoted"\n']
    return draw(st.sampled_from(words)) + csv_bytes(table)


@text(IF_READ, unreadable=True, undone=True)
def notes_below_the_rows(draw: Draw, table: Table) -> bytes:
    words = [b"Total,,,,,,\n", b"-- end --\n", b"\x1a", b"\0\0\0\0"]
    return csv_bytes(table) + draw(st.sampled_from(words))


@text(IF_READ, unreadable=True, undone=True)
def another_separator(draw: Draw, table: Table) -> bytes:
    return csv_bytes(table).replace(b",", draw(st.sampled_from([b";", b"\t", b"|", b" "])))


@text(IF_READ, unreadable=True, undone=True)
def another_encoding(draw: Draw, table: Table) -> bytes:
    """UTF-16, or Latin-1 in the header of a required column."""
    if draw(st.booleans()):
        return csv_bytes(table).decode().encode(draw(st.sampled_from(["utf-16", "utf-16-le"])))
    return csv_bytes(table).replace(b"close", b"cl\xf4se")


@text(BY_HAND, unreadable=True)
def changed_bytes_of_the_text(draw: Draw, table: Table) -> bytes:
    content = bytearray(csv_bytes(table))
    for _ in range(draw(st.integers(1, 3))):
        content[draw_index(draw, content)] = draw(
            st.sampled_from(b'0123456789,.-:+"\n\r TZ\0\xffE')
        )
    return bytes(content)


@text(BY_HAND, unreadable=True)
def missing_bytes_of_the_text(draw: Draw, table: Table) -> bytes:
    content = csv_bytes(table)
    first = draw_index(draw, content)
    return content[:first] + content[first + draw(st.integers(1, 60)) :] or b"\n"


@text(REFUSED, unreadable=True)
def very_long_line(draw: Draw, table: Table) -> bytes:
    mark = draw(st.sampled_from([b"x", b" ", b"T ", b"9", b",", b'"']))
    return csv_bytes(table) + mark * draw(st.integers(10_000, 200_000))


# the file


@register(REFUSED, unreadable=True)
def random_bytes(draw: Draw) -> DamagedFile:
    names = [*ENDINGS, "es.parquet", "es.parquet.gz", "es.pq"]
    content = draw(st.binary(min_size=0, max_size=400))
    wrapped = draw(
        st.sampled_from([content, b"PAR1" + content + b"PAR1", b"\x1f\x8b\x08" + content])
    )
    return DamagedFile(draw(st.sampled_from(names)), wrapped, ReadSettings(), not_a_table)


@register(REFUSED, unreadable=True)
def content_that_contradicts_the_file_ending(draw: Draw) -> DamagedFile:
    table = valid_table(draw)
    plain, columnar = csv_bytes(table), parquet_bytes(table)
    pairs = [("es.parquet", plain), ("es.csv", columnar), ("es.csv.gz", plain), ("es.txt", plain)]
    pairs += [
        ("es.csv", gzip.compress(plain, mtime=0)),
        ("es.csv.zst", gzip.compress(plain, mtime=0)),
    ]
    pairs += [("es.parquet.zst", columnar), ("es.xlsx", plain), ("es", plain)]
    name, content = draw(st.sampled_from(pairs))
    return DamagedFile(name, content, ReadSettings(), not_a_table)


@register(REFUSED, unreadable=True)
def truncated_compressed_file(draw: Draw) -> DamagedFile:
    name = draw(st.sampled_from([*ENDINGS[1:], "es.parquet.gz", "es.parquet.zst"]))
    table = valid_table(draw)
    content = compressed(name, csv_bytes(table) if ".csv" in name else parquet_bytes(table))
    return DamagedFile(
        name, content[: draw(st.integers(1, len(content) - 1))], ReadSettings(), not_a_table
    )


@register(IF_READ, unreadable=True)
def changed_bytes_of_a_gz(draw: Draw) -> DamagedFile:
    """Where the gzip module still decompresses the file, its checksum is right."""
    content = bytearray(gzip.compress(csv_bytes(valid_table(draw)), mtime=0))
    for _ in range(draw(st.integers(1, 3))):
        content[draw_index(draw, content)] ^= draw(st.integers(1, 255))
    damaged = bytes(content)
    return DamagedFile("es.csv.gz", damaged, ReadSettings(), partial(_read_gzip, damaged))


def _read_gzip(content: bytes) -> tuple[list[Bar], bool]:
    try:
        plain = gzip.decompress(content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise RefusedError("not a gzip file") from error
    return read_csv(plain, ReadSettings())


@register(BY_HAND, unreadable=True)
def changed_byte_of_a_zst(draw: Draw) -> DamagedFile:
    """A byte in a raw block of a frame without a checksum."""
    plain = bytearray(csv_bytes(valid_table(draw)))
    index, value = draw_index(draw, plain), draw(st.integers(0, 255))
    plain[index] = value
    block = struct.pack("<I", len(plain) << 3 | 1)[:3]  # last, raw, size
    frame = struct.pack("<IBI", 0xFD2FB528, 0b1010_0000, len(plain))  # one segment, 4-byte size
    content = frame + block + bytes(plain)
    expected = partial(read_csv, bytes(plain), ReadSettings())
    return DamagedFile("es.csv.zst", content, ReadSettings(), expected)


@register(ACCEPTED, unreadable=False)
def gz_or_zst_of_two_parts(draw: Draw) -> DamagedFile:
    """Both formats allow concatenation; the second part must not be lost."""
    name, plain = draw(st.sampled_from(ENDINGS[1:])), csv_bytes(valid_table(draw))
    cut = draw_index(draw, plain, first=1)
    content = compressed(name, plain[:cut]) + compressed(name, plain[cut:])
    return DamagedFile(name, content, ReadSettings(), partial(read_csv, plain, ReadSettings()))
