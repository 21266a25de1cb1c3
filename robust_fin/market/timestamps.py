"""What a stamp means: text or datetimes of a file -> datetime64[ns, UTC].

| a stamp | means |
|---|---|
| 2024-03-04 15:01, 2024/3/4 15:01:00.5, 20240304T1501, 2024-03-04 | ISO 8601, from midnight on |
| the same and Z, +00:00, -0600 or +01 | that instant; in one file all stamps have a zone or none |
| the same without a zone | the wall clock of `source.timezone`, which must then be set |
| a wall clock that a change of clocks skips or repeats | an error: two instants, or none |
| 1709564460, 45355.625, 20240304 | a number: an error unless `source.time_format` says what |
| now, 2024, 2024-03, 15:01, nothing | no stamp: an error |
| a day that the calendar does not reach, before 1960 or after 2065 | an error: mind the unit |

A stamp need not lie on the grid of the bars. A date beside a time of day is one stamp.
"""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.schema import shown

_DATE = r"(?:\d{4}-\d{1,2}-\d{1,2}|\d{4}/\d{1,2}/\d{1,2}|\d{8})"
_FRACTION = r"(?:\.\d{1,9})?"
_COLONS = rf"\d{{1,2}}:\d{{2}}(?::\d{{2}}{_FRACTION})?"
_COMPACT = rf"\d{{2}}(?:\d{{2}}(?:\d{{2}}{_FRACTION})?)?"
_ZONE = r"(?:Z|[+-]\d{2}(?::?\d{2})?)"
_ISO = rf"^{_DATE}(?:[T ](?:{_COLONS}|{_COMPACT})(?: ?{_ZONE})?)?$"
_ENDS_IN_ZONE = rf"[T ].*{_ZONE}$"
_PLAIN_NUMBER = r"^[+-]?\d+\.?\d*(?:[eE][+-]?\d+)?$"
_WIDTHS = {"%Y": 4, "%j": 3} | dict.fromkeys(("%m", "%d", "%H", "%I", "%M", "%S", "%y"), 2)
_OF_TODAY = ("now", "today")  # pandas takes both for stamps, under any pattern
_RANGE = ("1700-01-01", "2200-01-01")


def to_utc(
    stamps: pd.Series, *, timezone: str | None, time_format: str | None, origin: str
) -> pd.Series:
    """Stamps as datetime64[ns, UTC].

    Args:
        stamps: text or datetimes, with or without a zone.
        timezone: the zone of stamps that carry none, such as UTC or America/Chicago.
        time_format: strptime pattern of text stamps; None reads ISO 8601.
        origin: the name of the file, for the message.

    Raises:
        SchemaError: the stamps cannot be read, or carry no zone and `timezone` is not set.
        ConfigError: `timezone` is no zone, or `time_format` no pattern.
    """
    if pd.api.types.is_numeric_dtype(stamps):
        _refuse_numbers(stamps, np.ones(len(stamps), dtype=bool), origin)
    parsed = stamps
    if not pd.api.types.is_datetime64_any_dtype(stamps):
        parsed = _parse(stamps, time_format, origin)
    first, last = (pd.Timestamp(edge, tz=parsed.dt.tz) for edge in _RANGE)
    beyond = np.flatnonzero((parsed < first) | (parsed >= last))
    if beyond.size:
        plain = parsed if parsed.dt.tz is None else parsed.dt.tz_convert(None)
        far = str(plain.to_numpy()[beyond[0]]).replace("T", " ")  # a Timestamp ends with year 9999
        raise SchemaError(
            f"{origin}: row {beyond[0]} has the time {far}; {beyond.size} of {len(parsed)} rows "
            "lie before 1700 or after 2199. Check the unit of the stamps"
        )
    if parsed.dt.tz is None:
        parsed = _localize(parsed, timezone=timezone, origin=origin)
    return parsed.dt.tz_convert("UTC").dt.as_unit("ns")


def same_zoning(stamps: pd.Series, before: bool | None, *, origin: str, first: int) -> bool | None:
    """Whether the text stamps of a block carry a zone; those of every block must agree.

    Args:
        stamps: of the block.
        before: what the blocks before it said; None where there is none.
        origin: the name of the file, for the message.
        first: row of the file that the block starts with.

    Raises:
        SchemaError: it is not the same as before.
    """
    if pd.api.types.is_datetime64_any_dtype(stamps) or pd.api.types.is_numeric_dtype(stamps):
        return None
    text = stamps.iloc[:1].astype("str").str.strip()
    zoned = bool(text.str.contains(_ENDS_IN_ZONE, na=False, regex=True).iloc[0])
    if before is not None and zoned != before:
        raise SchemaError(
            f"{origin}: some stamps carry a zone and some do not; row {first} is "
            f"'{shown(stamps.iloc[0])}'. Write them all with one, or all without"
        )
    return zoned


def _parse(stamps: pd.Series, time_format: str | None, origin: str) -> pd.Series:
    text = stamps.astype("str")
    if time_format is None:
        at_once = _iso_at_once(text)
        if at_once is not None:
            return at_once
    text = text.str.strip()
    text = text.mask(text.str.lower().isin(_OF_TODAY))
    if time_format is None:
        _refuse_numbers(text, _matches(text, _PLAIN_NUMBER), origin)
        readable = text.where(_matches(text, _ISO))
        pattern, zoned = "ISO8601", _zoned(readable, origin)
    elif "%" not in time_format:  # pandas has words that mean a guess
        raise ConfigError(f"source.time_format={time_format!r} is no pattern: it has no %")
    else:
        readable = text.where(_matches(text, _shape(time_format)))
        pattern, zoned = time_format, "%z" in time_format.lower()
    try:
        parsed = pd.to_datetime(readable, errors="coerce", utc=zoned, format=pattern)
    except ValueError as error:
        raise ConfigError(f"source.time_format={time_format!r} is no pattern: {error}") from error
    bad = np.flatnonzero(parsed.isna())
    if bad.size:
        raise SchemaError(
            f"{origin}: row {bad[0]} has the time '{shown(stamps.iloc[bad[0]])}', which cannot be "
            f"read as {pattern}; {bad.size} of {len(stamps)} rows. Write them as 2024-03-08 "
            "14:31:00, or say how they are written, for example "
            "source.time_format='%m/%d/%Y %H:%M'"
        )
    return parsed


def _iso_at_once(text: pd.Series) -> pd.Series | None:
    """Stamps that are all in the common form, and all with a zone or all without; else None."""
    stamps = pa.array(text, type=pa.large_string())
    for zone in ("UTC", None):
        try:
            found = pc.cast(stamps, pa.timestamp("ns", zone)).to_pandas()
        except pa.ArrowInvalid:
            continue
        return found.set_axis(text.index)
    return None


def _matches(text: pd.Series, pattern: str) -> Bool[np.ndarray, " rows"]:
    found = pc.match_substring_regex(pa.array(text, type=pa.large_string()), pattern)
    return pc.fill_null(found, pa.scalar(value=False)).to_pandas().to_numpy()


def _shape(time_format: str) -> str:
    """What text a pattern can mean without guessing where a field ends.

    strptime reads 1000 by %H%M%S as 10:00:00, where a writer that lost the zeros meant 00:10:00;
    so fields that touch must have their full width.
    """
    tokens = re.findall(r"%.|[^%]", time_format)
    fields = [token[0] == "%" for token in tokens]
    parts = []
    for place, token in enumerate(tokens):
        width = _WIDTHS.get(token)
        if width is not None:
            touches = any(fields[max(0, place - 1) : place] + fields[place + 1 : place + 2])
            parts.append(rf"\d{{{width if touches else f'1,{width}'}}}")
        elif fields[place]:
            parts.append(".+?")
        else:
            parts.append(r"\s+" if token.isspace() else re.escape(token))
    return f"^(?i:{''.join(parts)})$"


def _refuse_numbers(stamps: pd.Series, numbers: Bool[np.ndarray, " rows"], origin: str) -> None:
    bad = np.flatnonzero(numbers)
    if bad.size:
        raise SchemaError(
            f"{origin}: the time column holds numbers (first: {shown(stamps.iloc[bad[0]])}); write "
            "stamps such as 2024-03-08 14:31:00+00:00, or say how they are written, for example "
            f"source.time_format='%Y%m%d%H%M'. {bad.size} of {len(stamps)} rows, first row {bad[0]}"
        )


def _zoned(text: pd.Series, origin: str) -> bool:
    zoned = _matches(text, _ENDS_IN_ZONE)
    naive = ~zoned & text.notna().to_numpy()
    if zoned.any() and naive.any():
        row = int(np.argmax(naive))
        raise SchemaError(
            f"{origin}: some stamps carry a zone and {int(naive.sum())} do not, the first at "
            f"row {row}: '{shown(text.iloc[row])}'. Write them all with one, or all without"
        )
    return bool(zoned.any())


def _localize(stamps: pd.Series, *, timezone: str | None, origin: str) -> pd.Series:
    if timezone is None:
        raise SchemaError(
            f"{origin}: the stamps carry no zone (first: {stamps.iloc[0]}). Say which one they are "
            "in, for example source.timezone=UTC or source.timezone=America/Chicago"
        )
    try:
        pd.Timestamp(0).tz_localize(timezone)
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise ConfigError(f"source.timezone={timezone} is no zone; UTC is one") from error
    try:
        return stamps.dt.tz_localize(timezone)
    except ValueError as error:
        placed = stamps.dt.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT")
        bad = np.flatnonzero(placed.isna() & stamps.notna())
        raise SchemaError(
            f"{origin}: a stamp cannot be placed in {timezone}: {error}. First at row {bad[0]} "
            f"({stamps.iloc[bad[0]]}), {bad.size} such rows. Around a clock change local stamps "
            "are ambiguous; write them in UTC"
        ) from error
