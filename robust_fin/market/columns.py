"""Match the columns of a file or DataFrame with the schema: known names, and source.columns."""

import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.schema import PRICES
from robust_fin.runtime.files import replacing

log = logging.getLogger(__name__)

ORIGIN = "the DataFrame"
_DERIVED = ("trading_date", "trading_day")
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
_WINNERS = ("ts_event", "unix", "unix_timestamp")  # instants, preferred to other stamps
_FALLBACKS = {  # names that count only if no column has a name of `_ALIASES`
    "time": ("open_time", "opentime", "gmt_time", "utc_time", "local_time", "datetime_utc"),
    "volume": ("tickvol", "tick_volume"),
    "contract": ("instrument",),
}
_RESERVED = ("date", "trading_date", "trading_day")
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
_MAX_HEADERS = 40  # headers listed in a message, and characters of each


def match_headers(
    headers: Sequence[str], *, origin: str, columns: Mapping[str, str] = NO_COLUMNS
) -> dict[str, str]:
    """Find the header of each schema column, ignoring case, and of the columns that were asked for.

    Args:
        headers: the columns of the file, in order.
        origin: file name, for the message.
        columns: source.columns: schema name, or a name of your own -> header.

    Returns:
        Schema name -> header. "date" is among the names if the file has both a date and a time
        column, which together make the timestamp.

    Raises:
        SchemaError: a required column is missing, or two columns match the same name.
        ConfigError: `columns` names a column that the file lacks.
    """
    asked = _asked_headers(headers, columns, origin)
    by_name: dict[str, list[str]] = {}
    for header in headers:
        if header not in asked.values():
            by_name.setdefault(plain_header(header), []).append(header)
    matched = {}
    winner = next((name for name in _WINNERS if name in by_name), None)
    if winner is not None and "time" not in asked:
        asked["time"] = _single(by_name[winner], "time", origin)
    if "date" in by_name and "time" in by_name and "time" not in asked:
        matched["date"] = _single(by_name.pop("date"), "date", origin)
    for name, aliases in _ALIASES.items():
        if name in asked:
            matched[name] = asked[name]
            continue
        matches = [header for alias in aliases for header in by_name.get(alias, [])]
        spare = [header for alias in _FALLBACKS.get(name, ()) for header in by_name.get(alias, [])]
        if matches or spare:
            matched[name] = _single(matches or spare, name, origin)
    missing = [name for name in ("time", *PRICES, "volume") if name not in matched]
    if missing:
        known = "; ".join(f"{name}: {', '.join(_ALIASES[name])}" for name in missing)
        raise SchemaError(
            f"{origin} has no column for {', '.join(missing)}; its columns are "
            f"{_list_headers(headers)}. Accepted names are {known}. Name the column with "
            f"'source.columns={{{missing[0]}: {_likely(headers, missing[0])}}}'"
        )
    return matched | asked


def header_roles(headers: Sequence[str]) -> set[str]:
    """Return the schema names that the headers have by their own name."""
    plain = {plain_header(header) for header in headers}
    groups = [*_ALIASES.items(), *_FALLBACKS.items(), ("time", _WINNERS)]
    return {name for name, aliases in groups if not plain.isdisjoint(aliases)}


def plain_header(header: str) -> str:
    """Return a header in lower case, without <>, a leading number as in "1. open", and spaces."""
    text = header.strip().lower().strip("<>")
    return re.sub(r"^\d+\.\s*", "", text).replace(" ", "_")


def _likely(headers: Sequence[str], name: str) -> str:
    """Return the first header that contains a name, as Hydra's grammar quotes it, else NAME."""
    near = [header for header in headers if name[:3] in header.lower()]
    return quote_word(near[0][:_MAX_HEADERS]) if near else "NAME"


def quote_word(word: str) -> str:
    """Quote a word for Hydra's grammar, if it needs quotes."""
    return word if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word) else f'"{word}"'


def _asked_headers(
    headers: Sequence[str], columns: Mapping[str, str], origin: str
) -> dict[str, str]:
    """Return the header of each column that source.columns asks for."""
    asked = {}
    for name, column in columns.items():
        wanted = str(column)
        near = [header for header in headers if plain_header(header) == plain_header(wanted)]
        matches = [header for header in headers if header == wanted] or near
        matches = matches or [header for header in headers if header == name]
        if not name.isidentifier() or name in _RESERVED:
            raise ConfigError(
                f"source.columns: {name!r} cannot name a column; use open, high, low, close, "
                "volume, time, contract, session, vix or a name of your own such as my_flow"
            )
        if len(matches) != 1:
            raise ConfigError(
                f"source.columns={{{name}: {wanted}}}: {origin} has {len(matches)} such columns; "
                f"its columns are {_list_headers(headers)}"
            )
        asked[name] = matches[0]
    return asked


def _single(matches: list[str], name: str, origin: str) -> str:
    if len(matches) > 1:
        raise SchemaError(f"{origin}: the columns {matches} all mean {name}; keep one of them")
    return matches[0]


def _list_headers(headers: Sequence[str]) -> str:
    text = str([header[:_MAX_HEADERS] for header in headers[:_MAX_HEADERS]])
    more = len(headers) - _MAX_HEADERS
    return text if more <= 0 else f"{text} and {more} more"


def unread_columns(names: Sequence[str], headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns of a file that are not among the headers."""
    return tuple(name for name in names if name not in headers.values())


def write_bars(
    bars: pd.DataFrame, path: Path, *, length: str, columns: Mapping[str, str] = NO_COLUMNS
) -> None:
    """Write the columns that a source reads or may be asked for, under their own names.

    Args:
        bars: table with the columns of a bar file; the time, and the contract, may be its index.
        path: a .parquet file.
        length: length of a bar, as in source.bar.
        columns: source.columns.

    Raises:
        SchemaError: a column is missing, or the bars have another length.
        ConfigError: `columns` names a column that the table lacks.
    """
    table = _flat(bars)
    headers = match_headers(list(table.columns), origin=ORIGIN, columns=columns)
    others = [name for name in table if name not in headers.values()]
    numeric = [name for name in others if pd.api.types.is_numeric_dtype(table[name])]
    lost = [name for name in others if name not in (*numeric, *_DERIVED)]
    if lost:
        log.info("%s: the columns %s are not read", ORIGIN, ", ".join(map(str, lost)))
    table = table[[*headers.values(), *(name for name in numeric if name not in _DERIVED)]]
    time = table[headers["time"]]
    if "date" not in headers and pd.api.types.is_datetime64_any_dtype(time):
        contract = table[headers["contract"]] if "contract" in headers else None
        _check_length(time, contract, pd.Timedelta(length))
    with replacing(path) as part:
        table.to_parquet(part, index=False)


def _flat(bars: pd.DataFrame) -> pd.DataFrame:
    """Return the table with its index as columns and one level of column names."""
    table = bars
    if isinstance(table.columns, pd.MultiIndex):
        constant: list[Hashable] = [
            n for n, level in enumerate(table.columns.levels) if len(level) == 1
        ]
        if len(constant) < table.columns.nlevels - 1:
            raise SchemaError(
                f"{ORIGIN} has columns of several levels, such as {table.columns[0]}; pass the "
                "columns of one market, such as bars.xs('ES=F', axis=1, level=1)"
            )
        table = table.droplevel(constant[-(table.columns.nlevels - 1) :], axis=1)
    if isinstance(table.index, pd.DatetimeIndex):
        known = header_roles([str(name) for name in (*table.columns, table.index.name)])
        name = table.index.name if "time" in known and table.index.name is not None else "time"
        table = table.set_axis(table.index.rename(name), axis=0)
    if isinstance(table.index, pd.DatetimeIndex | pd.MultiIndex) or table.index.name is not None:
        kept = [name for name in table.index.names if name not in table.columns]
        table = table.reset_index(level=kept) if kept else table
    return table.rename(columns=str).reset_index(drop=True)


def _check_length(time: pd.Series, contract: pd.Series | None, length: pd.Timedelta) -> None:
    """Raise unless the smallest step between two bars of a contract is their length."""
    steps = time.diff() if contract is None else time.groupby(contract, observed=True).diff()
    steps = steps[steps > pd.Timedelta(0)]
    if steps.empty or steps.min() == length:
        return
    if steps.mode().iloc[0] == length:
        offset = (time - time.dt.normalize()) % length
        odd = time[offset != offset.mode().iloc[0]]
        raise SchemaError(
            f"{ORIGIN}: {len(odd)} of {len(time)} stamps are off the grid of {length} bars: "
            f"{', '.join(f'row {row} at {stamp}' for row, stamp in odd.head(3).items())}. "
            "Correct or remove these rows"
        )
    seconds = steps.min().total_seconds()
    raise SchemaError(
        f"the smallest step between two bars is {seconds:g} s, but source.bar is "
        f"{length.total_seconds():g} s; set source.bar={seconds:g}s"
    )
