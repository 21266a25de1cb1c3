"""Walk-forward: fit on the past, judge on the block that follows, move on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from robust_fin.data.splits import Fold, Group, Split, check_count, check_settings, checked
from robust_fin.data.timeline import Index, Stamps, Timeline, nonzero, sum_reasons
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
        line = Timeline.of(time, label_end, lockbox=self.lockbox)
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
        fold = Fold(train, val, test, lost, (Group(number, 0, test.size),))
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
