"""Read columns of a CSV, of a Parquet file or of a folder of Parquet files."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from robust_fin.errors import SchemaError, SourceError
from robust_fin.market.columns import header_roles, match_headers, unread_columns
from robust_fin.market.intake.forms import Layout
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


_COLUMN_BUFFER = 1 << 20  # bytes of a Parquet column read at once when reading in blocks
_BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())
# Verify the checksums that the writer stored. 96-bit timestamps would overflow in nanoseconds.
_PARQUET_OPTIONS = {"page_checksum_verification": True, "coerce_int96_timestamp_unit": "us"}


def _decompress(path: Path, compression: str | None) -> pa.BufferReader:
    with pa.input_stream(str(path), compression=compression) as stream:
        return pa.BufferReader(stream.read_buffer())


def read_parquet(
    path: Path, compression: str | None, columns: Mapping[str, str]
) -> tuple[pa.Table, Layout]:
    """Read the schema's columns of a Parquet file, and those of source.columns."""
    content = _decompress(path, compression)
    with pyarrow.parquet.ParquetFile(content, **_PARQUET_OPTIONS) as file:
        headers = _parquet_headers(file, path.name, columns=columns)
        table = _read_row_groups(file, path.name, columns=list(headers.values()))
        unread = unread_columns(file.schema_arrow.names, headers)
    layout = Layout("parquet", columns=headers, unread=unread)
    return _normalise_zones(
        table.select(list(headers.values())).rename_columns(list(headers))
    ), layout


def read_folder(path: Path, columns: Mapping[str, str]) -> tuple[pa.Table, Layout]:
    """Read the Parquet files below a folder in the order of their names.

    Folders named key=value, as Hive writes them, give a column each.
    """
    files = [file for file in path.rglob("*") if file.suffix in (".parquet", ".pq")]
    if not files:
        raise SourceError(f"{path} is a folder without .parquet files; set source.path to a file")
    parts, layout = [], Layout("folder")
    for file in sorted(files, key=lambda file: _natural_order(str(file.relative_to(path)))):
        folders = [part for part in file.relative_to(path).parts[:-1] if "=" in part]
        keys = dict(part.split("=", 1) for part in folders)
        table, layout = read_parquet(file, None, columns)
        for key, header in _contract_keys(list(keys)).items():
            if key not in table.column_names:
                code = pa.array([keys[header]] * table.num_rows, pa.string())
                table = table.append_column(key, code)
                layout = replace(layout, columns={**layout.columns, key: header})
        parts.append(_decoded(table))
    return pa.concat_tables(parts, promote_options="permissive"), replace(layout, kind="folder")


def _contract_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the key of the folders that names a contract, as schema name -> key."""
    found = [key for key in keys if "contract" in header_roles([key])]
    return {"contract": found[0]} if found else {}


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which part-2 comes before part-10."""
    pieces = re.split(r"(\d+)", name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def _decoded(table: pa.Table) -> pa.Table:
    """Replace dictionary columns by their values, so that parts can be joined."""
    for place, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            values = table.column(place).cast(column.type.value_type)
            table = table.set_column(place, column.name, values)
    return table


def _read_row_groups(
    file: pyarrow.parquet.ParquetFile, name: str, *, columns: Sequence[str]
) -> pa.Table:
    """Read a file by row group, to show progress."""
    count = file.metadata.num_row_groups
    if not count:
        return file.read(columns=columns)
    tables = []
    with progress_bar(f"reading {name}", total=file.metadata.num_rows) as advance:
        for number in range(count):
            tables.append(file.read_row_group(number, columns=columns))
            advance(tables[-1].num_rows)
    return pa.concat_tables(tables)


def parquet_batches(
    path: Path, compression: str | None, *, rows: int, columns: Mapping[str, str]
) -> tuple[Iterator[pa.RecordBatch], Layout]:
    """Read what `read_parquet` reads, in batches of `rows` rows or fewer."""
    # Parquet's metadata is at the end, so a compressed file is decompressed first.
    source = path if compression is None else _decompress(path, compression)
    with pyarrow.parquet.ParquetFile(source, **_PARQUET_OPTIONS) as file:
        headers = _parquet_headers(file, path.name, columns=columns)
        unread = unread_columns(file.schema_arrow.names, headers)

    def batches() -> Iterator[pa.RecordBatch]:
        with (
            pyarrow.parquet.ParquetFile(
                source, pre_buffer=False, buffer_size=_COLUMN_BUFFER, **_PARQUET_OPTIONS
            ) as file,
            progress_bar(f"reading {path.name}", total=file.metadata.num_rows) as advance,
        ):
            for batch in file.iter_batches(batch_size=rows, columns=list(headers.values())):
                batch = batch.select(list(headers.values())).rename_columns(list(headers))
                yield _normalise_zones(batch)
                advance(batch.num_rows)

    return batches(), Layout("parquet", columns=headers, unread=unread)


def _parquet_headers(
    file: pyarrow.parquet.ParquetFile, origin: str, *, columns: Mapping[str, str]
) -> dict[str, str]:
    schema = file.schema_arrow
    stamps = [column.name for column in schema if pa.types.is_timestamp(column.type)]
    if len(stamps) == 1 and "time" not in header_roles(schema.names) | set(columns):
        columns = {"time": stamps[0], **columns}  # such as an index without a name
    headers = match_headers(schema.names, origin=origin, columns=columns)
    for name, header in headers.items():
        kind = schema.field(header).type
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_nested(inner) or inner in _BINARY or pa.types.is_fixed_size_binary(inner):
            raise SchemaError(
                f"{origin}: the column {header!r} has the type {kind}, which is not supported for "
                f"{name}; write timestamps, numbers or text"
            )
    return headers


def _normalise_zones(table: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
    """Validate the table and cast zoned timestamps to UTC, whatever their zone is called."""
    table.validate(full=True)
    for position, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz is not None:
            utc = table.column(position).cast(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(position, field.name, utc)
    return table
