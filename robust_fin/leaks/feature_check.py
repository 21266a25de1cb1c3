"""Check that no feature moves when later bars change, or with the start of the table."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from robust_fin.features.history import Rows, contract_rows
from robust_fin.features.registry import Lookback, compute_features, get_feature
from robust_fin.leaks.perturbations import (
    Change,
    Checked,
    Findings,
    Leak,
    PerturbationCut,
    Reach,
    around,
    comb,
    future_changed,
    future_missing,
    later_stamps,
    moved,
    past_lookback,
    past_missing,
    reach,
    reach_to,
    shocked,
    spread_of,
    where,
)
from robust_fin.market.schema import bar_starts

# the share of a contract that is dropped, at most: two starts are not both multiples of a chunk's
# length, and the short one leaves room for long lookbacks
_PARTS = (3, 20)
LATER, EARLIER = "later bars", "bars before its lookback"


class FeatureComparison(NamedTuple):
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
) -> Iterator[FeatureComparison]:
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
        yield FeatureComparison(LATER, change, last + 1, offset, before, after, np.arange(known))


def compared_by_comb(
    bars: pd.DataFrame, base: pd.DataFrame, *, seed: int
) -> Iterator[FeatureComparison]:
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
        yield FeatureComparison(
            LATER, future_changed, None, 0, base[names], after, np.flatnonzero(known), cuts
        )


def compared_without_start(
    bars: pd.DataFrame, base: pd.DataFrame, *, count: int, seed: int
) -> Iterator[FeatureComparison]:
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


def _started(
    bars: pd.DataFrame, base: pd.DataFrame, rows: Rows, drop: int
) -> Iterator[FeatureComparison]:
    if drop >= rows.size:
        return
    first, stop = int(rows[drop]), int(rows[-1]) + 1
    part, own = past_missing(bars.iloc[:stop], first), np.zeros(stop - first, dtype=bool)
    own[rows[drop:] - first] = True
    for lookback, names in lookbacks_of(columns_of(base)).items():
        known = np.flatnonzero(own & past_lookback(part, lookback))
        before, after = base[names].iloc[first:stop], compute_features(part, names)
        yield FeatureComparison(EARLIER, past_missing, first, first, before, after, known)


UNMOVED = "not moved by any bar; what is read beside the bars was not checked"
_CAUSAL = "Compute it from bars up to and including the row's own"


class Suspect(NamedTuple):
    """A value that moved.

    Attributes:
        row: of the value, among all bars.
        what: LATER or EARLIER.
        change: what was done to the bars.
        first: the row that the change began at, where there is one.
    """

    row: int
    what: str
    change: Change
    first: int | None


def check_features(
    bars: pd.DataFrame,
    names: Sequence[str],
    cuts: Sequence[PerturbationCut],
    *,
    starts: int,
    seed: int,
) -> Findings:
    """Change all bars after each cut, leave them out, and drop the first bars of contracts.

    Each cut is tried in a window around it, one in the whole table, where leaks of any length show,
    and then thousands at once, as many as the lookbacks leave room for.

    Args:
        bars: the table of `robust_fin.market.sources.Bars`, in the order of time.
        names: registered features.
        cuts: in the order of time, at least one.
        starts: contracts whose first bars are dropped.
        seed: of what is drawn.

    Returns:
        The leaks in the order of the features, and what was checked.
    """
    base = compute_features(bars, names)
    spread = {name: spread_of(base[name].to_numpy()) for name in names}
    judge = Judge(bars, spread)
    for comparison in _comparisons(bars, base, cuts, starts=starts, seed=seed):
        judge.hear(comparison)
    return Findings(judge.leaks(), judge.checked())


def _comparisons(
    bars: pd.DataFrame,
    base: pd.DataFrame,
    cuts: Sequence[PerturbationCut],
    *,
    starts: int,
    seed: int,
) -> Iterator[FeatureComparison]:
    names = columns_of(base)
    for cut in cuts:
        yield from compared_at(bars, names, cut.last, whole=False)
    yield from compared_at(bars, names, cuts[len(cuts) // 2].last, whole=True)
    yield from compared_by_comb(bars, base, seed=seed)
    yield from compared_without_start(bars, base, count=starts, seed=seed)


class Judge:
    """Counts what was compared, and keeps the first value of each feature that moved.

    Args:
        bars: all of them, in the order of time.
        spread: of each feature, in their order.
    """

    def __init__(self, bars: pd.DataFrame, spread: dict[str, float]) -> None:
        """Nothing was heard yet."""
        self._bars, self._spread = bars, spread
        self._suspects: dict[str, Suspect] = {}
        self._rows: Counter[tuple[str, str]] = Counter()
        self._cuts: Counter[tuple[str, str]] = Counter()
        self._moving: set[str] = set()

    def hear(self, comparison: FeatureComparison) -> None:
        """Compare the features of one comparison."""
        for name in columns_of(comparison.after):
            before, after = (one[name].to_numpy() for one in (comparison.before, comparison.after))
            values, spread = before[comparison.rows], self._spread[name]
            self._rows[name, comparison.what] += int(np.isfinite(values).sum())
            self._cuts[name, comparison.what] += comparison.cuts
            differ = moved(values, after[comparison.rows], spread=spread)
            if differ.any() and name not in self._suspects:
                self._accuse(
                    name, comparison.offset + int(comparison.rows[np.argmax(differ)]), comparison
                )
            if comparison.what == LATER and after.size == before.size:
                changed = moved(before, after, spread=spread)
                self._moving.update([name] * bool(changed.any()))

    def leaks(self) -> list[Leak]:
        """Of each feature that moved, how far it sees."""
        return [
            self._leak(name, self._suspects[name])
            for name in self._spread
            if name in self._suspects
        ]

    def checked(self) -> list[Checked]:
        """What was compared."""
        lines = []
        for name, what in self._rows:
            note = UNMOVED if what == LATER and name not in self._moving else ""
            lines.append(Checked(name, what, self._cuts[name, what], self._rows[name, what], note))
        order = {name: place for place, name in enumerate(self._spread)}
        return sorted(lines, key=lambda line: order[line.column])

    def _accuse(self, name: str, row: int, comparison: FeatureComparison) -> None:
        """Of many cuts at once a value counts only if bars after it alone move it."""
        suspect = Suspect(row, comparison.what, comparison.change, comparison.first)
        if comparison.first is None and self._sees(name, suspect) is None:
            return
        self._suspects[name] = suspect

    def _leak(self, name: str, suspect: Suspect) -> Leak:
        at = where(self._bars, suspect.row)
        if suspect.what == EARLIER:
            return restart(self._bars, name, suspect)
        seen = self._sees(name, suspect)
        if seen is None:  # it notices a part of the future, and not all of it at once
            starts = later_stamps(self._bars, suspect.row)
            last = int(np.searchsorted(starts, suspect.first or 0, side="right")) - 1
            seen = reach_to(bar_starts(self._bars), suspect.row, starts, max(0, last))
        how = "is another when later bars are left out"
        if suspect.change is future_changed:
            how = "changes when later bars change"
        return Leak(name, f"its value at {at} {how}; it sees {seen}", _CAUSAL, seen)

    def _sees(self, name: str, suspect: Suspect) -> Reach | None:
        """How far, in a window where the window shows it, else in all bars."""
        values, spread = partial(_values, name=name), self._spread[name]
        first, stop = around(self._bars, suspect.row, lookbacks=lookbacks_of([name]))
        near = past_missing(self._bars.iloc[:stop], first)
        found = reach(near, suspect.row - first, values, suspect.change, spread=spread)
        if found is not None and (stop == len(self._bars) or not found.to_end):
            return found
        return reach(self._bars, suspect.row, values, suspect.change, spread=spread)


def restart(bars: pd.DataFrame, name: str, suspect: Suspect) -> Leak:
    """The leak of a feature whose value depends on where the table begins."""
    assert suspect.first is not None, "bars dropped from nowhere on"
    before, lookback = suspect.row - suspect.first, get_feature(name).lookback
    return Leak(
        name,
        f"its value at {where(bars, suspect.row)} is another when the table begins {before:,} bars "
        f"before it: it reads beyond its lookback ({lookback}), though no later bar",
        "Let no value depend on where a file or block of rows begins, or declare a longer lookback",
    )


def _values(bars: pd.DataFrame, *, name: str) -> Float[np.ndarray, " rows"]:
    return compute_features(bars, [name])[name].to_numpy()
