"""A strategy that adapts: what it tries next depends on what came out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override

from robust_fin.sweeps.strategy import FINISHED, Outcome, Row, Trial, one_row


class Halving:
    """Tries a learning rate, then half the best one so far, and so on.

    Args:
        workers: jobs at a time.
        trials: in all.
        first: rate of the first.
    """

    def __init__(self, *, workers: int, trials: int = 3, first: float = 0.04) -> None:
        self.workers, self.trials, self.first = workers, trials, first
        self.words: tuple[str, ...] = ()
        self.told: list[Outcome] = []
        self.asked = 0

    def plan(
        self,
        words: Sequence[Override],
        *,
        folder: Path,  # noqa: ARG002
        done: Mapping[int, Outcome],
    ) -> int:
        self.words = tuple(str(word.input_line) for word in words)
        self.told = [one for one in done.values() if one.state == FINISHED]
        self.asked = len(self.told)
        return self.trials

    def ask(self) -> Trial | None:
        if self.asked == self.trials or len(self.told) < self.asked:
            return None
        best = max(self.told, key=lambda one: one.metrics["val/skill"] or 0.0, default=None)
        lr = self.first if best is None else float(best.trial.settings["optimizer.lr"]) / 2
        self.asked += 1
        return Trial(self.asked - 1, (*self.words, f"optimizer.lr={lr}"), {"ASKED": str(lr)})

    def tell(self, outcome: Outcome) -> None:
        self.told.append(outcome)

    def rows(self, outcome: Outcome) -> list[Row]:
        return one_row(outcome)

    def default_job(self) -> int | None:
        return None
