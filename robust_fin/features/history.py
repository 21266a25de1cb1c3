"""One contract's bars, with the history that the contracts before it provide."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from robust_fin.market.schema import PRICES

Rows = Int[np.ndarray, " _rows"]  # of one contract; each has a length of its own


def contract_rows(bars: pd.DataFrame) -> list[Rows]:
    """Row numbers of each contract's bars, in the order of expiry; empty contracts left out."""
    codes = bars["contract"].cat.codes.to_numpy()
    order = np.argsort(codes, kind="stable")
    borders = np.flatnonzero(np.diff(codes[order])) + 1
    return [part for part in np.split(order, borders) if part.size]


def take_rows(bars: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """Those rows, without a copy where they follow each other; `rows` increase and are not none."""
    first, last = int(rows[0]), int(rows[-1])
    return bars.iloc[first : last + 1] if last - first + 1 == rows.size else bars.iloc[rows]


def chained_bars(
    bars: pd.DataFrame,
    contracts: Sequence[Rows],
    position: int,
    count: int,
    unit: str,
) -> pd.DataFrame:
    """A contract's own bars, preceded by what a lookback needs of the contracts before it.

    The earlier prices are multiplied by one factor a roll, so that the step across it is 0: a roll
    then costs neither a jump nor rows.

    Args:
        bars: all bars, in the order of time.
        contracts: row numbers of each contract, in the order of expiry.
        position: of the contract in `contracts`.
        count: bars or trading dates of history wanted.
        unit: "bars" or "trading dates".
    """
    own = take_rows(bars, contracts[position])
    parts, factor = [own], 1.0
    for before, taken, follower in chain_links(bars, contracts, position, count, unit):
        factor *= follower["close"] / bars["close"].iloc[before[-1]]
        if taken.size:
            parts.append(_rescaled(take_rows(bars, taken), factor))
    return pd.concat(parts[::-1]) if len(parts) > 1 else own


class Link(NamedTuple):
    """What a chain takes from one earlier contract.

    Attributes:
        before: its bars before the follower.
        taken: the last of them, as many as are needed; may be none.
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
    """The earlier contracts that provide history, from the nearest to the farthest.

    Args:
        bars: all bars, in the order of time.
        contracts: row numbers of each contract, in the order of expiry.
        position: of the contract in `contracts`.
        count: bars or trading dates of history wanted.
        unit: "bars" or "trading dates".
    """
    follower, lacking = bars.iloc[contracts[position][0]], count
    oldest_day = follower["trading_day"] - count
    for earlier in reversed(contracts[:position]):
        before = earlier[: np.searchsorted(bars["time"].iloc[earlier], follower["time"])]
        if before.size == 0:
            continue
        if unit == "bars":
            taken = before[max(0, before.size - lacking) :]
        else:
            taken = before[bars["trading_day"].iloc[before].to_numpy() >= oldest_day]
        yield Link(before, taken, follower)
        if taken.size < before.size:  # older bars of this contract are not needed, so no older one
            return
        follower, lacking = bars.iloc[taken[0]], lacking - taken.size


def _rescaled(bars: pd.DataFrame, factor: float) -> pd.DataFrame:
    return bars.assign(**{name: bars[name] * factor for name in PRICES})
