"""What the best of many trials shows by luck alone, in words.

Notation: the spread of trials is the standard deviation of their val/skill, one degree of freedom
less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robust_fin.evaluation.selection import expected_maximum, spread_of


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best of several trials, and what it would be if all were equally good.

    Attributes:
        trials: how many were made.
        best: greatest figure among them.
        mean: of their figures.
        spread: of their figures; NaN for one.
    """

    trials: int
    best: float
    mean: float
    spread: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "BestOf":
        """Of the figures of all trials that have one; at least one must."""
        known = [one for one in figures if math.isfinite(one)]
        return cls(len(known), max(known), math.fsum(known) / len(known), spread_of(known))

    def luck(self, trials: int) -> float:
        """What the best of so many equal trials is expected to show; NaN where one was made.

        Args:
            trials: how many, with the mean and spread of these.
        """
        return self.mean + expected_maximum(trials, spread=self.spread)

    def words(self, *, counted: int | None) -> list[str]:
        """What the choice is worth, in sentences.

        Args:
            counted: trials on the same bars in the ledger, these among them; None where no ledger
                counts them.
        """
        said = f"val/skill of the best of {self.trials} finished trials is {_percent(self.best)}."
        if self.trials == 1:
            return [
                f"val/skill of the one finished trial is {_percent(self.best)}; it was picked from "
                "nothing, so there is nothing to deflate.",
                *self._ledger(counted),
            ]
        luck = self.luck(self.trials)
        times = expected_maximum(self.trials, spread=1.0)
        beyond = self.best - luck
        return [
            f"{said} Were all {self.trials} equally good, the best would be expected at "
            f"{_percent(luck)} by luck alone: their mean, {_percent(self.mean)}, and {times:.2f} "
            f"times their spread of {100 * self.spread:.4f} %. It is {100 * abs(beyond):.4f} % "
            f"{'beyond' if beyond > 0 else 'short of'} that.",
            *self._ledger(counted),
            "This takes the trials for independent, their val/skill for normal, and all of their "
            "spread for luck: where settings truly differ, luck is less; where trials were made "
            "that nobody counted, it is more.",
        ]

    def _ledger(self, counted: int | None) -> list[str]:
        if counted is None:
            return ["No trial ledger counts these trials: how many were made before is not known."]
        if self.trials == 1:
            return [f"The trial ledger counts {counted} on these bars."]
        luck = _percent(self.luck(max(1, counted)))
        return [f"After the {counted} that the trial ledger counts on these bars: {luck} by luck."]


def _percent(value: float) -> str:
    return f"{100 * value:+.4f} %"
