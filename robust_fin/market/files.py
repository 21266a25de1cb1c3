"""Read a CSV or Parquet file of bars into columns under the schema's names."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from robust_fin.errors import RobustFinError, SchemaError, SourceError
from robust_fin.market.columns import (
    NO_COLUMNS,
    header_roles,
    match_headers,
    plain_header,
    unread_columns,
)
from robust_fin.market.intake.forms import FOOTERS, REPEATED_HEADERS, Layout
from robust_fin.market.intake.sniffing import CsvForm
from robust_fin.market.table_files import (
    csv_batches,
    csv_headers,
    csv_table,
    parquet_batches,
    read_folder,
    read_parquet,
    sniff_file,
)

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_CODES = pa.dictionary(pa.int32(), pa.string())
_UNNAMED = ("", "unnamed:_0", "index")  # headers of the index that pandas writes
_FOLDER = "a folder of Parquet files"
_TEXTS = ("time", "date", "contract", "session")
_FULL_STAMP = (
    r"^\s*\d{4}[-/.]?\d{1,2}[-/.]?\d{1,2}[T ]+\d{1,2}:?\d{2}|^\s*\d{1,2}[-/.]\d{1,2}[-/.]\d{4}[T ]"
)


def read_table(
    path: Path, *, columns: Mapping[str, str] = NO_COLUMNS, as_text: bool = False
) -> tuple[pd.DataFrame, Layout]:
    """Read the schema's columns of a file, and those that are asked for.

    Args:
        path: a .csv, .parquet or .pq file, or one of these with .gz or .zst; or a folder of
            Parquet files.
        columns: source.columns: schema name, or a name of your own -> column of the file.
        as_text: read the numbers of a CSV as text even if all are plain numbers.

    Returns:
        One column for each schema name that the file has, and its layout. Parquet columns keep
        their type; CSV columns are text, or float64 if all cells are plain numbers.

    Raises:
        SourceError: the file is missing, empty, has another extension, or cannot be parsed.
        SchemaError: a required column is missing, two columns match the same name, or a column has
            an unsupported type.
        ConfigError: `columns` names a column that the file lacks.
    """
    kind, compression = _file_kind(path)
    with _name_file_in_errors(path, kind):
        if kind == ".csv":
            table, layout = _read_csv(path, compression, columns, as_text=as_text)
        elif kind == _FOLDER:
            table, layout = read_folder(path, columns)
        else:
            table, layout = read_parquet(path, compression, columns)
        return _finish(table, layout, path.name)


def read_blocks(
    path: Path, rows: int, *, columns: Mapping[str, str] = NO_COLUMNS
) -> Iterator[tuple[pd.DataFrame, Layout]]:
    """Read a file as `read_table` does, in blocks; the numbers of a CSV are text.

    Args:
        path: a .csv, .parquet or .pq file, or one of these with .gz or .zst.
        rows: rows of a block; the last block may have fewer.
        columns: as for `read_table`.

    Returns:
        Blocks, each with the layout, whose counts of dropped rows grow while the file is read.

    Raises:
        SourceError: the file is missing, empty, has another extension, or cannot be parsed.
        SchemaError: a required column is missing, two columns match the same name, or a column has
            an unsupported type.
    """
    kind, compression = _file_kind(path)
    if kind == _FOLDER:
        raise SourceError(f"{path} is a folder, which is read at once; set source.block_rows=null")
    with _name_file_in_errors(path, kind):
        if kind == ".csv":
            batches, layout = _csv_batches(path, compression, columns)
        else:
            batches, layout = parquet_batches(path, compression, rows=rows, columns=columns)
        for table in _split_rows(batches, rows):
            yield _finish(table, layout, path.name)


def _finish(table: pa.Table, layout: Layout, origin: str) -> tuple[pd.DataFrame, Layout]:
    stamps = [name for name in ("date", "time") if name in table.column_names]
    joined = _join_date_and_time(table, origin)
    if "date" in stamps and joined is not table and not _is_joined(table):
        stamps = ["time"]
    found = tuple(layout.columns[name] for name in stamps)
    return _to_pandas(joined), replace(layout, stamp_columns=found)


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
    if path.is_dir():
        return _FOLDER, None
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


def _read_csv(
    path: Path, compression: str | None, columns: Mapping[str, str], *, as_text: bool
) -> tuple[pa.Table, Layout]:
    form = sniff_file(path, compression, columns=columns)
    names, headers = _csv_columns(path, compression, form, columns)
    texts = _csv_types(headers)
    numbers = {header: pa.float64() for name, header in headers.items() if name not in _TEXTS}
    footers: list[str] = []
    try:
        types = texts if as_text else texts | numbers
        table = csv_table(path, compression, types, form=form, footers=footers)
    except pa.ArrowInvalid:  # some cell is not a plain number; read the columns as text
        footers.clear()
        table = csv_table(path, compression, texts, form=form, footers=footers)
    kept = _drop_repeated_headers(table.rename_columns(list(headers)), headers)
    dropped = Counter({REPEATED_HEADERS: table.num_rows - kept.num_rows, FOOTERS: len(footers)})
    return _add_constants(kept, form), _csv_layout(form, names, headers, +dropped)


def _csv_layout(
    form: CsvForm, names: Sequence[str], headers: Mapping[str, str], dropped: Mapping[str, int]
) -> Layout:
    return Layout(
        "csv",
        encoding={"utf-8-sig": "utf-8"}.get(form.encoding, form.encoding),
        delimiter=form.delimiter,
        skipped_lines=form.skipped_lines,
        header_lines=form.header_lines,
        columns=headers,
        unread=unread_columns(names, headers),
        dropped=dropped,
    )


def _csv_columns(
    path: Path, compression: str | None, form: CsvForm, columns: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return all columns of a CSV, and the column of each schema name."""
    if form.first_row < 0 and form.delimiter != ",":  # no line looks like a header or a row
        names = list(form.names)
    else:
        names = csv_headers(path, compression) if form.is_plain else list(form.names)
    if form.header_lines == 0 and names[0] == "1" and not columns:
        pairs = zip(("time", "open", "high", "low", "close", "volume"), names, strict=False)
        raise SchemaError(
            f"{path.name} has no header and {len(names)} columns, whose order is not certain. Name "
            f"them by their number: source.columns={{{', '.join(f'{n}: {c}' for n, c in pairs)}}}"
        )
    known = {"time", *columns} & (header_roles(names) | set(columns))
    if "time" not in known and plain_header(names[0]) in _UNNAMED:
        columns = {"time": names[0], **columns}
    return names, match_headers(names, origin=path.name, columns=columns)


def _add_constants(table: pa.Table, form: CsvForm) -> pa.Table:
    for name, value in form.constants.items():
        if name not in table.column_names:
            codes = pa.array([value] * table.num_rows, pa.string()).dictionary_encode()
            table = table.append_column(name, codes)
    return table


def _drop_repeated_headers(table: pa.Table, headers: Mapping[str, str]) -> pa.Table:
    """Drop rows whose prices and volume are their own headers, as in files that were joined."""
    texts = [name for name in headers if name not in _TEXTS]
    texts = [name for name in texts if pa.types.is_string(table.schema.field(name).type)]
    mask = pa.scalar(value=True)
    for name in texts:
        mask = pyarrow.compute.and_(mask, pyarrow.compute.equal(table[name], headers[name]))
        if not pyarrow.compute.any(mask).as_py():
            return table
    if not texts:
        return table
    return table.filter(pyarrow.compute.invert(mask))


def _csv_types(headers: dict[str, str]) -> dict[str, pa.DataType]:
    """Choose text for all columns, so that no type is inferred from other cells."""
    return {
        header: _CODES if name in ("contract", "session") else pa.string()
        for name, header in headers.items()
    }


def _csv_batches(
    path: Path, compression: str | None, columns: Mapping[str, str]
) -> tuple[Iterator[pa.RecordBatch], Layout]:
    form = sniff_file(path, compression, columns=columns)
    names, headers = _csv_columns(path, compression, form, columns)
    dropped: Counter[str] = Counter()

    def batches() -> Iterator[pa.RecordBatch]:
        footers: list[str] = []
        types = _csv_types(headers)
        for batch in csv_batches(path, compression, types, form=form, footers=footers):
            table = pa.Table.from_batches([batch]).rename_columns(list(headers))
            kept = _drop_repeated_headers(table, headers)
            if kept.num_rows < table.num_rows:
                dropped[REPEATED_HEADERS] += table.num_rows - kept.num_rows
            yield from _add_constants(kept, form).to_batches()
        if footers:
            dropped[FOOTERS] = len(footers)

    return batches(), _csv_layout(form, names, headers, dropped)


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


def _is_joined(table: pa.Table) -> bool:
    """Return whether the date and the time column together make the stamp.

    A time column that has the date too, beside a trading date, is the stamp by itself.
    """
    clock = table["time"]
    if pa.types.is_timestamp(clock.type):
        return False
    if not (pa.types.is_string(clock.type) or pa.types.is_large_string(clock.type)):
        return True
    full = pyarrow.compute.match_substring_regex(clock.slice(0, 1000), _FULL_STAMP)
    return not pyarrow.compute.all(full).as_py()


def _join_date_and_time(table: pa.Table, origin: str) -> pa.Table:
    """Join a date and a time column into one text column."""
    if "date" not in table.column_names:
        return table
    if not _is_joined(table):
        return table.drop_columns("date")
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
