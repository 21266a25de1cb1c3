"""Columns of a file as typed arrays: CSV text, header names, numbers and contract codes."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Float

from robust_fin.errors import SchemaError
from robust_fin.market.schema import PRICES, shown
from robust_fin.runtime.terminal import Advance, progress_bar

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
        progress_bar(f"reading {path.name}", total=_size(path, compression)) as advance,
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
        progress_bar(f"reading {path.name}", total=_size(path, compression)) as advance,
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


_ALIASES = {
    "time": ("time", "timestamp", "datetime", "date", "date_time", "ts"),
    "open": ("open", "o"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c", "last"),
    "volume": ("volume", "vol", "v"),
    "contract": ("contract", "symbol", "ticker"),
    "session": ("session",),
    "vix": ("vix", "vix_close"),
}
NUMBERS = (*PRICES, "volume", "vix")
_NO_NUMBER = ("", "nan", "-nan", "na", "n/a", "#n/a", "null", "none")
_NO_CODE = ("", "nan", "NaN", "<NA>", "None", "none", "null", "NULL", "N/A", "#N/A")
_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$|^[+-]?(?i:inf(?:inity)?|nan(?:\(\w*\))?)$"
_HEADERS_SHOWN = 40


def match_headers(headers: Sequence[str], *, origin: str) -> dict[str, str]:
    """Find the file's header of each column of the schema, without regard to case.

    Args:
        headers: the columns of the file, in order.
        origin: the name of the file, for the message.

    Returns:
        Schema name -> header. `date` is among the names where a `date` column stands beside a
        `time` column: the two are one stamp.

    Raises:
        SchemaError: a needed column is missing, or two columns claim the same name.
    """
    plain: dict[str, list[str]] = {}
    for header in headers:
        plain.setdefault(header.strip().lower().replace(" ", "_"), []).append(header)
    found = {}
    if "date" in plain and "time" in plain:
        found["date"] = _only(plain.pop("date"), "date", origin)
    for name, aliases in _ALIASES.items():
        claims = [header for alias in aliases for header in plain.get(alias, [])]
        if claims:
            found[name] = _only(claims, name, origin)
    missing = [name for name in ("time", *PRICES, "volume") if name not in found]
    if missing:
        known = "; ".join(f"{name}: {', '.join(_ALIASES[name])}" for name in missing)
        raise SchemaError(
            f"{origin} has no column for {', '.join(missing)}; its columns are {_listed(headers)}. "
            f"Names understood are {known}"
        )
    return found


def _only(claims: list[str], name: str, origin: str) -> str:
    if len(claims) > 1:
        raise SchemaError(f"{origin}: the columns {claims} all mean {name}; keep one of them")
    return claims[0]


def _listed(headers: Sequence[str]) -> str:
    listed = str([header[:_HEADERS_SHOWN] for header in headers[:_HEADERS_SHOWN]])
    more = len(headers) - _HEADERS_SHOWN
    return listed if more <= 0 else f"{listed} and {more} more"


def to_numbers(column: pd.Series, *, origin: str) -> Float[np.ndarray, " rows"]:
    """A column as float64; text that is no number is an error, an empty cell is NaN.

    Raises:
        SchemaError: names the first text, its row, and how many there are.
    """
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    text = pa.array(column.astype("str"), type=pa.large_string())
    try:
        return _floats(text)
    except pa.ArrowInvalid:
        known = _without_absent(text)
    try:
        return _floats(known)
    except pa.ArrowInvalid:
        fine = pc.fill_null(pc.match_substring_regex(known, _NUMBER), pa.scalar(value=True))
    bad = np.flatnonzero(~fine.to_pandas().to_numpy())
    raise SchemaError(
        f"{origin}: {column.name} must be a number. First at row {bad[0]} (0 is the first after"
        f" the header): {column.name}='{shown(text[int(bad[0])])}'. {bad.size} of {len(column)} "
        "rows break this rule; mend or remove them in the file"
    )


def _floats(text: pa.Array | pa.ChunkedArray) -> Float[np.ndarray, " rows"]:
    return pc.cast(text, pa.float64()).to_pandas().to_numpy()


def _without_absent(text: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    trimmed = pc.utf8_trim(text, " \t")
    absent = pc.is_in(pc.utf8_lower(trimmed), pa.array(_NO_NUMBER, pa.large_string()))
    return pc.if_else(absent, pa.scalar(None, pa.large_string()), trimmed)


def to_codes(column: pd.Series) -> pd.Series:
    """A column of names as a categorical of text; an empty cell is missing."""
    codes = column.astype("category").cat
    names = [str(name) for name in codes.categories]
    said = np.array([name.strip() not in _NO_CODE for name in names], dtype=bool)
    place = np.append(np.where(said, np.cumsum(said) - 1, -1), -1)  # code -1, missing, is the last
    index = pd.Index([name for name, kept in zip(names, said, strict=True) if kept], dtype="str")
    return pd.Series(
        pd.Categorical.from_codes(place[codes.codes.to_numpy()], index), index=column.index
    )
