"""Read columns of a CSV with pyarrow, in one table or in batches."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from robust_fin.errors import SchemaError
from robust_fin.market.intake.sniffing import CsvForm, sniff_csv
from robust_fin.runtime.terminal import Advance, progress_bar

PLAIN = CsvForm()
_BLOCK = 8 << 20  # bytes that a thread parses at once
_FIRST_READ = 1 << 20  # bytes of a CSV read before parsing starts; they contain the header
_TAIL = 4096  # last bytes of the file, which may have footers
_MAX_FOOTERS = 5
_UTF8 = ("utf-8", "utf-8-sig")
_LF, _CR = 10, 13


def csv_headers(path: Path, compression: str | None) -> list[str]:
    """Return the values of the first line that is not empty."""
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        pyarrow.csv.open_csv(_LineCounter(stream)) as reader,
    ):
        return list(reader.schema.names)


def sniff_file(path: Path, compression: str | None, *, columns: Mapping[str, str]) -> CsvForm:
    """Infer the form of a CSV from its first megabyte; see `sniff_csv`."""
    with pa.input_stream(str(path), compression=compression) as stream:
        return sniff_csv(stream.read(_FIRST_READ), columns=columns)


def csv_table(
    path: Path,
    compression: str | None,
    columns: Mapping[str, pa.DataType],
    *,
    form: CsvForm = PLAIN,
    footers: list[str] | None = None,
) -> pa.Table:
    """Read columns of a CSV; an empty number is null, an empty text is "".

    Args:
        path: the file.
        compression: "gzip", "zstd" or None.
        columns: type of each column to read, by header.
        form: form of the file.
        footers: lines of prose below the rows are left out and appended to it.

    Raises:
        SchemaError: a quoted value runs over the end of its line.
    """
    footers = [] if footers is None else footers
    with _open_lines(path, compression, form) as lines:
        table = pyarrow.csv.read_csv(lines, **_options(form, columns, footers))
    _check_line_count(path, compression, form, lines, table.num_rows, footers)
    return table


def csv_batches(
    path: Path,
    compression: str | None,
    columns: Mapping[str, pa.DataType],
    *,
    form: CsvForm = PLAIN,
    footers: list[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Read what `csv_table` reads, a few megabytes at a time.

    Raises:
        SchemaError: a quoted value runs over the end of its line; raised after the last batch.
    """
    rows, footers = 0, [] if footers is None else footers
    with _open_lines(path, compression, form) as lines:
        for batch in pyarrow.csv.open_csv(lines, **_options(form, columns, footers)):
            rows += batch.num_rows
            yield batch
    _check_line_count(path, compression, form, lines, rows, footers)


@contextmanager
def _open_lines(path: Path, compression: str | None, form: CsvForm) -> Iterator["_LineCounter"]:
    size = path.stat().st_size if compression is None else None
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        progress_bar(f"reading {path.name}", total=size) as advance,
    ):
        if form.encoding not in _UTF8:
            stream = pa.transcoding_input_stream(stream, form.encoding, "utf-8")
        yield _LineCounter(stream, advance)


def _options(
    form: CsvForm, columns: Mapping[str, pa.DataType], footers: list[str]
) -> dict[str, object]:
    """Return the options of pyarrow that read a form; the last lines may be prose."""

    def handle(row: pyarrow.csv.InvalidRow) -> str:
        """Skip a footer; all other lines with a wrong number of cells are errors."""
        if len(footers) < _MAX_FOOTERS and row.actual_columns == 1 and form.is_footer(row.text):
            footers.append(row.text)
            return "skip"
        return "error"

    names = {} if form.is_plain else {"column_names": form.names, "skip_rows": form.first_row}
    return {
        "read_options": pyarrow.csv.ReadOptions(block_size=_BLOCK, **names),
        "parse_options": pyarrow.csv.ParseOptions(
            delimiter=form.delimiter, invalid_row_handler=handle
        ),
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types=columns, include_columns=list(columns), null_values=[""]
        ),
    }


class _LineCounter:
    """Byte stream that counts non-empty lines as it is read, and ends the last line.

    An unpaired quotation mark merges many lines into one value, perhaps in a column that is not
    read. Comparing the number of lines with the number of rows reveals it. pyarrow ignores a header
    without a line end, so the last line always gets one.
    """

    closed = False

    def __init__(self, stream: pa.NativeFile, advance: Advance | None = None) -> None:
        self.count = 0
        self.tail = b""
        self._advance = advance
        self._stream, self._ahead = stream, stream.read(_FIRST_READ)
        self._at_line_start = True

    def read(self, size: int) -> bytes:
        chunk, self._ahead = self._ahead, self._stream.read(size) if self._ahead else b""
        if chunk and not self._ahead:
            chunk += b"\n"  # after a line end this is an empty line
        if self._advance is not None:
            self._advance(len(chunk))
        if chunk:
            self.tail = (self.tail + chunk)[-_TAIL:] if len(chunk) < _TAIL else chunk[-_TAIL:]
            chars = np.frombuffer(chunk, dtype=np.uint8)
            ends = (chars == _LF) | (chars == _CR)
            starts = ~ends
            starts[0] &= self._at_line_start
            starts[1:] &= ends[:-1]
            self.count += int(np.count_nonzero(starts))
            self._at_line_start = bool(ends[-1])
        return chunk


def _check_line_count(
    path: Path,
    compression: str | None,
    form: CsvForm,
    lines: _LineCounter,
    rows: int,
    footers: Sequence[str],
) -> None:
    """Raise if a quoted value runs over several lines, or a line of prose is not at the end."""
    last = [line.strip() for line in lines.tail.decode("utf-8", "replace").splitlines()]
    last = [line for line in last if line][len(last) and -len(footers) :] if footers else []
    misplaced = [line for line in footers if line.strip() not in last]
    if misplaced:
        raise SchemaError(
            f"{path.name} has lines that are no rows between its rows, such as "
            f"{misplaced[0][:80]!r}. Remove them"
        )
    found = lines.count - form.lines_above - len(footers)
    if found == rows:
        return
    raise SchemaError(
        f"{path.name} has {found} lines after its header but {rows} rows: a quoted value runs "
        f"over the end of its line{_find_unpaired_quote(path, compression)}. Close the quotation "
        "mark or remove it"
    )


def _find_unpaired_quote(path: Path, compression: str | None) -> str:
    """Describe the first line with an odd number of quotation marks."""
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        io.TextIOWrapper(stream, encoding="utf-8", errors="replace") as text,
    ):
        for number, line in enumerate(text, start=1):
            if line.count('"') % 2:
                return f", first in line {number}: {line[:80]!r}"
    return ""
