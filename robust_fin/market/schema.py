"""The contract of a bar table, checked once at the border and trusted inside.

| column | type | rule |
|---|---|---|
| time | datetime64[ns, UTC] | start of the bar; strictly increasing within a contract |
| open, high, low, close | float64 | finite, > 0; low <= open, close <= high |
| volume | float64 | finite, >= 0 |
| contract | category | the code of the contract, categories in order of expiry |
| vix (optional) | float64 | > 0, or missing; known when the bar starts |
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Bool

from robust_fin.errors import SchemaError

PRICES = ("open", "high", "low", "close")
REQUIRED = ("time", *PRICES, "volume", "contract")
_SHOWN = 80  # characters of a cell


def check_bars(bars: pd.DataFrame, *, origin: str) -> None:
    """Raise on the first rule that `bars` breaks.

    Args:
        bars: a table with the columns above, rows in the order of the file.
        origin: the name of the file, for the message.

    Raises:
        SchemaError: names the rule, the first offending row with its content, and how many offend.
    """
    missing = [name for name in REQUIRED if name not in bars.columns]
    if missing:
        raise SchemaError(f"{origin} has no column {', '.join(missing)}; a bar table needs them")
    if bars.empty:
        raise SchemaError(f"{origin} has a header but no rows; a bar table needs at least one")
    for rule, broken in _rules(bars):
        if broken.any():
            raise SchemaError(_message(bars, rule, broken, origin))


def stamps(bars: pd.DataFrame) -> np.ndarray:
    """Start of each bar as datetime64[ns] in UTC, without the zone that numpy cannot hold."""
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


def shown(value: object) -> str:
    """A cell of a file as a message can hold it: one short line."""
    text = str(value)[:_SHOWN]
    return text if text.isprintable() else repr(text)[1:-1]


def _message(bars: pd.DataFrame, rule: str, broken: Bool[np.ndarray, " rows"], origin: str) -> str:
    row = int(np.argmax(broken))
    content = ", ".join(f"{name}={shown(value)}" for name, value in bars.iloc[row].items())
    return (
        f"{origin}: {rule}. First at row {row} (0 is the first after the header): {content}. "
        f"{int(broken.sum())} of {len(bars)} rows break this rule; mend or remove them in the file"
    )
