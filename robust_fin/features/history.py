"""Bars of a contract, with the history that the contracts before it provide."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

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
