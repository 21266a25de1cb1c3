"""Train, val and test spans of rows in time order, purged where labels reach across a border."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from robust_fin.errors import ConfigError, SplitError

Index = Int[np.ndarray, " _rows"]  # row numbers of one span; each has a length of its own
Stamps = Shaped[np.ndarray, " rows"]  # datetime64, one entry a labelled row

REACHES = "purged: label reaches into the next span"
EMBARGO = "embargo before the next span"
INTO_LOCKBOX = "purged: label reaches into the lockbox"
LOCKED = "lockbox: never looked at"


@dataclass(frozen=True, slots=True)
class Timeline:
    """Labelled rows, and the part of them at the end that no span may contain.

    A label covers the time from the start of its bar to its end, which is not part of it.

    Attributes:
        time: start of each row's bar, not decreasing; contracts may share a stamp.
        label_end: end of its label.
        reach: the latest label end up to each row.
        every: all row numbers, int32; spans are views of it where they have no holes.
        end: the first row of the lockbox; the number of rows where there is none.
    """

    time: Stamps
    label_end: Stamps
    reach: Stamps
    every: Index
    end: int

    @classmethod
    def from_rows(cls, time: Stamps, label_end: Stamps, *, lockbox: float) -> "Timeline":
        """Look at the rows once, for all folds.

        Args:
            time: datetime64, start of each labelled row's bar, not decreasing.
            label_end: datetime64, end of its label.
            lockbox: share of all rows, at the end, that no span may contain.
        """
        every = np.arange(time.size, dtype=np.int32)  # half the memory to fill for many folds
        every.flags.writeable = False  # the spans of several folds share its memory
        reach = np.maximum.accumulate(label_end)
        end = first_of_stamp(time, round(time.size * (1 - lockbox)))
        return cls(time, label_end, reach, every, end)

    def border(self, row: int) -> int:
        """The first row of the stamp at `row`, so that rows of one time stay on one side."""
        return first_of_stamp(self.time, row)

    def ending_by(self, rows: Index, limit: int) -> Index:
        """Those of some rows whose label ends no later than the bar of row `limit` starts.

        Args:
            rows: row numbers, rising.
            limit: a row; where it lies beyond the last, nothing can be reached.
        """
        if limit >= self.time.size:
            return rows
        start = self.time[limit]
        # up to here no label is too long, whatever their order: only the rest is looked at
        short = int(np.searchsorted(rows, np.searchsorted(self.reach, start, side="right")))
        kept = rows[short:][self.label_end[rows[short:]] <= start]
        return np.concatenate([rows[:short], kept]) if kept.size else rows[:short]

    def before(self, first: int, last: int, *, embargo: int) -> tuple[Index, dict[str, int]]:
        """Rows first..last less those whose label, or the embargo, reaches into what follows.

        Args:
            first: row that the span starts at.
            last: row that the next span starts at.
            embargo: rows dropped on top of the purge.

        Returns:
            The rows kept, and how many were lost for which reason.
        """
        span = self.every[first:last]
        if last >= self.time.size:
            return span, {}
        kept = self.ending_by(span, last)
        embargoed = min(embargo, kept.size)
        lost = {REACHES: span.size - kept.size, EMBARGO: embargoed}
        return kept[: kept.size - embargoed], nonzero(lost)

    def open_rows(self, first: int, last: int) -> tuple[Index, dict[str, int]]:
        """Rows first..last less those whose label reaches into the lockbox, and how many those."""
        span = self.every[first:last]
        kept = self.ending_by(span, self.end)
        return kept, nonzero({INTO_LOCKBOX: span.size - kept.size})

    def locked(self) -> dict[str, int]:
        """Rows of the lockbox, under their reason."""
        return nonzero({LOCKED: self.time.size - self.end})

    def bars_ahead(self) -> int:
        """How many later stamps the longest label reaches into."""
        stamps, place = np.unique(self.time, return_inverse=True)
        last = np.searchsorted(stamps, self.label_end, side="left") - 1
        return int(np.max(last - place, initial=0))


def first_of_stamp(time: Stamps, row: int) -> int:
    """The first row that has the time of `row`; `row` itself where there is no such row."""
    return row if row >= time.size else int(np.searchsorted(time, time[row], side="left"))


def sum_reasons(*parts: Mapping[str, int]) -> dict[str, int]:
    """Rows lost, by reason, over several parts."""
    return {name: sum(p.get(name, 0) for p in parts) for part in parts for name in part}


def nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    """The reasons that occurred."""
    return {name: count for name, count in counts.items() if count}


class FoldGroup(NamedTuple):
    """Test rows of a fold that follow each other in time.

    Attributes:
        number: of the group among all groups of the scheme, from 0 in the order of time.
        path: the backtest path that takes the group's forecasts from this fold; 0 where every
            row is tested once.
        rows: how many there are.
    """

    number: int
    path: int
    rows: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Row numbers of one fold, in the order of time; no row is in two spans.

    Attributes:
        train: what fitting sees.
        val: what every choice sees; may be empty.
        test: scored once, at the end.
        purged: rows in no span, by reason: their label or the embargo reaches into another span,
            or they lie outside of the fold.
        groups: of the test rows, in their order; empty where all are group 0 on path 0.
    """

    train: Index
    val: Index
    test: Index
    purged: dict[str, int]
    groups: tuple[FoldGroup, ...] = ()

    def test_group(self) -> Index:
        """Number of each test row's group."""
        return self._spread([group.number for group in self.groups])

    def test_path(self) -> Index:
        """The backtest path of each test row."""
        return self._spread([group.path for group in self.groups])

    def _spread(self, values: Sequence[int]) -> Index:
        if not values:
            return np.zeros(self.test.size, dtype=np.int64)
        return np.repeat(values, [group.rows for group in self.groups])


class Split(ABC):
    """How labelled rows are cut into folds.

    Attributes:
        val_fraction: share of all rows in val; 0 means that no choice is made.
        embargo: rows dropped on top of the purge, in bars.
        lockbox: share of all rows, at the end, that no span contains.
        refit: fit once more on train + val with what was chosen, before test is scored.
    """

    __slots__ = ()
    val_fraction: float
    embargo: int
    lockbox: float
    refit: bool

    def folds(
        self,
        time: Stamps,
        label_end: Stamps,
        *,
        trading_date: Stamps,
        contract: pd.Categorical,
    ) -> tuple[Fold, ...]:
        """Cut every fold.

        Args:
            time: datetime64, start of each labelled row's bar, not decreasing.
            label_end: datetime64, end of its label.
            trading_date: datetime64, of each row.
            contract: of each row; the categories are in the order of expiry.

        Raises:
            SplitError: a span would be empty.
        """
        return tuple(self.each_fold(time, label_end, trading_date=trading_date, contract=contract))

    @abstractmethod
    def each_fold(
        self,
        time: Stamps,
        label_end: Stamps,
        *,
        trading_date: Stamps,
        contract: pd.Categorical,
    ) -> Iterator[Fold]:
        """The same one after the other, so that not all have to be held at once."""

    @abstractmethod
    def without_val(self) -> "Split":
        """The same cut with val given to train; the test spans stay as they are."""


@dataclass(frozen=True, slots=True)
class Holdout(Split):
    """train | val | test, one after the other in time.

    Attributes:
        val_fraction: share of all rows in val; 0 means that no choice is made.
        test_fraction: share of all rows in test.
        embargo: rows dropped before each border on top of the purge, in bars.
        refit: fit once more on train + val with what was chosen, before test is scored.
        lockbox: share of all rows, after test, that no span contains.
    """

    val_fraction: float
    test_fraction: float
    embargo: int
    refit: bool
    lockbox: float = 0.0

    def __post_init__(self) -> None:
        """Refuse fractions that leave no training row."""
        val, test = self.val_fraction, self.test_fraction
        if val < 0 or test <= 0 or val + test + self.lockbox >= 1 or self.embargo < 0:
            raise ConfigError(
                f"split.val_fraction={val}, split.test_fraction={test}, "
                f"split.embargo={self.embargo}: needed are val >= 0, test > 0, "
                f"val + test + lockbox < 1 (split.lockbox={self.lockbox}), embargo >= 0"
            )
        check_settings(self)

    def each_fold(
        self,
        time: Stamps,
        label_end: Stamps,
        *,
        trading_date: Stamps,  # noqa: ARG002
        contract: pd.Categorical,  # noqa: ARG002
    ) -> Iterator[Fold]:
        """See `Split`; there is one."""
        yield self.fold(time, label_end)

    def fold(self, time: Stamps, label_end: Stamps) -> Fold:
        """Cut the spans.

        A row is purged when its label ends after a later span starts.

        Args:
            time: datetime64, start of each labelled row's bar, not decreasing.
            label_end: datetime64, end of its label.

        Raises:
            SplitError: a span would be empty.
        """
        line, rows = Timeline.from_rows(time, label_end, lockbox=self.lockbox), time.size
        val, test, locked = self.val_fraction, self.test_fraction, self.lockbox
        val_from = line.border(round(rows * (1 - val - test - locked)))
        test_from = line.border(round(rows * (1 - test - locked)))
        train, train_lost = line.before(0, val_from, embargo=self.embargo)
        chosen, val_lost = line.before(val_from, test_from, embargo=self.embargo)
        judged, test_lost = line.open_rows(test_from, line.end)
        fold = Fold(
            train, chosen, judged, sum_reasons(train_lost, val_lost, test_lost, line.locked())
        )
        said = f"split.val_fraction={val}, split.test_fraction={test}"
        return checked(fold, self, said=said, rows=rows)

    def without_val(self) -> "Holdout":
        """The same cut with val given to train; the test span stays as it is."""
        return replace(self, val_fraction=0.0, refit=False)


def check_settings(split: Split) -> None:
    """Refuse what no scheme can work with.

    Raises:
        ConfigError: a setting that every split has is out of its range.
    """
    if not 0 <= split.val_fraction < 1 or split.embargo < 0:
        raise ConfigError(
            f"split.val_fraction={split.val_fraction}, split.embargo={split.embargo}: needed are "
            "0 <= val_fraction < 1, embargo >= 0"
        )
    if not 0 <= split.lockbox < 1:
        raise ConfigError(
            f"split.lockbox={split.lockbox} must be a share of all rows, at least 0 and below 1"
        )
    if split.refit and split.val_fraction == 0:
        raise ConfigError(
            "split.refit=true needs a val span to choose on: raise val_fraction, or set "
            "split.refit=false"
        )


def check_count(name: str, value: int, *, least: int) -> None:
    """Refuse a count that is none.

    Raises:
        ConfigError: it is no whole number, or too small.
    """
    if not isinstance(value, int) or value < least:
        raise ConfigError(f"split.{name}={value} must be a whole number, at least {least}")


def checked(fold: Fold, split: Split, *, said: str, rows: int) -> Fold:
    """The fold, if every span that was asked for has a row.

    Args:
        fold: what was cut.
        split: what was asked for.
        said: the settings that the spans come from.
        rows: labelled rows in all.

    Raises:
        SplitError: a span is empty.
    """
    for span, needed in {"train": True, "val": split.val_fraction > 0, "test": True}.items():
        if needed and getattr(fold, span).size == 0:
            also = f", split.lockbox={split.lockbox}" if split.lockbox else ""
            raise SplitError(
                f"{said}, split.embargo={split.embargo}{also} leave no {span} row of {rows} "
                "labelled rows. Use more bars or a smaller embargo"
            )
    return fold


def backtest_paths(
    folds: Sequence[Fold], values: Sequence[Float[np.ndarray, " _test"]]
) -> tuple[Index, Float[np.ndarray, "paths rows"]]:
    """Put the test spans of all folds together: one value a tested row on every path.

    Args:
        folds: all folds of one split.
        values: of each fold's test rows, such as forecasts.

    Returns:
        The tested rows in the order of time, and their values on each path.

    Source: Lopez de Prado, Advances in Financial Machine Learning (2018), section 12.4.
    """
    path = np.concatenate([fold.test_path() for fold in folds])
    rows = np.concatenate([fold.test for fold in folds])
    order = np.lexsort((rows, path))
    paths = int(path.max()) + 1
    return rows[order].reshape(paths, -1)[0], np.concatenate(values)[order].reshape(paths, -1)
