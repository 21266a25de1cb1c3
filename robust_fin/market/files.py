"""A CSV or Parquet file of bars -> the columns that mean something, under the schema's names."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from robust_fin.errors import SourceError
from robust_fin.market.columns import match_headers

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_CODES = pa.dictionary(pa.int32(), pa.string())
_BLOCK = 8 << 20  # bytes a thread parses at once


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
    if not path.is_file():
        raise SourceError(f"there is no file {path}; set source.path to a CSV or Parquet file")
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty; a bar file has a header and at least one row")
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    compression = _COMPRESSED.get(endings[-1]) if endings else None
    kind = "".join(endings[-2:-1] if compression else endings[-1:])
    if kind not in (".csv", ".parquet", ".pq"):
        raise SourceError(f"{path} ends in {path.suffix or 'nothing'}; .csv and .parquet are read")
    try:
        if kind == ".csv":
            table = _read_csv(path, compression, text_stamps=text_stamps)
        else:
            table = _read_parquet(path, compression)
        table = _one_stamp(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as {kind}: {error}") from error
    return table.to_pandas(ignore_metadata=True, date_as_object=False, split_blocks=True)


def _read_csv(path: Path, compression: str | None, *, text_stamps: bool) -> pa.Table:
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        pyarrow.csv.open_csv(stream) as reader,
    ):
        headers = match_headers(reader.schema.names, origin=path.name)
    types = {headers[name]: _CODES for name in ("contract", "session") if name in headers}
    if text_stamps or "date" in headers:
        types |= {headers[name]: pa.string() for name in ("date", "time") if name in headers}
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(headers.values()))
    blocks = pyarrow.csv.ReadOptions(block_size=_BLOCK)
    with pa.input_stream(str(path), compression=compression) as stream:
        table = pyarrow.csv.read_csv(stream, read_options=blocks, convert_options=options)
    return table.rename_columns(list(headers))


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
