"""Bar files spoilt as files: the text of a CSV, the bytes, the compression.

These kinds join those of `tests.market.damage`.
"""

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hypothesis import strategies as st

from tests.market.by_hand import Bar, Reading, RefusedError, read_csv
from tests.market.damage import (
    ACCEPTED,
    BY_HAND,
    IF_READ,
    PRICES,
    REFUSED,
    Draw,
    Table,
    Thrown,
    in_csv,
    in_parquet,
    nothing,
    packed,
    register,
    valid_table,
)

ENDINGS = ("es.csv", "es.csv.gz", "es.csv.zst")
NUMBERS = (*PRICES, "volume")


# the text of a CSV


def text(
    fate: str, *, unreadable: bool = False, undone: bool = False
) -> Callable[[Callable[[Draw, Table], bytes]], None]:
    """Register a way to write a table as the bytes of a CSV.

    With `undone` the file means what the table meant before.
    """

    def keep(write: Callable[[Draw, Table], bytes]) -> None:
        def make(draw: Draw) -> Thrown:
            table = valid_table(draw)
            before = in_csv(table)
            content = write(draw, table)
            name = draw(st.sampled_from(ENDINGS))
            truth = partial(read_csv, before if undone else content, Reading())
            return Thrown(name, packed(name, content), Reading(), truth)

        make.__name__ = write.__name__
        register(fate, unreadable=unreadable, undone=undone)(make)

    return keep


def quoted(table: Table) -> bytes:
    lines = [table.header, *table.rows]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\r\n" for line in lines).encode()


def some_place(draw: Draw, content: Sequence[Any], first: int = 0) -> int:
    return int(draw(st.integers(first, len(content) - 1)))


@text(ACCEPTED)
def byte_order_mark(_: Draw, table: Table) -> bytes:
    return b"\xef\xbb\xbf" + in_csv(table)


@text(ACCEPTED)
def other_line_ends(draw: Draw, table: Table) -> bytes:
    lines = in_csv(table).split(b"\n")[:-1]
    ends = st.sampled_from([b"\r\n", b"\r", b"\n"])
    same = draw(ends)
    return b"".join(line + (same if draw(st.booleans()) else draw(ends)) for line in lines)


@text(ACCEPTED)
def empty_lines(draw: Draw, table: Table) -> bytes:
    lines = in_csv(table).split(b"\n")
    for _ in range(draw(st.integers(1, 4))):
        lines.insert(some_place(draw, lines), draw(st.sampled_from([b"", b"\r", b"\r\r"])))
    return b"\n".join(lines)


@text(ACCEPTED)
def no_last_line_end(_: Draw, table: Table) -> bytes:
    return in_csv(table)[:-1]


@text(ACCEPTED)
def quoted_values(_: Draw, table: Table) -> bytes:
    return quoted(table)


@text(BY_HAND, unreadable=True)
def last_line_cut(draw: Draw, table: Table) -> bytes:
    content = in_csv(table)
    last = content.rindex(b"\n", 0, len(content) - 1) + 1
    return content[: draw(st.integers(last, len(content) - 2))]


@text(BY_HAND, unreadable=True)
def cut_anywhere(draw: Draw, table: Table) -> bytes:
    content = in_csv(table)
    return content[: draw(st.integers(1, len(content) - 2))]


@text(REFUSED, unreadable=True)
def a_row_of_another_length(draw: Draw, table: Table) -> bytes:
    row = table.rows[some_place(draw, table.rows)]
    wrong = [row[:-1], [*row, ""], [*row, *row], row[:1], [" "]]
    row[:] = draw(st.sampled_from(wrong))
    return in_csv(table)


@text(REFUSED, unreadable=True)
def a_comma_after_every_row(_: Draw, table: Table) -> bytes:
    header, *rows = in_csv(table).split(b"\n")
    return b"\n".join([header, *(row + b"," for row in rows if row)]) + b"\n"


@text(REFUSED, unreadable=True)
def a_quotation_mark_that_is_not_closed(draw: Draw, table: Table) -> bytes:
    """Rows below vanish into one value, in a column that is read or in one that is not."""
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
def a_line_break_inside_a_value(draw: Draw, table: Table) -> bytes:
    name = draw(st.sampled_from(["contract", "remark"]))
    table.header.append("remark")
    for row in table.rows:
        row.append("as usual")
    table.put(some_place(draw, table.rows), name, draw(st.sampled_from(["a\nb", "a\r\nb", "\r"])))
    return quoted(table)


@text(REFUSED)
def a_header_and_no_rows(draw: Draw, table: Table) -> bytes:
    table.header += [f"x{draw(st.integers(0, 10**6))}"]
    table.rows = []
    return in_csv(table).rstrip(b"\n") + draw(st.sampled_from([b"", b"\n", b"\n\n"]))


@text(REFUSED, unreadable=True)
def nothing_but_line_ends(draw: Draw, _: Table) -> bytes:
    marks = [b"", b"\n", b"\r\n", b"\xef\xbb\xbf", b" ", b"\0", b"\t"]
    return b"".join(draw(st.lists(st.sampled_from(marks), max_size=40)))


@text(REFUSED, unreadable=True)
def no_header(_: Draw, table: Table) -> bytes:
    return in_csv(table).split(b"\n", 1)[1]


@text(ACCEPTED, undone=True)
def the_header_again(draw: Draw, table: Table) -> bytes:
    """As where files were put one below the other."""
    table.rows.insert(draw(st.integers(1, len(table.rows))), table.header)
    return in_csv(table)


@text(ACCEPTED, undone=True)
def words_above_the_header(draw: Draw, table: Table) -> bytes:
    words = [b"# made by a vendor\n", b"sep=,\n", b"ES minute bars\n\n", b'"a note, quoted"\n']
    return draw(st.sampled_from(words)) + in_csv(table)


@text(IF_READ, unreadable=True, undone=True)
def words_below_the_rows(draw: Draw, table: Table) -> bytes:
    words = [b"Total,,,,,,\n", b"-- end --\n", b"\x1a", b"\0\0\0\0"]
    return in_csv(table) + draw(st.sampled_from(words))


@text(IF_READ, unreadable=True, undone=True)
def another_separator(draw: Draw, table: Table) -> bytes:
    return in_csv(table).replace(b",", draw(st.sampled_from([b";", b"\t", b"|", b" "])))


@text(IF_READ, unreadable=True, undone=True)
def another_encoding(draw: Draw, table: Table) -> bytes:
    """UTF-16, or Latin-1 in a header that is read."""
    if draw(st.booleans()):
        return in_csv(table).decode().encode(draw(st.sampled_from(["utf-16", "utf-16-le"])))
    return in_csv(table).replace(b"close", b"cl\xf4se")


@text(BY_HAND, unreadable=True)
def bytes_of_the_text_changed(draw: Draw, table: Table) -> bytes:
    content = bytearray(in_csv(table))
    for _ in range(draw(st.integers(1, 3))):
        content[some_place(draw, content)] = draw(
            st.sampled_from(b'0123456789,.-:+"\n\r TZ\0\xffE')
        )
    return bytes(content)


@text(BY_HAND, unreadable=True)
def bytes_of_the_text_lost(draw: Draw, table: Table) -> bytes:
    content = in_csv(table)
    first = some_place(draw, content)
    return content[:first] + content[first + draw(st.integers(1, 60)) :] or b"\n"


@text(REFUSED, unreadable=True)
def a_line_without_end(draw: Draw, table: Table) -> bytes:
    mark = draw(st.sampled_from([b"x", b" ", b"T ", b"9", b",", b'"']))
    return in_csv(table) + mark * draw(st.integers(10_000, 200_000))


# the file


@register(REFUSED, unreadable=True)
def garbage(draw: Draw) -> Thrown:
    names = [*ENDINGS, "es.parquet", "es.parquet.gz", "es.pq"]
    content = draw(st.binary(min_size=0, max_size=400))
    wrapped = draw(
        st.sampled_from([content, b"PAR1" + content + b"PAR1", b"\x1f\x8b\x08" + content])
    )
    return Thrown(draw(st.sampled_from(names)), wrapped, Reading(), nothing)


@register(REFUSED, unreadable=True)
def another_kind_than_the_ending_says(draw: Draw) -> Thrown:
    table = valid_table(draw)
    plain, columnar = in_csv(table), in_parquet(table)
    pairs = [("es.parquet", plain), ("es.csv", columnar), ("es.csv.gz", plain), ("es.txt", plain)]
    pairs += [("es.csv", gzip.compress(plain)), ("es.csv.zst", gzip.compress(plain))]
    pairs += [("es.parquet.zst", columnar), ("es.xlsx", plain), ("es", plain)]
    name, content = draw(st.sampled_from(pairs))
    return Thrown(name, content, Reading(), nothing)


@register(REFUSED, unreadable=True)
def compressed_and_cut(draw: Draw) -> Thrown:
    name = draw(st.sampled_from([*ENDINGS[1:], "es.parquet.gz", "es.parquet.zst"]))
    table = valid_table(draw)
    content = packed(name, in_csv(table) if ".csv" in name else in_parquet(table))
    return Thrown(name, content[: draw(st.integers(1, len(content) - 1))], Reading(), nothing)


@register(IF_READ, unreadable=True)
def bytes_of_a_gz_changed(draw: Draw) -> Thrown:
    """Where gzip of the standard library still unpacks it, the checksum holds."""
    content = bytearray(gzip.compress(in_csv(valid_table(draw)), mtime=0))
    for _ in range(draw(st.integers(1, 3))):
        content[some_place(draw, content)] ^= draw(st.integers(1, 255))
    packed_text = bytes(content)
    return Thrown("es.csv.gz", packed_text, Reading(), partial(_of_gzip, packed_text))


def _of_gzip(content: bytes) -> tuple[list[Bar], bool]:
    try:
        plain = gzip.decompress(content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise RefusedError("no gzip") from error
    return read_csv(plain, Reading())


@register(BY_HAND, unreadable=True)
def bytes_of_a_zst_changed(draw: Draw) -> Thrown:
    """In the block of a frame that keeps its text as it is and has no checksum."""
    plain = bytearray(in_csv(valid_table(draw)))
    place, mark = some_place(draw, plain), draw(st.integers(0, 255))
    plain[place] = mark
    block = struct.pack("<I", len(plain) << 3 | 1)[:3]  # last, raw, size
    frame = struct.pack("<IBI", 0xFD2FB528, 0b1010_0000, len(plain))  # one segment, 4-byte size
    content = frame + block + bytes(plain)
    truth = partial(read_csv, bytes(plain), Reading())
    return Thrown("es.csv.zst", content, Reading(), truth)


@register(ACCEPTED, unreadable=False)
def gz_or_zst_in_two_parts(draw: Draw) -> Thrown:
    """Both formats may be put one behind the other; nothing of the second part may be lost."""
    name, plain = draw(st.sampled_from(ENDINGS[1:])), in_csv(valid_table(draw))
    cut = some_place(draw, plain, first=1)
    content = packed(name, plain[:cut]) + packed(name, plain[cut:])
    return Thrown(name, content, Reading(), partial(read_csv, plain, Reading()))
