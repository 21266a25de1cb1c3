"""Chained history of a contract's bars, and trailing windows over bars and trading dates."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from robust_fin.market.schema import PRICES

Rows = Int[np.ndarray, " _rows"]  # row numbers of a contract; lengths differ between contracts


def contract_rows(bars: pd.DataFrame) -> list[Rows]:
    """Return the row numbers of each contract that has bars, in the order of expiry."""
    codes = bars["contract"].cat.codes.to_numpy()
    order = np.argsort(codes, kind="stable")
    borders = np.flatnonzero(np.diff(codes[order])) + 1
    return [part for part in np.split(order, borders) if part.size]


def take_rows(bars: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """Select rows, without a copy if they are consecutive; `rows` must increase."""
    first, last = int(rows[0]), int(rows[-1])
    return bars.iloc[first : last + 1] if last - first + 1 == rows.size else bars.iloc[rows]


def chained_bars(
    bars: pd.DataFrame,
    contracts: Sequence[Rows],
    position: int,
    count: int,
    unit: str,
) -> pd.DataFrame:
    """Return the bars of a contract, preceded by the history that a lookback needs.

    Earlier prices are multiplied by one factor per roll, so that the return across a roll is 0: a
    roll adds neither a jump nor missing rows.

    Args:
        bars: all bars, sorted by time.
        contracts: row numbers of each contract, in the order of expiry.
        position: index of the contract in `contracts`.
        count: number of bars or trading dates of history.
        unit: "bars" or "trading dates".
    """
    current = take_rows(bars, contracts[position])
    parts, factor = [current], 1.0
    for link in chain_links(bars, contracts, position, count, unit):
        factor *= link.follower["close"] / bars["close"].iloc[link.before[-1]]
        if link.taken.size:
            taken = take_rows(bars, link.taken)
            parts.append(taken.assign(**{name: taken[name] * factor for name in PRICES}))
    return pd.concat(parts[::-1]) if len(parts) > 1 else current


class Link(NamedTuple):
    """History that a chain takes from an earlier contract.

    Attributes:
        before: rows of the contract before the follower.
        taken: the last rows of `before`, as many as needed; may be empty.
        follower: the first bar of the chain so far.
    """

    before: Rows
    taken: Rows
    follower: pd.Series


def chain_links(
    bars: pd.DataFrame,
    contracts: Sequence[Rows],
    position: int,
    count: int,
    unit: str,
) -> Iterator[Link]:
    """Yield the earlier contracts that provide history, latest first.

    Args:
        bars: all bars, sorted by time.
        contracts: row numbers of each contract, in the order of expiry.
        position: index of the contract in `contracts`.
        count: number of bars or trading dates of history.
        unit: "bars" or "trading dates".
    """
    follower, missing = bars.iloc[contracts[position][0]], count
    oldest_day = follower["trading_day"] - count
    for earlier in reversed(contracts[:position]):
        before = earlier[: np.searchsorted(bars["time"].iloc[earlier], follower["time"])]
        if before.size == 0:
            continue
        if unit == "bars":
            taken = before[max(0, before.size - missing) :]
        else:
            taken = before[bars["trading_day"].iloc[before].to_numpy() >= oldest_day]
        yield Link(before, taken, follower)
        if taken.size < before.size:  # this contract has enough history
            return
        follower, missing = bars.iloc[taken[0]], missing - taken.size


Values = Float[np.ndarray, "rows *rest"]
RowNumbers = Int[np.ndarray, " dates"]


def lagged(values: Values, count: int) -> Values:
    """Shift values down by `count` rows along the first axis; the first rows become NaN.

    >>> lagged(np.array([1.0, 2.0, 3.0]), 2)
    array([nan, nan,  1.])
    """
    moved = np.full_like(values, np.nan)
    moved[count:] = values[: max(0, len(values) - count)]
    return moved


def trailing_sum(values: Values, span: int) -> Values:
    """Sum the last `span` rows, including the current row; NaN for the first `span` - 1 rows.

    Windows are built by doubling instead of a running sum, so a value does not depend on rows
    before its window, not even by rounding.

    >>> trailing_sum(np.array([1.0, 2.0, 3.0, 4.0]), 3)
    array([nan, nan,  6.,  9.])
    """
    doubled, width, total, reach = values, 1, None, 0
    while True:
        if span & width:
            part = lagged(doubled, reach)
            total = part if total is None else total + part
            reach += width
        if reach == span:
            assert total is not None, f"a window of {span} rows"
            return total
        doubled = doubled + lagged(doubled, width)
        width *= 2


def trailing_mean(values: Values, span: int) -> Values:
    """Average the last `span` rows, including the current row."""
    return trailing_sum(values, span) / span


def trailing_max(values: Values, span: int) -> Values:
    """Return the largest of the last `span` rows, including the current row."""
    return _trailing_extreme(values, span, np.maximum)


def trailing_min(values: Values, span: int) -> Values:
    """Return the smallest of the last `span` rows, including the current row."""
    return _trailing_extreme(values, span, np.minimum)


def _trailing_extreme(
    values: Values, span: int, extreme: Callable[[Values, Values], Values]
) -> Values:
    widest, width = values, 1
    while 2 * width <= span:
        widest = extreme(widest, lagged(widest, width))
        width *= 2
    return extreme(widest, lagged(widest, span - width))  # the two windows may overlap


def first_rows(bars: pd.DataFrame) -> RowNumbers:
    """Return the row number of the first bar of each trading date with bars."""
    day = bars["trading_day"].to_numpy()
    return np.flatnonzero(np.diff(day, prepend=day[:1] - 1))


def last_rows(bars: pd.DataFrame) -> RowNumbers:
    """Return the row number of the last bar of each trading date with bars."""
    return np.append(first_rows(bars)[1:], len(bars)) - 1


def repeat_per_bar(
    bars: pd.DataFrame, values: Shaped[np.ndarray, " dates"]
) -> Shaped[np.ndarray, " rows"]:
    """Repeat values with one entry per trading date with bars, to one entry per bar."""
    return np.repeat(values, np.diff(first_rows(bars), append=len(bars)))


def value_on_day(
    bars: pd.DataFrame, values: Float[np.ndarray, " dates"], *, dates_ago: int
) -> Float[np.ndarray, " rows"]:
    """Look up the value of the trading date `dates_ago` before the trading date of each bar.

    NaN if that date has no bars: the value of an older date would have another span.

    Args:
        bars: bars of a contract, sorted by time.
        values: one entry per trading date with bars.
        dates_ago: trading dates, by the calendar.
    """
    days = bars["trading_day"].to_numpy()[first_rows(bars)]
    position = np.searchsorted(days, days - dates_ago)
    exists = days[position] == days - dates_ago
    return repeat_per_bar(bars, np.where(exists, values[position], np.nan))
