"""Check that features depend neither on later bars nor on where the table starts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from robust_fin.features.history import Rows, contract_rows
from robust_fin.features.registry import Lookback, compute_features, get_feature
from robust_fin.leaks.perturbations import (
    Change,
    CheckedColumn,
    Findings,
    Leak,
    PerturbationCut,
    Reach,
    change_future,
    comb_masks,
    describe_bar,
    drop_future,
    drop_past,
    finite_std,
    has_full_lookback,
    later_starts,
    measure_reach,
    perturb_bars,
    reach_between,
    values_differ,
    window_around,
)
from robust_fin.market.schema import bar_starts

# Drop at most a third and a twentieth of a contract: two starts are rarely both multiples of a
# chunk length, and the short one leaves room for long lookbacks.
_DROP_FRACTIONS = (3, 20)
LATER, EARLIER = "later bars", "bars before its lookback"
UNCHANGED = "no change of a bar affects it; inputs other than bars were not checked"


class FeatureComparison(NamedTuple):
    """Features before and after a change of the bars.

    Attributes:
        what: LATER or EARLIER, the bars that must not affect the features.
        change: the change.
        first: the row at which the change starts; None for a comb.
        offset: the row number of the first row of `before` in the full table.
        before: features of the original bars.
        after: features of the changed bars; fewer rows if bars were dropped.
        rows: rows of both tables that must be equal.
        cuts: number of cuts tried at once.
    """

    what: str
    change: Change
    first: int | None
    offset: int
    before: pd.DataFrame
    after: pd.DataFrame
    rows: Int[np.ndarray, " known"]
    cuts: int = 1


class Suspect(NamedTuple):
    """The first value of a feature that changed; the fields are as in `FeatureComparison`."""

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
    """Change and drop the bars after each cut, and drop the first bars of some contracts.

    Each cut is tried in a window of bars around it. One is tried in the full table, which shows
    leaks of any length. Then a comb tries thousands of cuts at once.

    Args:
        bars: the table of `robust_fin.market.sources.Bars`, in time order.
        names: registered features.
        cuts: at least one, in time order.
        starts: number of contracts whose first bars are dropped.
        seed: seed of the comb and of the starts.
    """
    base = compute_features(bars, names)
    leaks = FeatureLeaks(bars, {name: finite_std(base[name].to_numpy()) for name in names})
    for comparison in _comparisons(bars, base, cuts, starts=starts, seed=seed):
        leaks.add(comparison)
    return Findings(leaks.leaks(), leaks.checked())


def _comparisons(
    bars: pd.DataFrame,
    base: pd.DataFrame,
    cuts: Sequence[PerturbationCut],
    *,
    starts: int,
    seed: int,
) -> Iterator[FeatureComparison]:
    names = _columns(base)
    for cut in cuts:
        window = window_around(bars, cut.last, lookbacks=_by_lookback(names))
        yield from compare_at_cut(bars, names, cut.last, window)
    yield from compare_at_cut(bars, names, cuts[len(cuts) // 2].last, (0, len(bars)))
    yield from compare_with_comb(bars, base, seed=seed)
    yield from compare_without_start(bars, base, count=starts, seed=seed)


def _by_lookback(names: Sequence[str]) -> dict[Lookback, list[str]]:
    groups: dict[Lookback, list[str]] = {}
    for name in sorted(names, key=lambda name: str(get_feature(name).lookback)):
        groups.setdefault(get_feature(name).lookback, []).append(name)
    return groups


def _columns(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns]


def compare_at_cut(
    bars: pd.DataFrame, names: Sequence[str], last: int, window: tuple[int, int]
) -> Iterator[FeatureComparison]:
    """Change and drop the bars after row `last`, in a window of rows (first, stop)."""
    offset, stop = window
    part, known = drop_past(bars.iloc[:stop], offset), last + 1 - offset
    before = compute_features(part, names)
    for change in (change_future, drop_future):
        after = compute_features(change(part, known), names)
        yield FeatureComparison(LATER, change, last + 1, offset, before, after, np.arange(known))


def compare_with_comb(
    bars: pd.DataFrame, base: pd.DataFrame, *, seed: int
) -> Iterator[FeatureComparison]:
    """Try as many cuts at once as the lookbacks allow, over the full table.

    Args:
        bars: in time order.
        base: their features.
        seed: seed of the positions.
    """
    for lookback, names in _by_lookback(_columns(base)).items():
        teeth, known = comb_masks(bars, lookback, seed=seed)
        after = compute_features(perturb_bars(bars, teeth), names)
        cuts = int(np.count_nonzero(np.diff(teeth.astype(np.int8)) > 0))
        rows = np.flatnonzero(known)
        yield FeatureComparison(LATER, change_future, None, 0, base[names], after, rows, cuts)


def compare_without_start(
    bars: pd.DataFrame, base: pd.DataFrame, *, count: int, seed: int
) -> Iterator[FeatureComparison]:
    """Start the table within a contract; values beyond the lookback must not change.

    Args:
        bars: in time order.
        base: their features.
        count: number of contracts; the first is always included.
        seed: seed of the contracts and of the number of dropped bars.
    """
    draw, contracts = np.random.default_rng(seed), contract_rows(bars)
    others = 1 + draw.permutation(len(contracts) - 1)[: max(0, count - 1)]
    for position in (0, *sorted(others.tolist())):
        rows = contracts[position]
        for fraction in _DROP_FRACTIONS:
            dropped = int(draw.integers(1, 2 + rows.size // fraction))
            if dropped < rows.size:
                yield from _compare_start(bars, base, rows, dropped)


def _compare_start(
    bars: pd.DataFrame, base: pd.DataFrame, rows: Rows, dropped: int
) -> Iterator[FeatureComparison]:
    first, stop = int(rows[dropped]), int(rows[-1]) + 1
    part, contract = drop_past(bars.iloc[:stop], first), np.zeros(stop - first, dtype=bool)
    contract[rows[dropped:] - first] = True
    for lookback, names in _by_lookback(_columns(base)).items():
        known = np.flatnonzero(contract & has_full_lookback(part, lookback))
        before, after = base[names].iloc[first:stop], compute_features(part, names)
        yield FeatureComparison(EARLIER, drop_past, first, first, before, after, known)


class FeatureLeaks:
    """Counts the values compared and keeps the first value of each feature that changed.

    Args:
        bars: the full table, in time order.
        std: standard deviation of each feature, in the order of the features.
    """

    def __init__(self, bars: pd.DataFrame, std: dict[str, float]) -> None:
        """Start without comparisons."""
        self._bars, self._std = bars, std
        self._suspects: dict[str, Suspect] = {}
        self._rows: Counter[tuple[str, str]] = Counter()
        self._cuts: Counter[tuple[str, str]] = Counter()
        self._affected: set[str] = set()

    def add(self, comparison: FeatureComparison) -> None:
        """Compare the features before and after a change."""
        for name in _columns(comparison.after):
            before, after = (t[name].to_numpy() for t in (comparison.before, comparison.after))
            values, std = before[comparison.rows], self._std[name]
            self._rows[name, comparison.what] += int(np.isfinite(values).sum())
            self._cuts[name, comparison.what] += comparison.cuts
            differ = values_differ(values, after[comparison.rows], std=std)
            if differ.any() and name not in self._suspects:
                row = comparison.offset + int(comparison.rows[np.argmax(differ)])
                self._suspect(name, row, comparison)
            is_comparable = comparison.what == LATER and after.size == before.size
            if is_comparable and values_differ(before, after, std=std).any():
                self._affected.add(name)

    def leaks(self) -> list[Leak]:
        """Return the leaks, in the order of the features."""
        return [
            self._leak(name, self._suspects[name]) for name in self._std if name in self._suspects
        ]

    def checked(self) -> list[CheckedColumn]:
        """Return what was compared, in the order of the features."""
        lines = []
        for name, what in self._rows:
            note = UNCHANGED if what == LATER and name not in self._affected else ""
            counts = self._cuts[name, what], self._rows[name, what]
            lines.append(CheckedColumn(name, what, *counts, note))
        order = {name: number for number, name in enumerate(self._std)}
        return sorted(lines, key=lambda line: order[line.column])

    def _suspect(self, name: str, row: int, comparison: FeatureComparison) -> None:
        """Keep the value; with a comb, only if a change of all bars after it affects it."""
        suspect = Suspect(row, comparison.what, comparison.change, comparison.first)
        if comparison.first is not None or self._reach(name, suspect) is not None:
            self._suspects[name] = suspect

    def _leak(self, name: str, suspect: Suspect) -> Leak:
        if suspect.what == EARLIER:
            return _start_leak(self._bars, name, suspect)
        seen = self._reach(name, suspect)
        if seen is None:  # a part of the future affects the value, but not all of it at once
            starts = later_starts(self._bars, suspect.row)
            last = int(np.searchsorted(starts, suspect.first or 0, side="right")) - 1
            seen = reach_between(bar_starts(self._bars), suspect.row, starts, max(0, last))
        how = "change" if suspect.change is change_future else "are removed"
        return Leak(
            name,
            f"its value at {describe_bar(self._bars, suspect.row)} changes when later bars {how}; "
            f"it sees {seen}",
            "Compute it from bars up to and including the current one",
            seen,
        )

    def _reach(self, name: str, suspect: Suspect) -> Reach | None:
        """Measure the reach in a window; in the full table if the window is too short."""
        values, std = partial(_feature_values, name=name), self._std[name]
        first, stop = window_around(self._bars, suspect.row, lookbacks=_by_lookback([name]))
        part = drop_past(self._bars.iloc[:stop], first)
        near = measure_reach(part, suspect.row - first, values, suspect.change, std=std)
        if near is not None and (stop == len(self._bars) or not near.to_end):
            return near
        return measure_reach(self._bars, suspect.row, values, suspect.change, std=std)


def _start_leak(bars: pd.DataFrame, name: str, suspect: Suspect) -> Leak:
    assert suspect.first is not None, "a dropped start has a first row"
    return Leak(
        name,
        f"its value at {describe_bar(bars, suspect.row)} changes when the table starts "
        f"{suspect.row - suspect.first:,} bars before it: it reads bars before its lookback "
        f"({get_feature(name).lookback}), but no later bar",
        "Make values independent of where a file or block of rows starts, or declare a longer "
        "lookback",
    )


def _feature_values(bars: pd.DataFrame, *, name: str) -> Float[np.ndarray, " rows"]:
    return compute_features(bars, [name])[name].to_numpy()
