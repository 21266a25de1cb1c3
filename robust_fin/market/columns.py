"""Match the columns of a file with the schema: the names that are known, and source.columns."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from robust_fin.errors import ConfigError, SchemaError
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
