"""From the columns a file holds to those of the schema: headers, stamps, numbers and codes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.errors import SchemaError, SourceError
from robust_fin.market.schema import PRICES

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
_NO_NUMBER = ("", "nan", "na", "null", "none")
_ENDS_IN_ZONE = r"[T ].*(?:Z|[+-]\d{2}(?::?\d{2})?)$"


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
            f"{origin} has no column for {', '.join(missing)}; its columns are {list(headers)}. "
            f"Names understood are {known}"
        )
    return found


def _only(claims: list[str], name: str, origin: str) -> str:
    if len(claims) > 1:
        raise SchemaError(f"{origin}: the columns {claims} all mean {name}; keep one of them")
    return claims[0]


def to_numbers(column: pd.Series, *, origin: str) -> Float[np.ndarray, " rows"]:
    """A column as float64; text that is no number is an error, an empty cell is NaN.

    Raises:
        SchemaError: names the first text, its row, and how many there are.
    """
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    text = column.astype("str").str.strip()
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    absent = text.isna() | text.str.lower().isin(_NO_NUMBER)
    bad = np.flatnonzero(np.isnan(numbers) & ~absent.to_numpy(dtype=bool))
    if bad.size:
        raise SchemaError(
            f"{origin}: {column.name} must be a number. First at row {bad[0]} (0 is the first after"
            f" the header): {column.name}={column.iloc[bad[0]]!r}. {bad.size} of {len(column)} rows"
            " break this rule; mend or remove them in the file"
        )
    return numbers


def to_codes(column: pd.Series) -> pd.Series:
    """A column of names as a categorical of text; an empty cell is missing."""
    codes = column.astype("category").cat
    names = [str(name) for name in codes.categories]
    if "" in names:
        return column.mask(column.astype("str") == "").astype("str").astype("category")
    return pd.Series(pd.Categorical.from_codes(codes.codes, pd.Index(names)), index=column.index)


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
        SourceError: the stamps cannot be read, or carry no zone and `timezone` is not set.
    """
    if pd.api.types.is_numeric_dtype(stamps):
        raise SourceError(
            f"{origin}: the time column holds numbers (first: {stamps.iloc[0]}); write stamps such"
            " as 2024-03-08 14:31:00+00:00"
        )
    parsed = stamps
    if not pd.api.types.is_datetime64_any_dtype(stamps):
        parsed = _parse(stamps, time_format, origin)
    if parsed.dt.tz is None:
        parsed = _localize(parsed, timezone=timezone, origin=origin)
    return parsed.dt.tz_convert("UTC").dt.as_unit("ns")


def _parse(stamps: pd.Series, time_format: str | None, origin: str) -> pd.Series:
    text = stamps.astype("str").str.strip()
    zoned = _zoned(text, origin) if time_format is None else "%z" in time_format.lower()
    pattern = "ISO8601" if time_format is None else time_format
    try:
        parsed = pd.to_datetime(text, errors="coerce", utc=zoned, format=pattern)
    except ValueError as error:
        raise SourceError(f"source.time_format={time_format!r} is no pattern: {error}") from error
    bad = np.flatnonzero(parsed.isna())
    if bad.size:
        raise SourceError(
            f"{origin}: row {bad[0]} has the time {stamps.iloc[bad[0]]!r}, which cannot be read as "
            f"{pattern}; {bad.size} of {len(stamps)} rows. Write them as 2024-03-08 14:31:00, "
            "or say how they are written, for example source.time_format='%m/%d/%Y %H:%M'"
        )
    return parsed


def _zoned(text: pd.Series, origin: str) -> bool:
    zoned = text.str.contains(_ENDS_IN_ZONE, na=False, regex=True).to_numpy(dtype=bool)
    naive = ~zoned & text.notna().to_numpy()
    if zoned.any() and naive.any():
        row = int(np.argmax(naive))
        raise SourceError(
            f"{origin}: some stamps carry a zone and {int(naive.sum())} do not, the first at "
            f"row {row}: {text.iloc[row]!r}. Write them all with one, or all without"
        )
    return bool(zoned.any())


def _localize(stamps: pd.Series, *, timezone: str | None, origin: str) -> pd.Series:
    if timezone is None:
        raise SourceError(
            f"{origin}: the stamps carry no zone (first: {stamps.iloc[0]}). Say which one they are "
            "in, for example source.timezone=UTC or source.timezone=America/Chicago"
        )
    try:
        return stamps.dt.tz_localize(timezone)
    except KeyError as error:
        raise SourceError(f"source.timezone={timezone} is no zone; UTC is one") from error
    except ValueError as error:
        raise SourceError(
            f"{origin}: a stamp cannot be placed in {timezone}: {error}. Around a clock change "
            "local stamps are ambiguous; write them in UTC"
        ) from error


def same_zoning(stamps: pd.Series, before: bool | None, *, origin: str, first: int) -> bool | None:
    """Whether the text stamps of a block carry a zone; those of every block must agree.

    Args:
        stamps: of the block.
        before: what the blocks before it said; None where there is none.
        origin: the name of the file, for the message.
        first: row of the file that the block starts with.

    Raises:
        SourceError: it is not the same as before.
    """
    if pd.api.types.is_datetime64_any_dtype(stamps) or pd.api.types.is_numeric_dtype(stamps):
        return None
    text = stamps.iloc[:1].astype("str").str.strip()
    zoned = bool(text.str.contains(_ENDS_IN_ZONE, na=False, regex=True).iloc[0])
    if before is not None and zoned != before:
        raise SourceError(
            f"{origin}: some stamps carry a zone and some do not; row {first} is "
            f"{stamps.iloc[0]!r}. Write them all with one, or all without"
        )
    return zoned
