"""A CSV or Parquet file of bars -> the columns that mean something, under the schema's names."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from robust_fin.errors import RobustFinError, SchemaError, SourceError
from robust_fin.market.columns import (
    CODES,
    NUMBERS,
    csv_batches,
    csv_headers,
    csv_table,
    match_headers,
)
from robust_fin.runtime.terminal import progress_bar

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_BUFFER = 1 << 20  # bytes of a column read at once where a file is read in blocks
_BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
# checksums are verified where the writer left them; stamps of 96 bits reach further in microseconds
# than in nanoseconds, which would wrap around
_CAREFUL = {"page_checksum_verification": True, "coerce_int96_timestamp_unit": "us"}


def read_table(path: Path) -> pd.DataFrame:
    """The columns a file holds, chosen by the file's ending, .gz and .zst too.

    Args:
        path: a .csv, .parquet or .pq file.

    Returns:
        One column for each name of the schema that the file has: from Parquet of the type the file
        gives it; from a CSV text, or float64 where all cells are plain numbers.

    Raises:
        SourceError: the file is missing, empty, of another kind, or cannot be parsed.
        SchemaError: a needed column is missing, two columns claim the same name, or one has a type
            that cannot mean what its name says.
    """
    kind, compression = _kind(path)
    with _naming(path, kind):
        read = _read_csv if kind == ".csv" else _read_parquet
        return _to_pandas(_one_stamp(read(path, compression), path.name))


def read_blocks(path: Path, rows: int, *, names: Collection[str] = ()) -> Iterator[pd.DataFrame]:
    """What `read_table` reads, `rows` rows at a time.

    Args:
        path: a .csv, .parquet or .pq file.
        rows: of a block; the last one may have fewer.
        names: columns of the schema wanted, of those the file has; none means all.

    Raises:
        SourceError: the file is missing, empty, of another kind, or cannot be parsed.
        SchemaError: a needed column is missing, two columns claim the same name, or one has a type
            that cannot mean what its name says.
    """
    kind, compression = _kind(path)
    with _naming(path, kind):
        if kind == ".csv":
            batches = _csv_batches(path, compression, names=names)
        else:
            batches = _parquet_batches(path, compression, rows=rows, names=names)
        for table in _cut(batches, rows):
            yield _to_pandas(_one_stamp(table, path.name))


def read_texts(path: Path) -> pd.DataFrame:
    """Every column of a small CSV as text, headers as they are written; an empty cell is missing.

    Raises:
        SourceError: the file cannot be parsed, or has a header twice.
    """
    compression = _COMPRESSED.get(path.suffix.lower())
    with _naming(path, ".csv"):
        headers = csv_headers(path, compression)
        twice = {header for header in headers if headers.count(header) > 1}
        if twice:
            raise SourceError(f"{path} has the columns {sorted(twice)} more than once; keep one")
        table = csv_table(path, compression, dict.fromkeys(headers, pa.string())).to_pandas()
    return table.mask(table == "")


@contextmanager
def _naming(path: Path, kind: str) -> Iterator[None]:
    """Name the file that a library cannot read."""
    try:
        yield
    except RobustFinError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # of text and of JSON are ValueErrors
        said = "".join(mark if mark.isprintable() else " " for mark in str(error)[:500])
        raise SourceError(f"{path} cannot be read as {kind}: {said}") from error


def _kind(path: Path) -> tuple[str, str | None]:
    """What the file's ending says: .csv or .parquet, and how it is compressed."""
    if not path.is_file():
        raise SourceError(f"there is no file {path}; set source.path to a CSV or Parquet file")
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty; a bar file has a header and at least one row")
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    compression = _COMPRESSED.get(endings[-1]) if endings else None
    kind = "".join(endings[-2:-1] if compression else endings[-1:])
    if kind not in (".csv", ".parquet", ".pq"):
        raise SourceError(f"{path} ends in {path.suffix or 'nothing'}; .csv and .parquet are read")
    return kind, compression


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    table = table.replace_schema_metadata(None)  # which even ignored would be parsed
    return table.to_pandas(ignore_metadata=True, date_as_object=False, split_blocks=True)


def _read_csv(path: Path, compression: str | None) -> pa.Table:
    headers = match_headers(csv_headers(path, compression), origin=path.name)
    texts = _csv_types(headers)
    numbers = {headers[name]: pa.float64() for name in NUMBERS if name in headers}
    try:
        table = csv_table(path, compression, texts | numbers)
    except pa.ArrowInvalid:  # some cell is no plain number; as text each can be looked at
        table = csv_table(path, compression, texts)
    return table.rename_columns(list(headers))


def _csv_types(headers: dict[str, str]) -> dict[str, pa.DataType]:
    """All text, so that no value is read by what others look like; codes repeat."""
    return {
        header: CODES if name in ("contract", "session") else pa.string()
        for name, header in headers.items()
    }


def _csv_batches(
    path: Path, compression: str | None, *, names: Collection[str]
) -> Iterator[pa.RecordBatch]:
    headers = match_headers(csv_headers(path, compression), origin=path.name)
    headers = _wanted(headers, names)
    for batch in csv_batches(path, compression, _csv_types(headers)):
        yield batch.rename_columns(list(headers))


def _read_parquet(path: Path, compression: str | None) -> pa.Table:
    with pa.input_stream(str(path), compression=compression) as stream:
        content = pa.BufferReader(stream.read_buffer())
    with pyarrow.parquet.ParquetFile(content, **_CAREFUL) as file:
        headers = _parquet_headers(file, path.name, names=())
        table = _row_groups(file, path.name, columns=list(headers.values()))
    return _in_utc(table.select(list(headers.values())).rename_columns(list(headers)))


def _row_groups(
    file: pyarrow.parquet.ParquetFile, name: str, *, columns: Sequence[str]
) -> pa.Table:
    """All of a file, a row group at a time, so that it can be told how far it is."""
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
    source: object = path
    if compression is not None:  # the end of a Parquet file is read first
        with pa.input_stream(str(path), compression=compression) as stream:
            source = pa.BufferReader(stream.read_buffer())
    with pyarrow.parquet.ParquetFile(
        source, pre_buffer=False, buffer_size=_BUFFER, **_CAREFUL
    ) as file:
        headers = _parquet_headers(file, path.name, names=names)
        total = file.metadata.num_rows
        with progress_bar(f"reading {path.name}", total=total) as advance:
            for batch in file.iter_batches(batch_size=rows, columns=list(headers.values())):
                batch = batch.select(list(headers.values())).rename_columns(list(headers))
                yield _in_utc(batch)
                advance(batch.num_rows)


def _parquet_headers(
    file: pyarrow.parquet.ParquetFile, origin: str, *, names: Collection[str]
) -> dict[str, str]:
    schema = file.schema_arrow
    headers = _wanted(match_headers(schema.names, origin=origin), names)
    for name, header in headers.items():
        kind = schema.field(header).type
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_nested(inner) or inner in _BYTES or pa.types.is_fixed_size_binary(inner):
            raise SchemaError(
                f"{origin}: the column {header!r} is of type {kind}, which cannot be {name}; write "
                "stamps, numbers or text"
            )
    return headers


def _in_utc(table: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
    """With text that is text, and zoned stamps in UTC: their zone is a name, not part of them."""
    table.validate(full=True)
    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz is not None:
            utc = table.column(place).cast(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(place, field.name, utc)
    return table


def _wanted(headers: dict[str, str], names: Collection[str]) -> dict[str, str]:
    """Those of the names; a date belongs to its time."""
    if not names:
        return headers
    return {n: h for n, h in headers.items() if n in names or (n == "date" and "time" in names)}


def _cut(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Tables of `rows` rows, however the file cuts its batches."""
    held: list[pa.Table] = []
    count = 0
    for batch in batches:
        held.append(pa.Table.from_batches([batch]))
        count += batch.num_rows
        if count < rows:
            continue
        table = pa.concat_tables(held)
        whole = count - count % rows
        for first in range(0, whole, rows):
            yield table.slice(first, rows).unify_dictionaries()
        held, count = [table.slice(whole)], count - whole
    if count:
        yield pa.concat_tables(held).unify_dictionaries()


def _one_stamp(table: pa.Table, origin: str) -> pa.Table:
    """Join a date and a time of day, each as it is written, into one text."""
    if "date" not in table.column_names:
        return table
    date, clock = table["date"], table["time"]
    if pa.types.is_integer(clock.type) or pa.types.is_floating(clock.type):
        raise SchemaError(
            f"{origin}: the time beside the date is of type {clock.type}, which keeps no leading "
            "zeros, so 930 may be 9:30 or 0:09:30; write it as text or as a time of day"
        )
    if pa.types.is_timestamp(date.type):
        date = date.cast(pa.date32())
    texts = (date.cast(pa.string()), clock.cast(pa.string()))
    joined = pyarrow.compute.binary_join_element_wise(*texts, " ")
    return table.set_column(table.column_names.index("time"), "time", joined).drop_columns("date")
