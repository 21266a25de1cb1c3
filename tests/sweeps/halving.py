"""An adaptive strategy: the next trial depends on the outcomes so far."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override

from robust_fin.sweeps.strategy import FINISHED, Outcome, Row, Trial, job_row


class Halving:
    """Tries a learning rate, then half of the best learning rate so far, and so on.

    Args:
        workers: number of jobs that run at the same time.
        trials: total number of trials.
        first: learning rate of the first trial.
    """

    def __init__(self, *, workers: int, trials: int = 3, first: float = 0.04) -> None:
        self.workers, self.trials, self.first = workers, trials, first
        self.fixed: tuple[str, ...] = ()
        self.outcomes: list[Outcome] = []
        self.asked = 0

    def plan(
        self,
        overrides: Sequence[Override],
        *,
        folder: Path,  # noqa: ARG002
        done: Mapping[int, Outcome],
    ) -> int:
        self.fixed = tuple(str(override.input_line) for override in overrides)
        self.outcomes = [one for one in done.values() if one.state == FINISHED]
        self.asked = len(self.outcomes)
        return self.trials

    def ask(self) -> Trial | None:
        if self.asked == self.trials or len(self.outcomes) < self.asked:
            return None
        best = max(self.outcomes, key=lambda one: one.metrics["val/skill"] or 0.0, default=None)
        lr = self.first if best is None else float(best.trial.settings["optimizer.lr"]) / 2
        self.asked += 1
        return Trial(self.asked - 1, (*self.fixed, f"optimizer.lr={lr}"), {"ASKED": str(lr)})

    def tell(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def rows(self, outcome: Outcome) -> list[Row]:
        return [job_row(outcome)]

    def default_job(self) -> int | None:
        return None
