"""From the columns a file holds to those of the schema: headers, numbers and codes.

| a cell | means |
|---|---|
| 5000.25, -1.5, .5, 2e3, inf | the float64 nearest to it; spaces and tabs around it are left out |
| nothing, nan, na, n/a, null, none, in any case | a missing number |
| 5,000.25 or 5000,25, 0x10, 1_000, 5 000, $5, true | no number: an error |
| ESH24, 202403 | a code, as it is written |
| nothing, nan, NaN, None, null, NULL, N/A | a missing code |

In `robust_fin.market.clock` it says what a stamp means, and in `robust_fin.market.schema` where a
cell may be missing.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from robust_fin.errors import SchemaError
from robust_fin.market.schema import PRICES, shown

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
