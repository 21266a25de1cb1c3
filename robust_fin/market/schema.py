"""Rules that every bar table must satisfy, its fingerprint, and writing it to Parquet."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from robust_fin.errors import SchemaError

log = logging.getLogger(__name__)

PRICES = ("open", "high", "low", "close")
REQUIRED = ("time", *PRICES, "volume", "contract")
LABELS = ("session", "trading_date", "trading_day")  # set by the labeller
_MAX_CELL = 80  # characters of a cell shown in a message


def check_bars(bars: pd.DataFrame, *, origin: str) -> None:
    """Check a bar table against all rules.

    Args:
        bars: table with the columns `REQUIRED`, rows in the order of the file and labelled by
            their number.
        origin: file name, for the message.

    Raises:
        SchemaError: names the broken rule, the first bad row with its content, and their number.
    """
    missing = [name for name in REQUIRED if name not in bars.columns]
    if missing:
        raise SchemaError(f"{origin} has no column {', '.join(missing)}; a bar table needs them")
    if bars.empty:
        raise SchemaError(f"{origin} has a header but no rows; a bar table needs at least one")
    for rule, broken in _rules(bars):
        if broken.any():
            raise SchemaError(_message(bars, rule, broken, origin))


def bar_starts(bars: pd.DataFrame) -> Shaped[np.ndarray, " rows"]:
    """Return the start of each bar in UTC as naive datetime64[ns]; numpy has no time zones."""
    return bars["time"].dt.tz_localize(None).to_numpy(dtype="datetime64[ns]")


def _rules(bars: pd.DataFrame) -> Iterator[tuple[str, Bool[np.ndarray, " rows"]]]:
    yield "time must be present", bars["time"].isna().to_numpy()
    yield "contract must be present", bars["contract"].isna().to_numpy()
    for name in PRICES:
        price = bars[name].to_numpy()
        yield f"{name} must be a finite number above 0", ~(np.isfinite(price) & (price > 0))
    volume = bars["volume"].to_numpy()
    yield "volume must be a finite number of at least 0", ~(np.isfinite(volume) & (volume >= 0))
    high, low = bars["high"].to_numpy(), bars["low"].to_numpy()
    yield "high must not be below low", high < low
    for name in ("open", "close"):
        price = bars[name].to_numpy()
        yield f"{name} must lie between low and high", (price < low) | (price > high)
    if "vix" in bars.columns:
        vix = bars["vix"].to_numpy()
        yield "vix must be above 0 and finite, or missing", (vix <= 0) | np.isinf(vix)
    yield from _time_rules(bars)


def _time_rules(bars: pd.DataFrame) -> Iterator[tuple[str, Bool[np.ndarray, " rows"]]]:
    step = bars.groupby("contract", sort=False, observed=True)["time"].diff().to_numpy()
    yield "a contract must not have the same time twice", step == np.timedelta64(0)
    yield "times must increase within a contract", step < np.timedelta64(0)


def excerpt(value: object) -> str:
    """Format a cell as one short printable line for a message."""
    text = str(value)[:_MAX_CELL]
    return text if text.isprintable() else repr(text)[1:-1]


def _message(bars: pd.DataFrame, rule: str, broken: Bool[np.ndarray, " rows"], origin: str) -> str:
    row = int(np.argmax(broken))
    content = ", ".join(f"{name}={excerpt(value)}" for name, value in bars.iloc[row].items())
    number = bars.index[row]
    return (
        f"{origin}: {rule}. First at row {number} (0 is the first after the header): {content}. "
        f"{int(broken.sum())} of {len(bars)} rows break this rule; fix or remove them in the file"
        f"{_hint(bars)}"
    )


def _hint(bars: pd.DataFrame) -> str:
    """Explain what to do about negative prices."""
    if not (bars["close"] <= 0).any():
        return ""
    return (
        ". The return of a price at or below 0 is undefined, as for crude oil on 2020-04-20, for "
        "spreads and for back-adjusted prices: leave out these dates, or use unadjusted prices "
        "of outright contracts"
    )


@dataclass(frozen=True, slots=True)
class BarSummary:
    """Origin, size, time span and fingerprint of a bar table.

    Attributes:
        origin: file name, or "synthetic bars".
        rows_in: number of rows in the file, before `source.fraction`.
        first_bar: start of the first bar.
        last_bar: start of the last bar.
        sha256: result of `fingerprint`.
        facts: inferred bar length and product, accepted disagreements with the settings, warnings.
    """

    origin: str
    rows_in: int
    first_bar: pd.Timestamp
    last_bar: pd.Timestamp
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        bars = {"first_bar": str(self.first_bar), "last_bar": str(self.last_bar)}
        rest = {"sha256": self.sha256, "facts": dict(self.facts)}
        return {"origin": self.origin, "rows_in": self.rows_in, **bars, **rest}

    @property
    def accepted(self) -> list[str]:
        """Accepted disagreements of the bars with their settings."""
        return list(self.facts.get("accepted", ()))

    def log_warnings(self) -> None:
        """Log what is odd about the bars, such as holes."""
        log_warnings(self.facts, origin=self.origin)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "BarSummary":
        """Convert back from the result of `as_dict`."""
        bars = {name: pd.Timestamp(content[name]) for name in ("first_bar", "last_bar")}
        return cls(**{**content, **bars})


def log_warnings(facts: Mapping[str, Any], *, origin: str) -> None:
    """Log the warnings among the facts about bars, one line each.

    Args:
        facts: what a run records about its bars.
        origin: file name.
    """
    for text in facts.get("warnings", ()):
        log.warning("%s: %s", origin, text)


def hashed_columns(table: pd.DataFrame) -> dict[str, Shaped[np.ndarray, " rows"]]:
    """Return the columns that `fingerprint` hashes before the contracts, in its order.

    The columns that source.columns adds come last, by name.
    """
    names = [*PRICES, "volume", *(["vix"] if "vix" in table else [])]
    extra = sorted(map(str, set(table) - {"time", "contract", *names, *LABELS}))
    columns = {name: table[name].to_numpy() for name in [*names, *extra]}
    return {"time": bar_starts(table).view(np.int64)} | columns


def fingerprint(table: pd.DataFrame) -> str:
    """Return the SHA-256 of all columns but the labels, column by column, in hexadecimal."""
    digest = hashlib.sha256()
    for name, values in hashed_columns(table).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).data)
    contract = table["contract"].cat
    digest.update(",".join(map(str, contract.categories)).encode())
    digest.update(np.ascontiguousarray(contract.codes.to_numpy()).data)
    return digest.hexdigest()
