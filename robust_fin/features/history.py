"""One contract's bars, with the history that the contracts before it provide."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from robust_fin.market.schema import PRICES


def contract_rows(bars: pd.DataFrame) -> list[Int[np.ndarray, " rows"]]:
    """Row numbers of each contract's bars, from the earliest expiry to the latest, empty ones out."""
    codes = bars["contract"].cat.codes.to_numpy()
    order = np.argsort(codes, kind="stable")
    borders = np.flatnonzero(np.diff(codes[order])) + 1
    return [part for part in np.split(order, borders) if part.size]


def chained_bars(
    bars: pd.DataFrame,
    contracts: Sequence[Int[np.ndarray, " rows"]],
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
    own = bars.iloc[contracts[position]]
    parts, first, factor = [own], own.iloc[0], 1.0
    oldest_day = first["trading_day"] - count
    lacking = count
    for earlier in reversed(contracts[:position]):
        times = bars["time"].iloc[earlier]
        before = earlier[(times < first["time"]).to_numpy()]
        if before.size == 0:
            continue
        factor *= first["close"] / bars["close"].iloc[before[-1]]
        if unit == "bars":
            taken = before[-lacking:] if lacking else before[:0]
        else:
            taken = before[bars["trading_day"].iloc[before].to_numpy() >= oldest_day]
        lacking -= taken.size
        if taken.size == 0:
            break
        part = bars.iloc[taken].copy()
        part[list(PRICES)] *= factor
        parts.append(part)
        first = bars.iloc[taken[0]]
        if unit == "bars" and lacking <= 0:
            break
    return pd.concat(parts[::-1]) if len(parts) > 1 else own
