"""What features say of bars as they are, beside what they say of changed bars."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from robust_fin.data.shocks import (
    Change,
    around,
    comb,
    future_changed,
    future_missing,
    past_lookback,
    past_missing,
    shocked,
)
from robust_fin.features.history import Rows, contract_rows
from robust_fin.features.registry import Lookback, compute_features, get_feature

# the share of a contract that is dropped, at most: two starts are not both multiples of a chunk's
# length, and the short one leaves room for long lookbacks
_PARTS = (3, 20)
LATER, EARLIER = "later bars", "bars before its lookback"


class Comparison(NamedTuple):
    """One change of bars.

    Attributes:
        what: LATER or EARLIER, what the features must not notice.
        change: what was done.
        first: the row among all bars that the change begins at, where there is one.
        offset: of the first row of `before` among all bars.
        before: features of the bars as they are.
        after: of the changed bars; fewer rows where bars were left out.
        rows: numbers of the rows of both that must be the same.
        cuts: how many moments are tried at once.
    """

    what: str
    change: Change
    first: int | None
    offset: int
    before: pd.DataFrame
    after: pd.DataFrame
    rows: Int[np.ndarray, " known"]
    cuts: int = 1


def lookbacks_of(names: Sequence[str]) -> dict[Lookback, list[str]]:
    """Features by their lookback."""
    ordered = sorted(names, key=lambda name: str(get_feature(name).lookback))
    groups = groupby(ordered, key=lambda name: get_feature(name).lookback)
    return {lookback: list(some) for lookback, some in groups}


def columns_of(frame: pd.DataFrame) -> list[str]:
    """The features that a table holds."""
    return [str(name) for name in frame.columns]


def compared_at(
    bars: pd.DataFrame, names: Sequence[str], last: int, *, whole: bool
) -> Iterator[Comparison]:
    """Bars after one row, changed and left out, in a window around it or in the whole table.

    A window is exact for what it shows: no causal feature may differ in any table.
    """
    offset, stop = 0, len(bars)
    if not whole:
        offset, stop = around(bars, last, lookbacks=lookbacks_of(names))
    part, known = past_missing(bars.iloc[:stop], offset), last + 1 - offset
    before = compute_features(part, names)
    for change in (future_changed, future_missing):
        after = compute_features(change(part, known), names)
        yield Comparison(LATER, change, last + 1, offset, before, after, np.arange(known))


def compared_by_comb(bars: pd.DataFrame, base: pd.DataFrame, *, seed: int) -> Iterator[Comparison]:
    """As many cuts at once as the lookbacks leave room for, from one end of the table to the other.

    Args:
        bars: in the order of time.
        base: its features.
        seed: of where the bars change.
    """
    for lookback, names in lookbacks_of(columns_of(base)).items():
        teeth, known = comb(bars, lookback, seed=seed)
        after = compute_features(shocked(bars, teeth), names)
        cuts = int(np.count_nonzero(np.diff(teeth.astype(np.int8)) > 0))
        yield Comparison(
            LATER, future_changed, None, 0, base[names], after, np.flatnonzero(known), cuts
        )


def compared_without_start(
    bars: pd.DataFrame, base: pd.DataFrame, *, count: int, seed: int
) -> Iterator[Comparison]:
    """Some contracts without their first bars and all that came before; beyond it nothing moves.

    Args:
        bars: in the order of time.
        base: its features.
        count: contracts; the first is always one of them.
        seed: of the contracts, and of how many bars are dropped.
    """
    draw, contracts = np.random.default_rng(seed), contract_rows(bars)
    others = 1 + draw.permutation(len(contracts) - 1)[: max(0, count - 1)]
    for position in (0, *sorted(others.tolist())):
        rows = contracts[position]
        for part in _PARTS:
            yield from _started(bars, base, rows, int(draw.integers(1, 2 + rows.size // part)))


def _started(bars: pd.DataFrame, base: pd.DataFrame, rows: Rows, drop: int) -> Iterator[Comparison]:
    if drop >= rows.size:
        return
    first, stop = int(rows[drop]), int(rows[-1]) + 1
    part, own = past_missing(bars.iloc[:stop], first), np.zeros(stop - first, dtype=bool)
    own[rows[drop:] - first] = True
    for lookback, names in lookbacks_of(columns_of(base)).items():
        known = np.flatnonzero(own & past_lookback(part, lookback))
        before, after = base[names].iloc[first:stop], compute_features(part, names)
        yield Comparison(EARLIER, past_missing, first, first, before, after, known)
