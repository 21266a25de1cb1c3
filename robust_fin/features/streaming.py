"""Features of bars that come block by block, the same to the last bit as of all bars at once."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool

from robust_fin.features.history import chain_links, contract_rows
from robust_fin.features.registry import (
    BARS,
    SESSION,
    TRADING_DATES,
    Feature,
    compute_features,
    get_feature,
    longest_chains,
)


class FeatureStream:
    """Holds back the bars that the lookbacks still need, and nothing more.

    Exact for every feature whose value does not depend, in its last bit either, on bars before its
    lookback; the registry asks that of each.

    Args:
        names: registered features.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """No bars were seen yet."""
        self._names = list(names)
        self._wanted = [get_feature(name) for name in names]
        self._held: pd.DataFrame | None = None

    def push(self, block: pd.DataFrame) -> pd.DataFrame:
        """The features of the next bars.

        Args:
            block: labelled bars that follow those of the calls before, in the order of time, with
                the same contracts as categories.

        Returns:
            What `compute_features` of all bars says of these.
        """
        bars = block if self._held is None else pd.concat([self._held, block], ignore_index=True)
        first = len(bars) - len(block)
        values = compute_features(bars, self._names, first=first)
        self._held = bars[still_needed(bars, self._wanted)].reset_index(drop=True)
        return values.iloc[first:].reset_index(drop=True)


def still_needed(bars: pd.DataFrame, wanted: Sequence[Feature]) -> Bool[np.ndarray, " rows"]:
    """Which bars a later one may look back to.

    Of each contract these are the last ones, and one more: it tells that there were older ones,
    which ends a chain where it would end with all bars at hand. A contract that began so late that
    its lookbacks reach beyond its first bar also needs the bars of others it is chained to.

    Args:
        bars: all bars that are at hand, in the order of time.
        wanted: the features.
    """
    count = max((one.lookback.count for one in wanted if one.lookback.unit == BARS), default=0)
    dates = _dates(wanted)
    days = bars["trading_day"].to_numpy()
    keep = np.zeros(len(bars), dtype=bool)
    contracts = contract_rows(bars)
    for position, rows in enumerate(contracts):
        start = rows.size - count - 1
        if dates is not None:
            start = min(start, int(np.searchsorted(days[rows], days[-1] - dates)) - 1)
        keep[rows[max(0, start) :]] = True
        for unit, reach in longest_chains(wanted).items():
            if unit == BARS and rows.size > reach:
                continue
            if unit != BARS and days[rows[0]] < days[-1] - reach:
                continue
            for link in chain_links(bars, contracts, position, reach, unit):
                keep[link.before[max(0, link.before.size - link.taken.size - 1) :]] = True
    return keep


def _dates(wanted: Sequence[Feature]) -> int | None:
    """Trading dates before the newest one whose bars are needed; None where dates do not matter."""
    counts = [one.lookback.count for one in wanted if one.lookback.unit == TRADING_DATES]
    counts += [0 for one in wanted if one.lookback.unit == SESSION]
    return max(counts, default=None)
