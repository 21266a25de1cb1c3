"""Labelled rows in the order of time: where they may be cut, and whose label reaches how far."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

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
    def of(cls, time: Stamps, label_end: Stamps, *, lockbox: float) -> "Timeline":
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
