"""Spans of rows for fitting, choosing and judging, purged where labels reach across a border."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from robust_fin.errors import ConfigError, SplitError

Index = Int[np.ndarray, " _rows"]  # of one span; each has a length of its own


@dataclass(frozen=True, slots=True)
class Fold:
    """Row numbers of one fold, in the order of time; no row is in two spans.

    Attributes:
        train: what fitting sees.
        val: what every choice sees; may be empty.
        test: scored once, at the end.
        purged: rows whose label, or the embargo, reaches into a later span, by reason.
    """

    train: Index
    val: Index
    test: Index
    purged: dict[str, int]


@dataclass(frozen=True, slots=True)
class Holdout:
    """train | val | test, one after the other in time.

    Attributes:
        val_fraction: share of all rows in val; 0 means that no choice is made.
        test_fraction: share of all rows in test.
        embargo: rows dropped before each border on top of the purge, in bars.
        refit: fit once more on train + val with what was chosen, before test is scored.
    """

    val_fraction: float
    test_fraction: float
    embargo: int
    refit: bool

    def __post_init__(self) -> None:
        """Refuse fractions that leave no training row."""
        val, test = self.val_fraction, self.test_fraction
        if val < 0 or test <= 0 or val + test >= 1 or self.embargo < 0:
            raise ConfigError(
                f"split.val_fraction={val}, split.test_fraction={test}, "
                f"split.embargo={self.embargo}: needed are val >= 0, test > 0, val + test < 1, "
                "embargo >= 0"
            )
        if self.refit and val == 0:
            raise ConfigError("split.refit=true needs a val span to choose on: raise val_fraction")

    def fold(self, time: np.ndarray, label_end: np.ndarray) -> Fold:
        """Cut the spans.

        A row is purged when its label ends after a later span starts.

        Args:
            time: datetime64, start of each labelled row's bar, not decreasing.
            label_end: datetime64, end of its label.

        Raises:
            SplitError: a span would be empty.
        """
        rows = time.size
        val_from = _border(time, round(rows * (1 - self.val_fraction - self.test_fraction)))
        test_from = _border(time, round(rows * (1 - self.test_fraction)))
        every = np.arange(rows)
        train, train_lost = self._before(every[:val_from], time, label_end, val_from)
        val, val_lost = self._before(every[val_from:test_from], time, label_end, test_from)
        fold = Fold(train, val, every[test_from:], _sum_reasons(train_lost, val_lost))
        wanted = {"train": True, "val": self.val_fraction > 0, "test": True}
        for span, needed in wanted.items():
            if needed and getattr(fold, span).size == 0:
                raise SplitError(
                    f"split.val_fraction={self.val_fraction}, split.test_fraction="
                    f"{self.test_fraction}, split.embargo={self.embargo} leave no {span} row of "
                    f"{rows} labelled rows. Use more bars or a smaller embargo"
                )
        return fold

    def without_val(self) -> "Holdout":
        """The same cut with val given to train; the test span stays as it is."""
        return replace(self, val_fraction=0.0, refit=False)

    def _before(
        self, span: Index, time: np.ndarray, label_end: np.ndarray, border: int
    ) -> tuple[Index, dict[str, int]]:
        if border >= time.size:
            return span, {}
        kept = span[label_end[span] <= time[border]]
        embargoed = min(self.embargo, kept.size)
        lost = {
            "purged: label reaches into the next span": span.size - kept.size,
            "embargo before the next span": embargoed,
        }
        return kept[: kept.size - embargoed], {name: count for name, count in lost.items() if count}


def _border(time: np.ndarray, row: int) -> int:
    """The first row of the stamp at `row`, so that rows of one time stay on one side."""
    return row if row >= time.size else int(np.searchsorted(time, time[row], side="left"))


def _sum_reasons(*parts: dict[str, int]) -> dict[str, int]:
    return {name: sum(p.get(name, 0) for p in parts) for part in parts for name in part}
