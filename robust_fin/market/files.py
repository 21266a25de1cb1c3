"""Read a CSV or Parquet file of bars into columns under the schema's names."""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from robust_fin.errors import RobustFinError, SchemaError, SourceError
from robust_fin.market.parsing import NUMBERS, match_headers
from robust_fin.runtime.terminal import Advance, progress_bar

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_CODES = pa.dictionary(pa.int32(), pa.string())
_CSV_OPTIONS = pyarrow.csv.ReadOptions(block_size=8 << 20)  # bytes that a thread parses at once
_FIRST_READ = 1 << 20  # bytes of a CSV read before parsing starts; they contain the header
_COLUMN_BUFFER = 1 << 20  # bytes of a Parquet column read at once when reading in blocks
_BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())
# Verify the checksums that the writer stored. 96-bit timestamps would overflow in nanoseconds.
_PARQUET_OPTIONS = {"page_checksum_verification": True, "coerce_int96_timestamp_unit": "us"}
_LF, _CR = 10, 13


def read_table(path: Path) -> pd.DataFrame:
    """Read the schema's columns of a file.

    Args:
        path: a .csv, .parquet or .pq file, or one of these with .gz or .zst.

    Returns:
        One column for each schema name that the file has. Parquet columns keep their type; CSV
        columns are text, or float64 if all cells are plain numbers.

    Raises:
        SourceError: the file is missing, empty, has another extension, or cannot be parsed.
        SchemaError: a required column is missing, two columns match the same name, or a column has
            an unsupported type.
    """
    kind, compression = _file_kind(path)
    with _name_file_in_errors(path, kind):
        read = _read_csv if kind == ".csv" else _read_parquet
        return _to_pandas(_join_date_and_time(read(path, compression), path.name))


def read_blocks(path: Path, rows: int, *, names: Collection[str] = ()) -> Iterator[pd.DataFrame]:
    """Read a file as `read_table` does, in blocks.

    Args:
        path: a .csv, .parquet or .pq file, or one of these with .gz or .zst.
        rows: rows of a block; the last block may have fewer.
        names: schema columns to read, of those the file has; empty reads all.

    Raises:
        SourceError: the file is missing, empty, has another extension, or cannot be parsed.
        SchemaError: a required column is missing, two columns match the same name, or a column has
            an unsupported type.
    """
    kind, compression = _file_kind(path)
    with _name_file_in_errors(path, kind):
        if kind == ".csv":
            batches = _csv_batches(path, compression, names=names)
        else:
            batches = _parquet_batches(path, compression, rows=rows, names=names)
        for table in _split_rows(batches, rows):
            yield _to_pandas(_join_date_and_time(table, path.name))


def read_texts(path: Path) -> pd.DataFrame:
    """Read all columns of a small CSV as text, with unchanged headers; empty cells are missing.

    Raises:
        SourceError: the file cannot be parsed, or a header occurs twice.
    """
    compression = _COMPRESSION.get(path.suffix.lower())
    with _name_file_in_errors(path, ".csv"):
        headers = csv_headers(path, compression)
        repeated = {header for header in headers if headers.count(header) > 1}
        if repeated:
            raise SourceError(f"{path} has the columns {sorted(repeated)} more than once; keep one")
        table = csv_table(path, compression, dict.fromkeys(headers, pa.string())).to_pandas()
    return table.mask(table == "")


@contextmanager
def _name_file_in_errors(path: Path, kind: str) -> Iterator[None]:
    """Turn errors of pyarrow into a SourceError that names the file."""
    try:
        yield
    except RobustFinError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # includes Unicode and JSON errors
        reason = "".join(char if char.isprintable() else " " for char in str(error)[:500])
        raise SourceError(f"{path} cannot be read as {kind}: {reason}") from error


def _file_kind(path: Path) -> tuple[str, str | None]:
    """Return the extension (.csv, .parquet or .pq) and the compression of a file."""
    if not path.is_file():
        raise SourceError(f"there is no file {path}; set source.path to a CSV or Parquet file")
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty; a bar file has a header and at least one row")
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = _COMPRESSION.get(suffixes[-1]) if suffixes else None
    kind = "".join(suffixes[-2:-1] if compression else suffixes[-1:])
    if kind not in (".csv", ".parquet", ".pq"):
        has = f"has the extension {path.suffix}" if path.suffix else "has no extension"
        raise SourceError(f"{path} {has}; use .csv or .parquet")
    return kind, compression


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    table = table.replace_schema_metadata(None)  # ignore_metadata=True would still parse it
    return table.to_pandas(ignore_metadata=True, date_as_object=False, split_blocks=True)


def csv_headers(path: Path, compression: str | None) -> list[str]:
    """Return the values of the first line that is not empty."""
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        pyarrow.csv.open_csv(_LineCounter(stream)) as reader,
    ):
        return list(reader.schema.names)


def csv_table(path: Path, compression: str | None, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """Read columns of a CSV; an empty number is null, an empty text is "".

    Args:
        path: the file.
        compression: "gzip", "zstd" or None.
        columns: type of each column to read, by header.

    Raises:
        SchemaError: a quoted value runs over the end of its line.
    """
    with _open_lines(path, compression) as lines:
        table = pyarrow.csv.read_csv(
            lines, read_options=_CSV_OPTIONS, convert_options=_convert(columns)
        )
    _check_line_count(path, compression, lines=lines.count, rows=table.num_rows)
    return table


def csv_batches(
    path: Path, compression: str | None, columns: Mapping[str, pa.DataType]
) -> Iterator[pa.RecordBatch]:
    """Read what `csv_table` reads, a few megabytes at a time.

    Raises:
        SchemaError: a quoted value runs over the end of its line; raised after the last batch.
    """
    rows = 0
    with _open_lines(path, compression) as lines:
        for batch in pyarrow.csv.open_csv(
            lines, read_options=_CSV_OPTIONS, convert_options=_convert(columns)
        ):
            rows += batch.num_rows
            yield batch
    _check_line_count(path, compression, lines=lines.count, rows=rows)


@contextmanager
def _open_lines(path: Path, compression: str | None) -> Iterator["_LineCounter"]:
    size = path.stat().st_size if compression is None else None
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        progress_bar(f"reading {path.name}", total=size) as advance,
    ):
        yield _LineCounter(stream, advance)


def _convert(columns: Mapping[str, pa.DataType]) -> pyarrow.csv.ConvertOptions:
    return pyarrow.csv.ConvertOptions(
        column_types=columns, include_columns=list(columns), null_values=[""]
    )


class _LineCounter:
    """Byte stream that counts non-empty lines as it is read, and ends the last line.

    An unpaired quotation mark merges many lines into one value, perhaps in a column that is not
    read. Comparing the number of lines with the number of rows reveals it. pyarrow ignores a header
    without a line end, so the last line always gets one.
    """

    closed = False

    def __init__(self, stream: pa.NativeFile, advance: Advance | None = None) -> None:
        self.count = 0
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
            chars = np.frombuffer(chunk, dtype=np.uint8)
            ends = (chars == _LF) | (chars == _CR)
            starts = ~ends
            starts[0] &= self._at_line_start
            starts[1:] &= ends[:-1]
            self.count += int(np.count_nonzero(starts))
            self._at_line_start = bool(ends[-1])
        return chunk


def _check_line_count(path: Path, compression: str | None, *, lines: int, rows: int) -> None:
    if lines - 1 == rows:
        return
    raise SchemaError(
        f"{path.name} has {lines - 1} lines after its header but {rows} rows: a quoted value runs "
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


def _read_csv(path: Path, compression: str | None) -> pa.Table:
    headers = match_headers(csv_headers(path, compression), origin=path.name)
    texts = _csv_types(headers)
    numbers = {headers[name]: pa.float64() for name in NUMBERS if name in headers}
    try:
        table = csv_table(path, compression, texts | numbers)
    except pa.ArrowInvalid:  # some cell is not a plain number; read the columns as text
        table = csv_table(path, compression, texts)
    return table.rename_columns(list(headers))


def _csv_types(headers: dict[str, str]) -> dict[str, pa.DataType]:
    """Choose text for all columns, so that no type is inferred from other cells."""
    return {
        header: _CODES if name in ("contract", "session") else pa.string()
        for name, header in headers.items()
    }


def _csv_batches(
    path: Path, compression: str | None, *, names: Collection[str]
) -> Iterator[pa.RecordBatch]:
    headers = match_headers(csv_headers(path, compression), origin=path.name)
    headers = _select(headers, names)
    for batch in csv_batches(path, compression, _csv_types(headers)):
        yield batch.rename_columns(list(headers))


def _decompress(path: Path, compression: str | None) -> pa.BufferReader:
    with pa.input_stream(str(path), compression=compression) as stream:
        return pa.BufferReader(stream.read_buffer())


def _read_parquet(path: Path, compression: str | None) -> pa.Table:
    content = _decompress(path, compression)
    with pyarrow.parquet.ParquetFile(content, **_PARQUET_OPTIONS) as file:
        headers = _parquet_headers(file, path.name, names=())
        table = _read_row_groups(file, path.name, columns=list(headers.values()))
    return _normalise_zones(table.select(list(headers.values())).rename_columns(list(headers)))


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


def _parquet_batches(
    path: Path, compression: str | None, *, rows: int, names: Collection[str]
) -> Iterator[pa.RecordBatch]:
    # Parquet's metadata is at the end, so a compressed file is decompressed first.
    source = path if compression is None else _decompress(path, compression)
    with pyarrow.parquet.ParquetFile(
        source, pre_buffer=False, buffer_size=_COLUMN_BUFFER, **_PARQUET_OPTIONS
    ) as file:
        headers = _parquet_headers(file, path.name, names=names)
        total = file.metadata.num_rows
        with progress_bar(f"reading {path.name}", total=total) as advance:
            for batch in file.iter_batches(batch_size=rows, columns=list(headers.values())):
                batch = batch.select(list(headers.values())).rename_columns(list(headers))
                yield _normalise_zones(batch)
                advance(batch.num_rows)


def _parquet_headers(
    file: pyarrow.parquet.ParquetFile, origin: str, *, names: Collection[str]
) -> dict[str, str]:
    schema = file.schema_arrow
    headers = _select(match_headers(schema.names, origin=origin), names)
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


def _select(headers: dict[str, str], names: Collection[str]) -> dict[str, str]:
    """Keep the headers of `names`; "date" comes along with "time"."""
    if not names:
        return headers
    return {n: h for n, h in headers.items() if n in names or (n == "date" and "time" in names)}


def _split_rows(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Regroup batches of any size into tables of `rows` rows."""
    held: list[pa.Table] = []
    count = 0
    for batch in batches:
        held.append(pa.Table.from_batches([batch]))
        count += batch.num_rows
        if count < rows:
            continue
        table = pa.concat_tables(held)
        end = count - count % rows
        for first in range(0, end, rows):
            yield table.slice(first, rows).unify_dictionaries()
        held, count = [table.slice(end)], count - end
    if count:
        yield pa.concat_tables(held).unify_dictionaries()


def _join_date_and_time(table: pa.Table, origin: str) -> pa.Table:
    """Join a date and a time column into one text column."""
    if "date" not in table.column_names:
        return table
    date, clock = table["date"], table["time"]
    if pa.types.is_integer(clock.type) or pa.types.is_floating(clock.type):
        raise SchemaError(
            f"{origin}: the time column beside the date has the type {clock.type}, which keeps no "
            "leading zeros: 930 may mean 9:30 or 0:09:30. Write it as text or as a time of day"
        )
    if pa.types.is_timestamp(date.type):
        date = date.cast(pa.date32())
    texts = (date.cast(pa.string()), clock.cast(pa.string()))
    joined = pyarrow.compute.binary_join_element_wise(*texts, " ")
    return table.set_column(table.column_names.index("time"), "time", joined).drop_columns("date")
