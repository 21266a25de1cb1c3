"""A CSV file as columns of the types asked for, with nothing inferred from what they look like.

| in the file | is |
|---|---|
| lines that end in LF, CRLF or CR; a byte-order mark of UTF-8 | read alike |
| a line without a single character | skipped, not counted as a row |
| a quoted value | the value without its marks; a doubled mark is one; it holds no line break |
| a line with more or fewer values than the header | an error |
| bytes that are not UTF-8 | an error in a column that is read, of no concern in another |
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from robust_fin.errors import SchemaError
from robust_fin.progress import Advance, shown_progress

CODES = pa.dictionary(pa.int32(), pa.string())
_BLOCK = 8 << 20  # bytes a thread parses at once
_FIRST = 1 << 20  # bytes read before the parser asks, among them the header
_LF, _CR = 10, 13


def csv_headers(path: Path, compression: str | None) -> list[str]:
    """The values of the first line that holds any."""
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        pyarrow.csv.open_csv(_Lines(stream)) as reader,
    ):
        return list(reader.schema.names)


def csv_table(path: Path, compression: str | None, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """Columns of a file, by header, each of the type given: text, codes or numbers.

    An empty cell is a missing number; of a text it is a text of no characters.

    Raises:
        SchemaError: a value runs over the end of its line.
    """
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        shown_progress(f"reading {path.name}", total=_size(path, compression)) as advance,
    ):
        lines = _Lines(stream, advance)
        table = pyarrow.csv.read_csv(
            lines, read_options=_READ_OPTIONS, convert_options=_convert(columns)
        )
    _check_lines(path, compression, lines=lines.count, rows=table.num_rows)
    return table


def csv_batches(
    path: Path, compression: str | None, columns: Mapping[str, pa.DataType]
) -> Iterator[pa.RecordBatch]:
    """What `csv_table` reads, some megabytes at a time.

    Raises:
        SchemaError: a value runs over the end of its line; told after the last batch.
    """
    rows = 0
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        shown_progress(f"reading {path.name}", total=_size(path, compression)) as advance,
    ):
        lines = _Lines(stream, advance)
        for batch in pyarrow.csv.open_csv(
            lines, read_options=_READ_OPTIONS, convert_options=_convert(columns)
        ):
            rows += batch.num_rows
            yield batch
    _check_lines(path, compression, lines=lines.count, rows=rows)


_READ_OPTIONS = pyarrow.csv.ReadOptions(block_size=_BLOCK)


def _size(path: Path, compression: str | None) -> int | None:
    """Bytes to be parsed, where the file's size tells."""
    return path.stat().st_size if compression is None else None


def _convert(columns: Mapping[str, pa.DataType]) -> pyarrow.csv.ConvertOptions:
    return pyarrow.csv.ConvertOptions(
        column_types=columns, include_columns=list(columns), null_values=[""]
    )


class _Lines:
    """A stream of bytes that counts the lines which hold any, as it is read, and ends the last one.

    A quotation mark without its partner swallows line after line into one value, perhaps of a
    column that is not read at all. Only the count of rows tells. A header that no line end follows
    would be no header.
    """

    closed = False

    def __init__(self, stream: pa.NativeFile, advance: Advance | None = None) -> None:
        self.count = 0
        self._advance = advance
        self._stream, self._ahead = stream, stream.read(_FIRST)
        self._at_start = True

    def read(self, size: int) -> bytes:
        piece, self._ahead = self._ahead, self._stream.read(size) if self._ahead else b""
        if piece and not self._ahead:
            piece += b"\n"  # beyond the last line end it is an empty line
        if self._advance is not None:
            self._advance(len(piece))
        if piece:
            marks = np.frombuffer(piece, dtype=np.uint8)
            ends = (marks == _LF) | (marks == _CR)
            starts = ~ends
            starts[0] &= self._at_start
            starts[1:] &= ends[:-1]
            self.count += int(np.count_nonzero(starts))
            self._at_start = bool(ends[-1])
        return piece


def _check_lines(path: Path, compression: str | None, *, lines: int, rows: int) -> None:
    if lines - 1 == rows:
        return
    raise SchemaError(
        f"{path.name} has {lines - 1} lines after its header but {rows} rows: a value that begins "
        f"with a quotation mark runs over the end of its line{_odd_line(path, compression)}. Close "
        "the mark or take it out"
    )


def _odd_line(path: Path, compression: str | None) -> str:
    """Where the first line is whose quotation marks do not pair."""
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        io.TextIOWrapper(stream, encoding="utf-8", errors="replace") as text,
    ):
        for number, line in enumerate(text, start=1):
            if line.count('"') % 2:
                return f", first in line {number}: {line[:80]!r}"
    return ""
