"""Train, val and test spans of rows in time order, purged where labels reach across a border."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from robust_fin.errors import ConfigError, SplitError

Index = Int[np.ndarray, " _rows"]  # row numbers of one span; each has its own length
Stamps = Shaped[np.ndarray, " rows"]  # datetime64, one entry per labelled row

REACHES = "purged: label reaches into the next span"
EMBARGO = "embargo before the next span"
INTO_LOCKBOX = "purged: label reaches into the lockbox"
LOCKED = "lockbox: never looked at"


class LabelledRows(NamedTuple):
    """Columns of the labelled rows that a split is cut by.

    Attributes:
        time: datetime64, start of each row's bar, not decreasing; contracts may share a stamp.
        label_end: datetime64, end of its label.
        trading_date: datetime64.
        contract: categorical, with the categories in the order of expiry.
    """

    time: Stamps
    label_end: Stamps
    trading_date: Stamps
    contract: pd.Categorical


@dataclass(frozen=True, slots=True)
class Timeline:
    """Label intervals of the rows, and the rows of the lockbox at the end.

    A label covers the time from the start of its bar to its end, exclusive.

    Attributes:
        time: start of each row's bar, not decreasing.
        label_end: end of its label.
        reach: the latest label end up to each row.
        every: all row numbers, int32; spans without holes are views of it.
        end: the first row of the lockbox; the number of rows without one.
    """

    time: Stamps
    label_end: Stamps
    reach: Stamps
    every: Index
    end: int

    @classmethod
    def from_rows(cls, time: Stamps, label_end: Stamps, *, lockbox: float) -> "Timeline":
        """Prepare the rows once for all folds.

        Args:
            time: datetime64, start of each labelled row's bar, not decreasing.
            label_end: datetime64, end of its label.
            lockbox: share of all rows, at the end, that no span may contain.
        """
        every = np.arange(time.size, dtype=np.int32)  # half the memory of int64
        every.flags.writeable = False  # the spans of all folds share its memory
        reach = np.maximum.accumulate(label_end)
        end = _first_of_stamp(time, round(time.size * (1 - lockbox)))
        return cls(time, label_end, reach, every, end)

    def border(self, row: int) -> int:
        """Return the first row with the stamp of `row`, so that a stamp is never split."""
        return _first_of_stamp(self.time, row)

    def ending_by(self, rows: Index, limit: int) -> Index:
        """Keep the rows whose label ends no later than the bar of row `limit` starts.

        Args:
            rows: row numbers, increasing.
            limit: a row; beyond the last row everything is kept.
        """
        if limit >= self.time.size:
            return rows
        start = self.time[limit]
        # no label before `short` ends too late, so only the rows after it are compared
        short = int(np.searchsorted(rows, np.searchsorted(self.reach, start, side="right")))
        kept = rows[short:][self.label_end[rows[short:]] <= start]
        return np.concatenate([rows[:short], kept]) if kept.size else rows[:short]

    def before(self, first: int, last: int, *, embargo: int) -> tuple[Index, dict[str, int]]:
        """Return rows first..last without those purged or embargoed before the next span.

        Args:
            first: first row of the span.
            last: first row of the next span.
            embargo: rows dropped on top of the purge.

        Returns:
            The rows kept, and the number of rows lost by reason.
        """
        span = self.every[first:last]
        if last >= self.time.size:
            return span, {}
        kept = self.ending_by(span, last)
        embargoed = min(embargo, kept.size)
        lost = {REACHES: span.size - kept.size, EMBARGO: embargoed}
        return kept[: kept.size - embargoed], nonzero(lost)

    def open_rows(self, first: int, last: int) -> tuple[Index, dict[str, int]]:
        """Return rows first..last whose label ends before the lockbox, and the number of others."""
        span = self.every[first:last]
        kept = self.ending_by(span, self.end)
        return kept, nonzero({INTO_LOCKBOX: span.size - kept.size})

    def locked(self) -> dict[str, int]:
        """Return the number of rows in the lockbox, under their reason."""
        return nonzero({LOCKED: self.time.size - self.end})

    def bars_ahead(self) -> int:
        """Return how many later stamps the longest label reaches into."""
        stamps, position = np.unique(self.time, return_inverse=True)
        last = np.searchsorted(stamps, self.label_end, side="left") - 1
        return int(np.max(last - position, initial=0))


def _first_of_stamp(time: Stamps, row: int) -> int:
    return row if row >= time.size else int(np.searchsorted(time, time[row], side="left"))


def sum_reasons(*parts: Mapping[str, int]) -> dict[str, int]:
    """Add up rows lost by reason."""
    return {name: sum(p.get(name, 0) for p in parts) for part in parts for name in part}


def nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    """Drop the reasons that did not occur."""
    return {name: count for name, count in counts.items() if count}


class FoldGroup(NamedTuple):
    """Consecutive test rows of a fold.

    Attributes:
        number: of the group among all groups of the scheme, from 0 in time order.
        path: the backtest path that takes the group's forecasts from this fold; 0 if every row is
            tested once.
        rows: number of rows.
    """

    number: int
    path: int
    rows: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Row numbers of one fold, in time order; no row is in two spans.

    Attributes:
        train: rows to fit on.
        val: rows for every choice; may be empty.
        test: rows scored once, at the end.
        purged: number of rows in no span, by reason: their label or the embargo reaches into
            another span, or they lie outside of the fold.
        groups: of the test rows, in their order; empty if all are group 0 on path 0.
    """

    train: Index
    val: Index
    test: Index
    purged: dict[str, int]
    groups: tuple[FoldGroup, ...] = ()

    def test_group(self) -> Index:
        """Return the group number of each test row."""
        return self._per_row([group.number for group in self.groups])

    def test_path(self) -> Index:
        """Return the backtest path of each test row."""
        return self._per_row([group.path for group in self.groups])

    def _per_row(self, values: Sequence[int]) -> Index:
        if not values:
            return np.zeros(self.test.size, dtype=np.int64)
        return np.repeat(values, [group.rows for group in self.groups])


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(ABC):
    """Scheme that cuts labelled rows into folds.

    Attributes:
        val_fraction: share of all rows in val; 0 means that no choice is made.
        embargo: bars dropped on top of the purge.
        lockbox: share of all rows, at the end, that no span contains.
        refit: fit once more on train + val with the chosen settings, before test is scored.
    """

    val_fraction: float
    embargo: int
    lockbox: float
    refit: bool

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1 or self.embargo < 0:
            raise ConfigError(
                f"split.val_fraction={self.val_fraction}, split.embargo={self.embargo}; required: "
                "0 <= val_fraction < 1, embargo >= 0"
            )
        if not 0 <= self.lockbox < 1:
            raise ConfigError(
                f"split.lockbox={self.lockbox} must be a share of all rows, >= 0 and < 1"
            )
        if self.refit and self.val_fraction == 0:
            raise ConfigError(
                "split.refit=true needs a val span to choose on: raise val_fraction, or set "
                "split.refit=false"
            )

    def folds(self, rows: LabelledRows) -> tuple[Fold, ...]:
        """Cut all folds.

        Raises:
            SplitError: a span would be empty.
        """
        return tuple(self.each_fold(rows))

    @abstractmethod
    def each_fold(self, rows: LabelledRows) -> Iterator[Fold]:
        """Yield the folds one by one, so that they need not all be in memory."""

    def without_val(self) -> "Split":
        """Return the same split with val given to train; the test spans stay as they are."""
        return replace(self, val_fraction=0.0, refit=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout(Split):
    """train | val | test, consecutive in time.

    Attributes:
        test_fraction: share of all rows in test, which ends where the lockbox starts.
    """

    test_fraction: float
    lockbox: float = 0.0

    def __post_init__(self) -> None:
        val, test = self.val_fraction, self.test_fraction
        if val < 0 or test <= 0 or val + test + self.lockbox >= 1 or self.embargo < 0:
            raise ConfigError(
                f"split.val_fraction={val}, split.test_fraction={test}, "
                f"split.embargo={self.embargo}; required: val >= 0, test > 0, "
                f"val + test + lockbox < 1 (split.lockbox={self.lockbox}), embargo >= 0"
            )
        Split.__post_init__(self)  # super() does not work in a dataclass with slots

    def each_fold(self, rows: LabelledRows) -> Iterator[Fold]:
        """See `Split`; yields one fold."""
        line, size = (
            Timeline.from_rows(rows.time, rows.label_end, lockbox=self.lockbox),
            len(rows[0]),
        )
        val, test, locked = self.val_fraction, self.test_fraction, self.lockbox
        val_start = line.border(round(size * (1 - val - test - locked)))
        test_start = line.border(round(size * (1 - test - locked)))
        train_rows, train_lost = line.before(0, val_start, embargo=self.embargo)
        val_rows, val_lost = line.before(val_start, test_start, embargo=self.embargo)
        test_rows, test_lost = line.open_rows(test_start, line.end)
        lost = sum_reasons(train_lost, val_lost, test_lost, line.locked())
        fold = Fold(train_rows, val_rows, test_rows, lost)
        settings = f"split.val_fraction={val}, split.test_fraction={test}"
        check_spans(fold, self, settings=settings, rows=size)
        yield fold


def check_count(name: str, value: int, *, least: int) -> None:
    """Raise ConfigError unless a setting is an integer of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise ConfigError(f"split.{name}={value} must be an integer >= {least}")


def check_spans(fold: Fold, split: Split, *, settings: str, rows: int) -> None:
    """Raise SplitError if a span is empty; an empty val is fine without a val fraction.

    Args:
        fold: to check.
        split: that the fold was cut by.
        settings: that determine the spans, for the message.
        rows: number of labelled rows.
    """
    for span, needed in {"train": True, "val": split.val_fraction > 0, "test": True}.items():
        if needed and getattr(fold, span).size == 0:
            lockbox = f", split.lockbox={split.lockbox}" if split.lockbox else ""
            raise SplitError(
                f"{settings}, split.embargo={split.embargo}{lockbox} leave no {span} row of {rows} "
                "labelled rows. Use more bars or a smaller embargo"
            )


def backtest_paths(
    folds: Sequence[Fold], values: Sequence[Float[np.ndarray, " _test"]]
) -> tuple[Index, Float[np.ndarray, "paths rows"]]:
    """Combine the test spans of all folds to one value per tested row on every path.

    Args:
        folds: all folds of one split.
        values: of each fold's test rows, for example forecasts.

    Returns:
        The tested rows in time order, and their values on each path.

    Source: Lopez de Prado, Advances in Financial Machine Learning (2018), section 12.4.
    """
    path = np.concatenate([fold.test_path() for fold in folds])
    rows = np.concatenate([fold.test for fold in folds])
    order = np.lexsort((rows, path))
    paths = int(path.max()) + 1
    return rows[order].reshape(paths, -1)[0], np.concatenate(values)[order].reshape(paths, -1)
