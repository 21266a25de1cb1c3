"""Read columns of a Parquet file, or of a folder of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from robust_fin.errors import SchemaError, SourceError
from robust_fin.market.columns import header_roles, match_headers, unread_columns
from robust_fin.market.intake.layout import Layout
from robust_fin.runtime.terminal import progress_bar

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
