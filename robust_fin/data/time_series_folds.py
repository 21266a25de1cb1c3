"""Walk-forward, purged k-fold and combinatorial purged folds."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from robust_fin.data.splits import (
    INTO_LOCKBOX,
    Fold,
    FoldGroup,
    Index,
    LabelledRows,
    Split,
    Stamps,
    Timeline,
    check_count,
    check_spans,
    nonzero,
    sum_reasons,
)
from robust_fin.errors import ConfigError, SplitError

ROWS, TRADING_DATE, CONTRACT = "rows", "trading_date", "contract"
UNITS = {ROWS: "rows", TRADING_DATE: "trading dates", CONTRACT: "contracts"}
LATER = "outside this fold: after its test span"
EARLIER = "outside this fold: before its window"
OVERLAPS = "purged: label overlaps that of a test row"
EMBARGOED = "embargo after the last test label"
INTO_VAL = "purged: label reaches into val"


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkForward(Split):
    """Consecutive test blocks up to the end, each with the rows before it as train | val.

    Attributes:
        by: rows, trading_date or contract: the unit of blocks and window. A contract's block is
            the time in which it is the next to expire, so contracts may overlap.
        test_blocks: number of blocks, as equal in units as possible; None makes every trading date
            or contract a block.
        first_test: share of all rows before the first block, to the nearest border of a unit.
        window: units before each block that train and val are cut from (rolling); None takes all
            (expanding).
    """

    by: str
    test_blocks: int | None
    first_test: float
    window: int | None

    def __post_init__(self) -> None:
        Split.__post_init__(self)
        if self.by not in UNITS:
            raise ConfigError(f"split.by={self.by} must be one of {', '.join(UNITS)}")
        for name in ("test_blocks", "window"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=1)
        if self.test_blocks is None and self.by == ROWS:
            raise ConfigError(
                "split.test_blocks=null makes every trading date or contract a block; with "
                "split.by=rows give a number"
            )
        if not self.val_fraction < self.first_test < 1 - self.lockbox:
            raise ConfigError(
                f"split.first_test={self.first_test} must lie above split.val_fraction="
                f"{self.val_fraction} and below 1 - split.lockbox={self.lockbox}: it is the share "
                "of all rows before the first test block"
            )

    def each_fold(self, rows: LabelledRows) -> Iterator[Fold]:
        """See `Split`; in time order."""
        line = Timeline.from_rows(rows.time, rows.label_end, lockbox=self.lockbox)
        starts = self._unit_starts(line, rows)
        testable, _ = line.open_rows(0, line.end)  # the lockbox may leave a unit without a row
        starts = starts[: np.searchsorted(starts, testable[-1:].max(initial=0), side="right")]
        units = self._block_units(starts, rows.time.size)
        borders = [*(line.border(int(starts[unit])) for unit in units[:-1]), line.end]
        for number, unit in enumerate(units[:-1]):
            first = 0 if self.window is None else line.border(int(starts[unit - self.window]))
            yield self._fold(line, number, first, borders[number], borders[number + 1])

    def _unit_starts(self, line: Timeline, rows: LabelledRows) -> Index:
        """Return the first row of each unit before the lockbox."""
        if self.by == ROWS:
            return line.every[: line.end]
        dates = rows.trading_date[: line.end]
        if self.by == TRADING_DATE:
            return np.concatenate([[0], np.flatnonzero(dates[1:] != dates[:-1]) + 1])
        return contract_starts(line.time[: line.end], dates, rows.contract[: line.end])

    def _block_units(self, starts: Index, rows: int) -> list[int]:
        """Return the number of each block's first unit, and the number of units.

        Raises:
            SplitError: there are too few units for the blocks, or before the first of them.
        """
        first = max(1, _nearest(starts, round(rows * self.first_test)))
        unit = UNITS[self.by]
        left = starts.size - first
        blocks = left if self.test_blocks is None else self.test_blocks
        if left < max(1, blocks):
            raise SplitError(
                f"split.test_blocks={_yaml(self.test_blocks)}: only {max(0, left)} of "
                f"{starts.size} {unit} come after split.first_test={self.first_test} of {rows} "
                "labelled rows, and before the lockbox. "
                "Use fewer blocks, a smaller first_test, more bars or another split.by"
            )
        if self.window is not None and self.window > first:
            raise SplitError(
                f"split.window={self.window} {unit} before each test block, but only {first} "
                f"come before the first, at split.first_test={self.first_test} of {rows} labelled "
                "rows. Use a smaller window or a larger first_test"
            )
        sizes = [left // blocks + (number < left % blocks) for number in range(blocks)]
        return [first, *(first + np.cumsum(sizes)).tolist()]

    def _fold(self, line: Timeline, number: int, first: int, test_start: int, end: int) -> Fold:
        rows = line.time.size
        val_start = line.border(max(first, test_start - round(rows * self.val_fraction)))
        train, train_lost = line.before(first, val_start, embargo=self.embargo)
        val, val_lost = line.before(val_start, test_start, embargo=self.embargo)
        test, test_lost = line.open_rows(test_start, end)
        outside = nonzero({EARLIER: first, LATER: line.end - end})
        lost = sum_reasons(train_lost, val_lost, test_lost, outside, line.locked())
        fold = Fold(train, val, test, lost, (FoldGroup(number, 0, test.size),))
        settings = (
            f"fold {number}: split.first_test={self.first_test}, split.test_blocks="
            f"{_yaml(self.test_blocks)}, split.window={_yaml(self.window)}, split.val_fraction="
            f"{self.val_fraction}"
        )
        check_spans(fold, self, settings=settings, rows=rows)
        return fold


def _nearest(starts: Index, row: int) -> int:
    """Return the number of the unit that starts nearest to a row; the earlier of two."""
    if starts.size == 0:
        return 0
    after = min(int(np.searchsorted(starts, row)), starts.size - 1)
    before = max(0, after - 1)
    return before if abs(row - starts[before]) <= abs(starts[after] - row) else after


def _yaml(value: int | None) -> str:
    return "null" if value is None else str(value)


def contract_starts(time: Stamps, trading_date: Stamps, contract: pd.Categorical) -> Index:
    """Return the first row of the time in which each contract is the next to expire.

    That time begins after the last bar of the contracts before it. Contracts whose last bars are
    of one trading date share a time; otherwise those still trading when the bars end would make
    blocks of a few minutes.

    Args:
        time: datetime64, start of each row's bar, not decreasing.
        trading_date: datetime64, of each row.
        contract: of each row; the categories are in the order of expiry.
    """
    last = np.full(len(contract.categories), -1)
    last[contract.codes] = np.arange(time.size)  # of repeated indices the last assignment wins
    last = last[last >= 0]
    date = np.maximum.accumulate(trading_date[last])
    after = np.maximum.accumulate(np.searchsorted(time, time[last], side="right"))
    return np.concatenate([[0], after[:-1][date[1:] > date[:-1]]])


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgedKFold(Split):
    """k blocks of rows, each the test span of one fold whose train is the others.

    Val is the last of the training rows; the embargo follows the last test label.

    Attributes:
        k: number of blocks and folds.
    """

    k: int

    def __post_init__(self) -> None:
        Split.__post_init__(self)
        check_count("k", self.k, least=2)

    def each_fold(self, rows: LabelledRows) -> Iterator[Fold]:
        """See `Split`; in the order of the test blocks."""
        return _purged_folds(rows, self, groups=self.k, test_groups=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpcv(Split):
    """Combinatorial purged folds: every choice of test groups is a fold.

    Val is the last of the training rows; the embargo follows the last test label of each group.

    Attributes:
        groups: number of blocks that the rows are cut into.
        test_groups: blocks in the test span of a fold.
    """

    groups: int
    test_groups: int

    def __post_init__(self) -> None:
        Split.__post_init__(self)
        check_count("groups", self.groups, least=2)
        check_count("test_groups", self.test_groups, least=1)
        if self.test_groups >= self.groups:
            raise ConfigError(
                f"split.test_groups={self.test_groups} must be below split.groups={self.groups}, "
                "so that groups are left to train on"
            )

    def each_fold(self, rows: LabelledRows) -> Iterator[Fold]:
        """See `Split`; in the lexicographic order of the groups they test."""
        return _purged_folds(rows, self, groups=self.groups, test_groups=self.test_groups)

    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Return the fold that supplies each group's forecasts, one tuple per backtest path.

        A group is tested by C(groups - 1, test_groups - 1) folds, which is the number of paths;
        the p-th of them supplies path p.

        Source: Lopez de Prado (2018), section 12.4.1.
        """
        folds = _folds_by_group(self.groups, self.test_groups)
        return tuple(zip(*folds, strict=True))


class _Block(NamedTuple):
    """Group of rows, and the first rows that may be trained on after it is tested.

    Attributes:
        first: its first row.
        last: the row after its last.
        test: its rows whose label ends before the lockbox begins.
        free: the first row that starts when all their labels have ended.
        open: `free` plus the embargo.
    """

    first: int
    last: int
    test: Index
    free: int
    open: int


def _blocks(line: Timeline, *, groups: int, embargo: int) -> list[_Block]:
    """Cut the rows before the lockbox into groups of equal size, without splitting a stamp."""
    size, more = divmod(line.end, groups)
    firsts = [line.border(size * g + min(g, more)) for g in range(groups)] + [line.end]
    stamps = np.flatnonzero(np.r_[True, line.time[1:] != line.time[:-1]]) if embargo else line.every
    blocks = []
    for number, (first, last) in enumerate(pairwise(firsts)):
        test, _ = line.open_rows(first, last)
        if test.size == 0:
            raise SplitError(
                f"group {number} of {groups} has no row to test: {line.end} labelled rows before "
                "the lockbox are too few, as rows of one timestamp stay together. Use fewer folds "
                "or groups, or more bars"
            )
        free = int(np.searchsorted(line.time, line.label_end[test].max(), side="left"))
        index = int(np.searchsorted(stamps, free)) + embargo
        opened = int(stamps[index]) if index < stamps.size else line.time.size
        blocks.append(_Block(first, last, test, free, opened))
    return blocks


def _purged_folds(
    rows: LabelledRows, split: Split, *, groups: int, test_groups: int
) -> Iterator[Fold]:
    line = Timeline.from_rows(rows.time, rows.label_end, lockbox=split.lockbox)
    blocks = _blocks(line, groups=groups, embargo=split.embargo)
    suppliers = _folds_by_group(groups, test_groups)
    for number, chosen in enumerate(combinations(range(groups), test_groups)):
        tested = tuple(
            FoldGroup(group, suppliers[group].index(number), blocks[group].test.size)
            for group in chosen
        )
        test = np.concatenate([blocks[group].test for group in chosen])
        candidates, lost = _training_rows(line, blocks, chosen)
        train, val = _cut_val(line, candidates, round(line.time.size * split.val_fraction))
        lost[INTO_VAL] = candidates.size - train.size - val.size
        lost[INTO_LOCKBOX] += sum(
            blocks[g].last - blocks[g].first - blocks[g].test.size for g in chosen
        )
        fold = Fold(train, val, test, nonzero(lost) | line.locked(), tested)
        _check_training_rows(fold, line, split, number=number)
        yield fold


def _training_rows(
    line: Timeline, blocks: Sequence[_Block], chosen: Sequence[int]
) -> tuple[Index, Counter[str]]:
    """Return the rows of the groups that are not tested, less the purge and the embargo."""
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
    """Split rows into train and the last `val_rows` as val, purging train at the border."""
    if val_rows == 0 or rows.size == 0:
        return rows, rows[:0]
    border = line.border(int(rows[max(0, rows.size - val_rows)]))
    index = int(np.searchsorted(rows, border))
    return line.ending_by(rows[:index], border), rows[index:]


def _folds_by_group(groups: int, test_groups: int) -> list[list[int]]:
    """Return the numbers of the folds that test each group, increasing."""
    chosen = list(combinations(range(groups), test_groups))
    return [
        [fold for fold, tested in enumerate(chosen) if group in tested] for group in range(groups)
    ]


def _check_training_rows(fold: Fold, line: Timeline, split: Split, *, number: int) -> None:
    """Raise SplitError if train is empty, or val although a val fraction is set."""
    empty = [] if fold.train.size else ["training"]
    empty += ["val"] if split.val_fraction > 0 and not fold.val.size else []
    if empty:
        val = f"split.val_fraction={split.val_fraction}, " if split.val_fraction else ""
        raise SplitError(
            f"fold {number}, test rows {fold.test[0]}..{fold.test[-1]}, leaves no {empty[0]} row: "
            f"{val}labels reach {line.bars_ahead()} bars ahead and embargo={split.embargo}, in "
            f"{line.time.size} rows. Use fewer folds, a shorter horizon or a smaller embargo"
        )
