"""Parse the columns of a bar file: headers, timestamps, numbers and contract codes.

How a timestamp is read:

| timestamp | meaning |
|---|---|
| 2024-03-04 15:01, 2024/3/4 15:01:00.5, 20240304T1501, 2024-03-04 | ISO 8601; a date is midnight |
| the same with Z, +00:00, -0600 or +01 | that instant; all rows need a zone, or none |
| the same without a zone | local time in `source.timezone`, which must be set |
| local time skipped or repeated at a clock change | error: ambiguous or nonexistent |
| 1709564460, 45355.625, 20240304 | a number: error unless `source.time_format` is set |
| now, 2024, 2024-03, 15:01, an empty cell | error: not a timestamp |
| a date outside the calendar, before 1960 or after 2065 | error: check the unit |

A timestamp need not lie on the grid of the bars. A date column beside a time column is joined with
it.
"""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.schema import PRICES, excerpt

NUMBERS = (*PRICES, "volume", "vix")
MISSING_NUMBERS = ("", "nan", "-nan", "na", "n/a", "#n/a", "null", "none")
_MISSING_CODES = ("", "nan", "NaN", "<NA>", "None", "none", "null", "NULL", "N/A", "#N/A")
_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$|^[+-]?(?i:inf(?:inity)?|nan(?:\(\w*\))?)$"

_DATE = r"(?:\d{4}-\d{1,2}-\d{1,2}|\d{4}/\d{1,2}/\d{1,2}|\d{8})"
_FRACTION = r"(?:\.\d{1,9})?"
_COLONS = rf"\d{{1,2}}:\d{{2}}(?::\d{{2}}{_FRACTION})?"
_COMPACT = rf"\d{{2}}(?:\d{{2}}(?:\d{{2}}{_FRACTION})?)?"
_ZONE = r"(?:Z|[+-]\d{2}(?::?\d{2})?)"
ISO = rf"^{_DATE}(?:[T ](?:{_COLONS}|{_COMPACT})(?: ?{_ZONE})?)?$"
_ENDS_IN_ZONE = rf"[T ].*{_ZONE}$"
_PLAIN_NUMBER = r"^[+-]?\d+\.?\d*(?:[eE][+-]?\d+)?$"
_WIDTHS = {"%Y": 4, "%j": 3} | dict.fromkeys(("%m", "%d", "%H", "%I", "%M", "%S", "%y"), 2)
_RELATIVE_WORDS = ("now", "today")  # pandas parses both under any pattern
_RANGE = ("1700-01-01", "2200-01-01")


def to_numbers(column: pd.Series, *, origin: str) -> Float[np.ndarray, " rows"]:
    """Convert a column to float64; an empty cell becomes NaN.

    Raises:
        SchemaError: a cell is not a number; names the first, its row, and how many there are.
    """
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    text = pa.array(column.astype("str"), type=pa.large_string())
    try:
        return _to_floats(text)
    except pa.ArrowInvalid:
        known = _mask_missing(text)
    try:
        return _to_floats(known)
    except pa.ArrowInvalid:
        valid = pc.fill_null(pc.match_substring_regex(known, _NUMBER), pa.scalar(value=True))
    bad = np.flatnonzero(~valid.to_pandas().to_numpy())
    raise SchemaError(
        f"{origin}: {column.name} must be a number. First at row {bad[0]} (0 is the first after"
        f" the header): {column.name}='{excerpt(text[int(bad[0])])}'. {bad.size} of {len(column)} "
        "rows break this rule; fix or remove them in the file"
    )


def _to_floats(text: pa.Array | pa.ChunkedArray) -> Float[np.ndarray, " rows"]:
    return pc.cast(text, pa.float64()).to_pandas().to_numpy()


def _mask_missing(text: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    trimmed = pc.utf8_trim(text, " \t")
    missing = pc.is_in(pc.utf8_lower(trimmed), pa.array(MISSING_NUMBERS, pa.large_string()))
    return pc.if_else(missing, pa.scalar(None, pa.large_string()), trimmed)


def to_codes(column: pd.Series) -> pd.Series:
    """Convert a column of names to a categorical of text; an empty cell is missing."""
    codes = column.astype("category").cat
    names = [str(name) for name in codes.categories]
    valid = np.array([name.strip() not in _MISSING_CODES for name in names], dtype=bool)
    new_code = np.append(np.where(valid, np.cumsum(valid) - 1, -1), -1)  # the last is for code -1
    index = pd.Index([name for name, kept in zip(names, valid, strict=True) if kept], dtype="str")
    return pd.Series(
        pd.Categorical.from_codes(new_code[codes.codes.to_numpy()], index), index=column.index
    )


def to_utc(
    stamps: pd.Series, *, timezone: str | None, time_format: str | None, origin: str
) -> pd.Series:
    """Convert timestamps to datetime64[ns, UTC].

    Args:
        stamps: text or datetimes, with or without a zone.
        timezone: zone of timestamps that carry none, such as UTC or America/Chicago.
        time_format: strptime pattern of text timestamps; None reads ISO 8601.
        origin: file name, for the message.

    Raises:
        SchemaError: a timestamp cannot be parsed, or has no zone and `timezone` is None.
        ConfigError: `timezone` or `time_format` is invalid.
    """
    if pd.api.types.is_numeric_dtype(stamps):
        _check_no_numbers(stamps, np.ones(len(stamps), dtype=bool), origin)
    parsed = stamps
    if not pd.api.types.is_datetime64_any_dtype(stamps):
        parsed = _parse(stamps, time_format, origin)
    first, last = (pd.Timestamp(edge, tz=parsed.dt.tz) for edge in _RANGE)
    beyond = np.flatnonzero((parsed < first) | (parsed >= last))
    if beyond.size:
        plain = parsed if parsed.dt.tz is None else parsed.dt.tz_convert(None)
        value = str(plain.to_numpy()[beyond[0]]).replace("T", " ")  # pd.Timestamp ends in year 9999
        raise SchemaError(
            f"{origin}: row {beyond[0]} has the time {value}; {beyond.size} of {len(parsed)} rows "
            "are before 1700 or after 2199. Check the unit of the timestamps"
        )
    if parsed.dt.tz is None:
        parsed = _localize(parsed, timezone=timezone, origin=origin)
    return parsed.dt.tz_convert("UTC").dt.as_unit("ns")


def check_same_zoning(
    stamps: pd.Series, previous: bool | None, *, origin: str, first: int
) -> bool | None:
    """Check that text timestamps carry a zone in every block, or in none.

    Args:
        stamps: timestamps of the block.
        previous: the result for the blocks before; None before the first block.
        origin: file name, for the message.
        first: row of the file at which the block starts.

    Returns:
        True if the timestamps carry a zone; None if they are not text.

    Raises:
        SchemaError: the block differs from the blocks before it.
    """
    if pd.api.types.is_datetime64_any_dtype(stamps) or pd.api.types.is_numeric_dtype(stamps):
        return None
    text = stamps.iloc[:1].astype("str").str.strip()
    zoned = bool(text.str.contains(_ENDS_IN_ZONE, na=False, regex=True).iloc[0])
    if previous is not None and zoned != previous:
        raise SchemaError(
            f"{origin}: some timestamps have a time zone and some do not; row {first} is "
            f"'{excerpt(stamps.iloc[0])}'. Write all of them with a zone, or all without"
        )
    return zoned


def _parse(stamps: pd.Series, time_format: str | None, origin: str) -> pd.Series:
    text = stamps.astype("str")
    if time_format is None:
        parsed = parse_plain_iso(text)
        if parsed is not None:
            return parsed
    text = text.str.strip()
    text = text.mask(text.str.lower().isin(_RELATIVE_WORDS))
    if time_format is None:
        _check_no_numbers(text, match_cells(text, _PLAIN_NUMBER), origin)
        readable = text.where(match_cells(text, ISO))
        pattern, zoned = "ISO8601", _all_zoned(readable, origin)
    else:
        check_time_format(time_format)
        readable = text.where(match_cells(text, format_regex(time_format)))
        pattern, zoned = time_format, "%z" in time_format.lower()
    try:
        parsed = pd.to_datetime(readable, errors="coerce", utc=zoned, format=pattern)
    except (ValueError, re.error) as error:
        raise ConfigError(
            f"source.time_format={time_format!r} is not a strptime pattern: {error}"
        ) from error
    bad = np.flatnonzero(parsed.isna())
    if bad.size:
        raise SchemaError(
            f"{origin}: row {bad[0]} has the time '{excerpt(stamps.iloc[bad[0]])}', which cannot "
            f"be read as {pattern}; {bad.size} of {len(stamps)} rows. Write timestamps as "
            "2024-03-08 14:31:00, or set their format, for example "
            "source.time_format='%m/%d/%Y %H:%M'"
        )
    return parsed


def check_time_format(time_format: str) -> None:
    """Raise ConfigError unless a pattern has directives, and each of them once."""
    if "%" not in time_format:  # pandas accepts words such as "mixed", which guess
        raise ConfigError(f"source.time_format={time_format!r} is not a strptime pattern: no %")
    directives = [token for token in re.findall(r"%.", time_format) if token != "%%"]
    twice = sorted({token for token in directives if directives.count(token) > 1})
    if twice:
        raise ConfigError(
            f"source.time_format={time_format!r} has {', '.join(twice)} more than once; a pattern "
            "reads each part of a timestamp once. Where the time column has the date too, drop "
            "the date from the pattern"
        )


def parse_plain_iso(text: pd.Series) -> pd.Series | None:
    """Parse quickly if all timestamps have the common ISO form and the same zoning; else None."""
    stamps = pa.array(text, type=pa.large_string())
    for zone in ("UTC", None):
        try:
            parsed = pc.cast(stamps, pa.timestamp("ns", zone)).to_pandas()
        except pa.ArrowInvalid:
            continue
        return parsed.set_axis(text.index)
    return None


def match_cells(text: pd.Series, pattern: str) -> Bool[np.ndarray, " rows"]:
    """Return which cells a regular expression matches; a missing cell does not match."""
    matches = pc.match_substring_regex(pa.array(text, type=pa.large_string()), pattern)
    return pc.fill_null(matches, pa.scalar(value=False)).to_pandas().to_numpy()


def format_regex(time_format: str) -> str:
    """Build a regex of the text that a pattern reads without guessing where a field ends.

    strptime reads 1000 by %H%M%S as 10:00:00, but a writer that drops leading zeros meant 00:10:00.
    So adjacent fields must have their full width.
    """
    tokens = re.findall(r"%.|[^%]", time_format)
    is_field = [token[0] == "%" for token in tokens]
    parts = []
    for at, token in enumerate(tokens):
        width = _WIDTHS.get(token)
        if width is not None:
            adjacent = any(is_field[max(0, at - 1) : at] + is_field[at + 1 : at + 2])
            parts.append(rf"\d{{{width if adjacent else f'1,{width}'}}}")
        elif is_field[at]:
            parts.append(".+?")
        else:
            parts.append(r"\s+" if token.isspace() else re.escape(token))
    return f"^(?i:{''.join(parts)})$"


def _check_no_numbers(stamps: pd.Series, numbers: Bool[np.ndarray, " rows"], origin: str) -> None:
    bad = np.flatnonzero(numbers)
    if bad.size:
        raise SchemaError(
            f"{origin}: the time column holds numbers (first: {excerpt(stamps.iloc[bad[0]])}); "
            "write timestamps such as 2024-03-08 14:31:00+00:00, or set their format, for example "
            f"source.time_format='{_digits_format(stamps.iloc[bad[0]])}'. {bad.size} of "
            f"{len(stamps)} rows, first row {bad[0]}"
        )


def _digits_format(stamp: object) -> str:
    """Return the pattern of a stamp that is written in digits only."""
    patterns = {8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}
    return patterns.get(len(str(stamp).strip()), "%Y%m%d%H%M")


def _all_zoned(text: pd.Series, origin: str) -> bool:
    zoned = match_cells(text, _ENDS_IN_ZONE)
    naive = ~zoned & text.notna().to_numpy()
    if zoned.any() and naive.any():
        row = int(np.argmax(naive))
        raise SchemaError(
            f"{origin}: some timestamps have a time zone and {int(naive.sum())} do not, the first "
            f"at row {row}: '{excerpt(text.iloc[row])}'. Write all of them with a zone, or all "
            "without"
        )
    return bool(zoned.any())


def _localize(stamps: pd.Series, *, timezone: str | None, origin: str) -> pd.Series:
    if timezone is None:
        raise SchemaError(
            f"{origin}: the timestamps have no time zone (first: {stamps.iloc[0]}). Set it, for "
            "example source.timezone=UTC or source.timezone=America/Chicago"
        )
    try:
        pd.Timestamp(0).tz_localize(timezone)
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise ConfigError(
            f"source.timezone={timezone} is not a time zone; use a name such as UTC or "
            "America/Chicago"
        ) from error
    try:
        return stamps.dt.tz_localize(timezone)
    except ValueError as error:
        localized = stamps.dt.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT")
        bad = np.flatnonzero(localized.isna() & stamps.notna())
        raise SchemaError(
            f"{origin}: a timestamp is ambiguous or nonexistent in {timezone}: {error}. First at "
            f"row {bad[0]} ({stamps.iloc[bad[0]]}), {bad.size} such rows. Local time repeats or "
            "skips an hour at a clock change; write the timestamps in UTC"
        ) from error
