"""Walk-forward, purged k-fold and combinatorial purged folds."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from robust_fin.data.splits import (
    INTO_LOCKBOX,
    Fold,
    FoldGroup,
    Index,
    Split,
    Stamps,
    Timeline,
    check_count,
    check_settings,
    checked,
    nonzero,
    sum_reasons,
)
from robust_fin.errors import ConfigError, SplitError

ROWS, TRADING_DATE, CONTRACT = "rows", "trading_date", "contract"
UNITS = {ROWS: "rows", TRADING_DATE: "trading dates", CONTRACT: "contracts"}
LATER = "outside this fold: after its test span"
EARLIER = "outside this fold: before its window"


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkForward(Split):
    """Test blocks one after the other to the end, each with what lies before it as train | val.

    Attributes:
        by: rows, trading_date or contract: the unit of blocks and window. A contract's time is
            the one in which it is the next to expire, so contracts may overlap.
        test_blocks: how many, as equal in units as can be; None makes every trading date or
            contract a block of its own.
        first_test: share of all rows before the first block, to the nearest border of a unit.
        window: units before each block that train and val are cut from (rolling); None takes all
            (expanding).
        val_fraction: share of all rows in val, the last before the block.
        embargo: rows dropped before each border on top of the purge, in bars.
        lockbox: share of all rows, at the end, that no span contains.
        refit: fit once more on train + val with what was chosen, before test is scored.
    """

    by: str
    test_blocks: int | None
    first_test: float
    window: int | None
    val_fraction: float
    embargo: int
    lockbox: float
    refit: bool

    def __post_init__(self) -> None:
        """Refuse blocks that cannot be cut from any bars."""
        check_settings(self)
        if self.by not in UNITS:
            raise ConfigError(f"split.by={self.by} must be one of {', '.join(UNITS)}")
        for name in ("test_blocks", "window"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=1)
        if self.test_blocks is None and self.by == ROWS:
            raise ConfigError(
                "split.test_blocks=null makes every trading date or contract a block of its own; "
                "with split.by=rows give a number"
            )
        if not self.val_fraction < self.first_test < 1 - self.lockbox:
            raise ConfigError(
                f"split.first_test={self.first_test} must lie above split.val_fraction="
                f"{self.val_fraction} and below 1 - split.lockbox={self.lockbox}: it is the share "
                "of all rows before the first test block"
            )

    def each_fold(
        self,
        time: Stamps,
        label_end: Stamps,
        *,
        trading_date: Stamps,
        contract: pd.Categorical,
    ) -> Iterator[Fold]:
        """See `Split`; in the order of time."""
        line = Timeline.from_rows(time, label_end, lockbox=self.lockbox)
        starts = self._unit_starts(line, trading_date, contract)
        testable, _ = line.open_rows(0, line.end)  # the lockbox may leave a unit without a row
        starts = starts[: np.searchsorted(starts, testable[-1:].max(initial=0), side="right")]
        units = self._block_units(starts, time.size)
        borders = [*(line.border(int(starts[unit])) for unit in units[:-1]), line.end]
        for number, unit in enumerate(units[:-1]):
            first = 0 if self.window is None else line.border(int(starts[unit - self.window]))
            yield self._fold(line, number, first, borders[number], borders[number + 1])

    def without_val(self) -> "WalkForward":
        """The same blocks with val given to train."""
        return replace(self, val_fraction=0.0, refit=False)

    def _unit_starts(self, line: Timeline, trading_date: Stamps, contract: pd.Categorical) -> Index:
        """The first row of each unit before the lockbox."""
        if self.by == ROWS:
            return line.every[: line.end]
        if self.by == TRADING_DATE:
            new = trading_date[1 : line.end] != trading_date[: max(0, line.end - 1)]
            return np.concatenate([[0], np.flatnonzero(new) + 1])
        some = slice(0, line.end)
        return contract_starts(line.time[some], trading_date[some], contract[some])

    def _block_units(self, starts: Index, rows: int) -> list[int]:
        """Number of the unit that each block starts with, and how many units there are.

        Raises:
            SplitError: there are too few units for the blocks, or before the first of them.
        """
        first = max(1, nearest(starts, round(rows * self.first_test)))
        unit = UNITS[self.by]
        left = starts.size - first
        blocks = left if self.test_blocks is None else self.test_blocks
        if left < max(1, blocks):
            raise SplitError(
                f"split.test_blocks={_said(self.test_blocks)}: only {max(0, left)} of "
                f"{starts.size} {unit} come after split.first_test={self.first_test} of {rows} "
                "labelled rows, and before the lockbox. "
                "Use fewer blocks, a smaller first_test, more bars or another split.by"
            )
        if self.window is not None and self.window > first:
            raise SplitError(
                f"split.window={self.window} {unit} before each test block, however only {first} "
                f"come before the first, at split.first_test={self.first_test} of {rows} labelled "
                "rows. Use a smaller window or a larger first_test"
            )
        sizes = [left // blocks + (number < left % blocks) for number in range(blocks)]
        return [first, *(first + np.cumsum(sizes)).tolist()]

    def _fold(self, line: Timeline, number: int, first: int, test_from: int, end: int) -> Fold:
        val_rows, rows = round(line.time.size * self.val_fraction), line.time.size
        val_from = line.border(max(first, test_from - val_rows))
        train, train_lost = line.before(first, val_from, embargo=self.embargo)
        val, val_lost = line.before(val_from, test_from, embargo=self.embargo)
        test, test_lost = line.open_rows(test_from, end)
        outside = nonzero({EARLIER: first, LATER: line.end - end})
        lost = sum_reasons(train_lost, val_lost, test_lost, outside, line.locked())
        fold = Fold(train, val, test, lost, (FoldGroup(number, 0, test.size),))
        said = (
            f"fold {number}: split.first_test={self.first_test}, split.test_blocks="
            f"{_said(self.test_blocks)}, split.window={_said(self.window)}, split.val_fraction="
            f"{self.val_fraction}"
        )
        return checked(fold, self, said=said, rows=rows)


def nearest(starts: Index, row: int) -> int:
    """Number of the unit that starts nearest to a row; the earlier of two, 0 if there is none."""
    if starts.size == 0:
        return 0
    after = min(int(np.searchsorted(starts, row)), starts.size - 1)
    before = max(0, after - 1)
    return before if abs(row - starts[before]) <= abs(starts[after] - row) else after


def _said(value: int | None) -> str:
    """As the command line writes it."""
    return "null" if value is None else str(value)


def contract_starts(time: Stamps, trading_date: Stamps, contract: pd.Categorical) -> Index:
    """The first row of the time in which each contract is the next to expire.

    That time begins after the last bar of the contracts before it. Contracts whose last bars are
    of one trading date share a time, so that those which trade on when the bars end make no block
    of a few minutes.

    Args:
        time: datetime64, start of each row's bar, not decreasing.
        trading_date: datetime64, of each row.
        contract: of each row; the categories are in the order of expiry.
    """
    last = np.full(len(contract.categories), -1)
    last[contract.codes] = np.arange(time.size)  # the last of several assignments stays
    last = last[last >= 0]
    date = np.maximum.accumulate(trading_date[last])
    after = np.maximum.accumulate(np.searchsorted(time, time[last], side="right"))
    return np.concatenate([[0], after[:-1][date[1:] > date[:-1]]])


OVERLAPS = "purged: label overlaps that of a test row"
EMBARGOED = "embargo after the last test label"
INTO_VAL = "purged: label reaches into val"

Chosen = tuple[int, ...]  # numbers of the groups that a fold tests, rising


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgedKFold(Split):
    """k blocks of rows, each tested once and trained on by the others.

    Attributes:
        k: how many blocks, and folds.
        val_fraction: share of all rows in val, the last of the training rows; 0 means that no
            choice is made.
        embargo: bars after the last test label that are not trained on.
        lockbox: share of all rows, at the end, that no span contains.
        refit: fit once more on train + val with what was chosen, before test is scored.
    """

    k: int
    val_fraction: float
    embargo: int
    lockbox: float
    refit: bool

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to train on."""
        check_settings(self)
        check_count("k", self.k, least=2)

    def each_fold(
        self,
        time: Stamps,
        label_end: Stamps,
        *,
        trading_date: Stamps,  # noqa: ARG002
        contract: pd.Categorical,  # noqa: ARG002
    ) -> Iterator[Fold]:
        """See `Split`; in the order of the test blocks."""
        line = Timeline.from_rows(time, label_end, lockbox=self.lockbox)
        return _purged_folds(line, self, groups=self.k, test_groups=1)

    def without_val(self) -> "PurgedKFold":
        """The same test blocks with val given to train."""
        return replace(self, val_fraction=0.0, refit=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpcv(Split):
    """Combinatorial purged folds: every choice of test groups is a fold.

    Attributes:
        groups: blocks that the rows are cut into.
        test_groups: how many of them a fold tests.
        val_fraction: share of all rows in val, the last of the training rows; 0 means that no
            choice is made.
        embargo: bars after the last test label of each group that are not trained on.
        lockbox: share of all rows, at the end, that no span contains.
        refit: fit once more on train + val with what was chosen, before test is scored.
    """

    groups: int
    test_groups: int
    val_fraction: float
    embargo: int
    lockbox: float
    refit: bool

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to train on."""
        check_settings(self)
        check_count("groups", self.groups, least=2)
        check_count("test_groups", self.test_groups, least=1)
        if self.test_groups >= self.groups:
            raise ConfigError(
                f"split.test_groups={self.test_groups} must be below split.groups={self.groups}, "
                "or nothing is left to train on"
            )

    def each_fold(
        self,
        time: Stamps,
        label_end: Stamps,
        *,
        trading_date: Stamps,  # noqa: ARG002
        contract: pd.Categorical,  # noqa: ARG002
    ) -> Iterator[Fold]:
        """See `Split`; in the lexicographic order of the groups they test."""
        line = Timeline.from_rows(time, label_end, lockbox=self.lockbox)
        return _purged_folds(line, self, groups=self.groups, test_groups=self.test_groups)

    def without_val(self) -> "Cpcv":
        """The same test groups with val given to train."""
        return replace(self, val_fraction=0.0, refit=False)

    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The fold that supplies each group's forecasts, one tuple a backtest path.

        A group is tested by C(groups - 1, test_groups - 1) folds, which is the number of paths;
        the p-th of them supplies path p.

        Source: Lopez de Prado (2018), section 12.4.1.
        """
        folds = _folds_by_group(self.groups, self.test_groups)
        return tuple(zip(*folds, strict=True))


def purged_kfold(
    label_row: Int[np.ndarray, " rows"], *, folds: int, embargo: int
) -> Iterator[Fold]:
    """`PurgedKFold` of rows that are one bar each, told by their numbers instead of their stamps.

    Args:
        label_row: number of the last row whose bar each row's label needs.
        folds: how many.
        embargo: rows after the last test label that are not trained on.
    """
    split = PurgedKFold(k=folds, val_fraction=0.0, embargo=embargo, lockbox=0.0, refit=False)
    line = Timeline.from_rows(np.arange(label_row.size), label_row + 1, lockbox=0.0)
    return _purged_folds(line, split, groups=folds, test_groups=1)


class _Block(NamedTuple):
    """A group of rows, and what training rows after it must keep away from.

    Attributes:
        first: its first row.
        last: the row after its last.
        test: its rows whose label ends before the lockbox begins.
        free: the first row that starts when all their labels have ended.
        open: the first row that may be trained on: `free` and the embargo.
    """

    first: int
    last: int
    test: Index
    free: int
    open: int


def _blocks(line: Timeline, *, groups: int, embargo: int) -> list[_Block]:
    """Cut all rows before the lockbox into groups that differ by a row at most, stamps whole."""
    size, more = divmod(line.end, groups)
    firsts = [line.border(size * g + min(g, more)) for g in range(groups)] + [line.end]
    stamps = np.flatnonzero(np.r_[True, line.time[1:] != line.time[:-1]]) if embargo else line.every
    found = []
    for number, (first, last) in enumerate(pairwise(firsts)):
        test, _ = line.open_rows(first, last)
        if test.size == 0:
            raise SplitError(
                f"group {number} of {groups} has no row to test: {line.end} labelled rows, the "
                "lockbox aside, are too few, for rows of one stamp stay together. Use fewer folds "
                "or groups, or more bars"
            )
        free = int(np.searchsorted(line.time, line.label_end[test].max(), side="left"))
        place = int(np.searchsorted(stamps, free)) + embargo
        opened = int(stamps[place]) if place < stamps.size else line.time.size
        found.append(_Block(first, last, test, free, opened))
    return found


def _purged_folds(line: Timeline, split: Split, *, groups: int, test_groups: int) -> Iterator[Fold]:
    blocks = _blocks(line, groups=groups, embargo=split.embargo)
    suppliers = _folds_by_group(groups, test_groups)
    for number, chosen in enumerate(combinations(range(groups), test_groups)):
        tested = tuple(
            FoldGroup(group, suppliers[group].index(number), blocks[group].test.size)
            for group in chosen
        )
        test = np.concatenate([blocks[group].test for group in chosen])
        rows, lost = _training_rows(line, blocks, chosen)
        train, val = _cut_val(line, rows, round(line.time.size * split.val_fraction))
        lost[INTO_VAL] = rows.size - train.size - val.size
        lost[INTO_LOCKBOX] += sum(
            blocks[g].last - blocks[g].first - blocks[g].test.size for g in chosen
        )
        fold = Fold(train, val, test, nonzero(lost) | line.locked(), tested)
        yield _with_rows(fold, line, split, number=number)


def _training_rows(
    line: Timeline, blocks: Sequence[_Block], chosen: Chosen
) -> tuple[Index, Counter[str]]:
    """Rows of all other groups less what is purged or embargoed, and how many were for what."""
    parts, lost, free, opened = [], Counter[str](), 0, 0
    for group, block in enumerate(blocks):
        if group in chosen:
            free, opened = max(free, block.free), max(opened, block.open)
            continue
        purged, embargoed = (min(max(row, block.first), block.last) for row in (free, opened))
        limit = min((blocks[g].first for g in chosen if g > group), default=line.end)
        candidates = line.every[embargoed : block.last]
        parts.append(line.ending_by(candidates, limit))
        lost[OVERLAPS] += purged - block.first
        lost[EMBARGOED] += embargoed - purged
        lost[INTO_LOCKBOX if limit == line.end else OVERLAPS] += candidates.size - parts[-1].size
    return np.concatenate(parts), lost


def _cut_val(line: Timeline, rows: Index, val_rows: int) -> tuple[Index, Index]:
    """The last of the training rows as val, and those before whose label ends before it."""
    if val_rows == 0 or rows.size == 0:
        return rows, rows[:0]
    place = max(0, rows.size - val_rows)
    border = line.border(int(rows[place]))
    place = int(np.searchsorted(rows, border))
    return line.ending_by(rows[:place], border), rows[place:]


def _folds_by_group(groups: int, test_groups: int) -> list[list[int]]:
    """Numbers of the folds that test each group, rising."""
    chosen = list(combinations(range(groups), test_groups))
    return [
        [fold for fold, tested in enumerate(chosen) if group in tested] for group in range(groups)
    ]


def _with_rows(fold: Fold, line: Timeline, split: Split, *, number: int) -> Fold:
    """The fold, if every span that was asked for has a row.

    Raises:
        SplitError: a span is empty.
    """
    empty = [] if fold.train.size else ["training"]
    empty += ["val"] if split.val_fraction > 0 and not fold.val.size else []
    if empty:
        val = f"split.val_fraction={split.val_fraction}, " if split.val_fraction else ""
        raise SplitError(
            f"fold {number}, test rows {fold.test[0]}..{fold.test[-1]}, leaves no {empty[0]} row: "
            f"{val}labels reach {line.bars_ahead()} bars ahead and embargo={split.embargo}, in "
            f"{line.time.size} rows. Use fewer folds, a shorter horizon or a smaller embargo"
        )
    return fold
