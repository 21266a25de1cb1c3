"""From the table a file holds to the columns of the schema: headers, stamps and numbers."""

import numpy as np
import pandas as pd

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


def canonical_headers(table: pd.DataFrame, *, origin: str) -> pd.DataFrame:
    """Rename the headers to the schema's names, without regard to case, and drop the others.

    A pair of `date` and `time` columns is joined into one stamp.

    Raises:
        SchemaError: a needed column is missing, or two columns claim the same name.
    """
    plain = {str(name).strip().lower().replace(" ", "_"): name for name in table.columns}
    if len(plain) < len(table.columns):
        raise SchemaError(f"{origin} has columns that differ only by case: {list(table.columns)}")
    if {"date", "time"} <= set(plain):
        stamps = table[plain["date"]].astype(str) + " " + table[plain["time"]].astype(str)
        table = table.drop(columns=plain.pop("date")).assign(**{plain["time"]: stamps})
    found: dict[str, str] = {}
    for name, aliases in _ALIASES.items():
        present = [plain[alias] for alias in aliases if alias in plain]
        if len(present) > 1:
            raise SchemaError(f"{origin}: the columns {present} all mean {name}; keep one of them")
        if present:
            found[present[0]] = name
    _require(set(found.values()), table, origin=origin)
    return table[list(found)].rename(columns=found)


def _require(found: set[str], table: pd.DataFrame, *, origin: str) -> None:
    missing = [name for name in ("time", *PRICES, "volume") if name not in found]
    if missing:
        known = "; ".join(f"{name}: {', '.join(_ALIASES[name])}" for name in missing)
        raise SchemaError(
            f"{origin} has no column for {', '.join(missing)}; its columns are "
            f"{[str(c) for c in table.columns]}. Names understood are {known}"
        )


def to_numbers(column: pd.Series, *, origin: str) -> np.ndarray:
    """A column as float64; text that is no number is an error, an empty cell is NaN.

    Raises:
        SchemaError: names the first text, its row, and how many there are.
    """
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    text = column.astype("string").str.strip()
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    spelt_nan = text.str.lower().isin(["", "nan", "na", "null", "none"]).fillna(True)
    bad = np.flatnonzero(np.isnan(numbers) & ~spelt_nan.to_numpy(dtype=bool))
    if bad.size:
        raise SchemaError(
            f"{origin}: {column.name} must be a number. First at row {bad[0]} (0 is the first after"
            f" the header): {column.name}={column.iloc[bad[0]]!r}. {bad.size} of {len(column)} rows"
            " break this rule; mend or remove them in the file"
        )
    return numbers


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
    if pd.api.types.is_datetime64_any_dtype(stamps):
        parsed = stamps
    else:
        parsed = _parse(stamps, time_format or "ISO8601", origin)
    if parsed.dt.tz is None:
        parsed = _localize(parsed, timezone=timezone, origin=origin)
    return parsed.dt.tz_convert("UTC").dt.as_unit("ns")


def _parse(stamps: pd.Series, time_format: str, origin: str) -> pd.Series:
    text = stamps.astype("string").str.strip()
    zoned = text.str.contains(r"(?:Z|[+-]\d{2}:?\d{2})$", na=False, regex=True)
    if zoned.any() and not zoned.all():
        row = int(np.argmin(zoned.to_numpy()))
        raise SourceError(
            f"{origin}: some stamps carry a zone and {int((~zoned).sum())} do not, the first at "
            f"row {row}: {stamps.iloc[row]!r}. Write them all with one, or all without"
        )
    parsed = pd.to_datetime(text, errors="coerce", utc=bool(zoned.any()), format=time_format)
    bad = np.flatnonzero(parsed.isna())
    if bad.size:
        raise SourceError(
            f"{origin}: row {bad[0]} has the time {stamps.iloc[bad[0]]!r}, which cannot be read as "
            f"{time_format}; {bad.size} of {len(stamps)} rows. Write them as 2024-03-08 14:31:00, "
            "or say how they are written, for example source.time_format='%m/%d/%Y %H:%M'"
        )
    return parsed


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
