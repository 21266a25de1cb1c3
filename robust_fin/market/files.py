"""A CSV or Parquet file of bars -> the columns that mean something, under the schema's names."""

from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from robust_fin.errors import SourceError
from robust_fin.market.columns import match_headers
from robust_fin.market.schema import PRICES

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_CODES = pa.dictionary(pa.int32(), pa.string())
_BLOCK = 8 << 20  # bytes a thread parses at once
_BUFFER = 1 << 20  # bytes of a column read at once where a file is read in blocks


def read_table(path: Path, *, text_stamps: bool) -> pd.DataFrame:
    """The columns a file holds, chosen by the file's ending, .gz and .zst too.

    Args:
        path: a .csv, .parquet or .pq file.
        text_stamps: leave the stamps of a CSV as they are written, for `source.time_format`.

    Returns:
        One column for each name of the schema that the file has, of the type the file gives it.

    Raises:
        SourceError: the file is missing, empty, of another kind, or cannot be parsed.
        SchemaError: a needed column is missing, or two columns claim the same name.
    """
    kind, compression = _kind(path)
    try:
        if kind == ".csv":
            table = _read_csv(path, compression, text_stamps=text_stamps)
        else:
            table = _read_parquet(path, compression)
        table = _one_stamp(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as {kind}: {error}") from error
    return _to_pandas(table)


def read_blocks(
    path: Path, rows: int, *, text_stamps: bool, names: Collection[str] = ()
) -> Iterator[pd.DataFrame]:
    """What `read_table` reads, `rows` rows at a time.

    Args:
        path: a .csv, .parquet or .pq file.
        rows: of a block; the last one may have fewer.
        text_stamps: leave the stamps of a CSV as they are written, for `source.time_format`.
        names: columns of the schema wanted, of those the file has; none means all.

    Raises:
        SourceError: the file is missing, empty, of another kind, or cannot be parsed.
        SchemaError: a needed column is missing, or two columns claim the same name.
    """
    kind, compression = _kind(path)
    try:
        if kind == ".csv":
            batches = _csv_batches(path, compression, text_stamps=text_stamps, names=names)
        else:
            batches = _parquet_batches(path, compression, rows=rows, names=names)
        for table in _cut(batches, rows):
            yield _to_pandas(_one_stamp(table))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as {kind}: {error}") from error


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
    return table.to_pandas(ignore_metadata=True, date_as_object=False, split_blocks=True)


def _read_csv(path: Path, compression: str | None, *, text_stamps: bool) -> pa.Table:
    headers = _csv_headers(path, compression)
    types = _csv_types(headers, text_stamps=text_stamps)
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(headers.values()))
    blocks = pyarrow.csv.ReadOptions(block_size=_BLOCK)
    with pa.input_stream(str(path), compression=compression) as stream:
        table = pyarrow.csv.read_csv(stream, read_options=blocks, convert_options=options)
    return table.rename_columns(list(headers))


def _csv_headers(path: Path, compression: str | None) -> dict[str, str]:
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        pyarrow.csv.open_csv(stream) as reader,
    ):
        return match_headers(reader.schema.names, origin=path.name)


def _csv_types(headers: dict[str, str], *, text_stamps: bool) -> dict[str, pa.DataType]:
    types = {headers[name]: _CODES for name in ("contract", "session") if name in headers}
    if text_stamps or "date" in headers:
        types |= {headers[name]: pa.string() for name in ("date", "time") if name in headers}
    return types


def _csv_batches(
    path: Path, compression: str | None, *, text_stamps: bool, names: Collection[str]
) -> Iterator[pa.RecordBatch]:
    """Batches of one type each, told by the first of them; numbers are float64 from the start."""
    headers = _wanted(_csv_headers(path, compression), names)
    types = _csv_types(headers, text_stamps=text_stamps)
    types |= {headers[name]: pa.float64() for name in (*PRICES, "volume", "vix") if name in headers}
    if headers["time"] not in types:
        with pa.input_stream(str(path), compression=compression) as stream:
            told = pyarrow.csv.open_csv(stream).schema.field(headers["time"]).type
        fine = pa.types.is_timestamp(told)
        types[headers["time"]] = pa.timestamp("ns", tz=told.tz) if fine else told
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(headers.values()))
    blocks = pyarrow.csv.ReadOptions(block_size=_BLOCK)
    with pa.input_stream(str(path), compression=compression) as stream:
        reader = pyarrow.csv.open_csv(stream, read_options=blocks, convert_options=options)
        for batch in reader:
            yield batch.rename_columns(list(headers))


def _parquet_batches(
    path: Path, compression: str | None, *, rows: int, names: Collection[str]
) -> Iterator[pa.RecordBatch]:
    source: object = path
    if compression is not None:  # the end of a Parquet file is read first
        with pa.input_stream(str(path), compression=compression) as stream:
            source = pa.BufferReader(stream.read_buffer())
    with pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER) as file:
        headers = _wanted(match_headers(file.schema_arrow.names, origin=path.name), names)
        for batch in file.iter_batches(batch_size=rows, columns=list(headers.values())):
            yield batch.select(list(headers.values())).rename_columns(list(headers))


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


def _read_parquet(path: Path, compression: str | None) -> pa.Table:
    with pa.input_stream(str(path), compression=compression) as stream:
        content = pa.BufferReader(stream.read_buffer())
    with pyarrow.parquet.ParquetFile(content) as file:
        headers = match_headers(file.schema_arrow.names, origin=path.name)
        table = file.read(columns=list(headers.values()))
    return table.select(list(headers.values())).rename_columns(list(headers))


def _one_stamp(table: pa.Table) -> pa.Table:
    """Join a date and a time of day, each as it is written, into one text."""
    if "date" not in table.column_names:
        return table
    date, clock = table["date"], table["time"]
    if pa.types.is_timestamp(date.type):
        date = date.cast(pa.date32())
    texts = (date.cast(pa.string()), clock.cast(pa.string()))
    joined = pyarrow.compute.binary_join_element_wise(*texts, " ")
    return table.set_column(table.column_names.index("time"), "time", joined).drop_columns("date")
