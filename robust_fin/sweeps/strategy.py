"""What every strategy has in common: trials, outcomes, rows; and the grid."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from hydra.core.override_parser.types import Override

from robust_fin.errors import ConfigError

Figure = float | int | None
FINISHED, FAILED, PRUNED, STOPPED = "finished", "failed", "pruned", "stopped"
STATES = (FINISHED, FAILED, PRUNED, STOPPED)


@dataclass(frozen=True, slots=True)
class Trial:
    """One job: settings to train with.

    Attributes:
        number: of the job, from 0; its folder's name.
        overrides: words of a command line, whole: what is swept and what is the same for all.
        environment: variables that its processes need beside those of the sweep.
    """

    number: int
    overrides: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """Values by key, both as they are written; the plus of an added key is left out."""
        pairs = (word.partition("=") for word in self.overrides)
        return {key.lstrip("+~"): value for key, _, value in pairs}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes:
        trial: what was tried.
        folder: of its run.
        state: finished, failed, pruned, or stopped, which can go on.
        reason: one line where it has not finished.
        metrics: metrics.json; empty where it has not finished.
        seconds: wall time in this sweep and before it was interrupted.
    """

    trial: Trial
    folder: Path
    state: str
    reason: str | None
    metrics: Mapping[str, Figure]
    seconds: float

    def __post_init__(self) -> None:
        """A state that nobody knows would be counted as none."""
        assert self.state in STATES, self.state


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a sweep's table.

    Attributes:
        number: of the job.
        member: of a population, from 0; None where the job is one net or one mean of many.
        state: of the job, or of the member.
        reason: one line where it has not finished.
        settings: values by key, as they are written; what is the same in all rows is no column.
        overrides: of the job, as one line.
        metrics: figures by name, test/* among them; the table shows those of the chosen row alone.
        seconds: of the job.
        folder: of the run.
    """

    number: int
    member: int | None
    state: str
    reason: str | None
    settings: Mapping[str, str]
    overrides: str
    metrics: Mapping[str, Figure]
    seconds: float
    folder: Path


def one_row(outcome: Outcome) -> list[Row]:
    """The rows of a job that is one trial."""
    trial = outcome.trial
    row = Row(
        number=trial.number,
        member=None,
        state=outcome.state,
        reason=outcome.reason,
        settings=trial.settings,
        overrides=" ".join(trial.overrides),
        metrics=outcome.metrics,
        seconds=outcome.seconds,
        folder=outcome.folder,
    )
    return [row]


@runtime_checkable
class Strategy(Protocol):
    """Says what is tried next; told what came out.

    A sweep calls `plan` once, then `ask` whenever a place is free and `tell` whenever a job has
    ended, all from one thread. It is over when nothing runs and `ask` has nothing.

    Attributes:
        workers: jobs that run at a time.
    """

    workers: int

    def plan(
        self, words: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]
    ) -> int | None:
        """Take in what is swept, and what was done before an interruption.

        Args:
            words: one a key, what `hydra.sweeper.params` has and the command line; swept ones
                (`is_sweep_override`) beside those that are the same in all jobs.
            folder: of the sweep, which is there.
            done: jobs of an earlier start of this sweep, by number; empty at the first. One that
                is `stopped` goes on from its checkpoint when it is asked for again under its
                number with its overrides; the others must not be asked for again. A failed one
                that is to be tried again is not among them.

        Returns:
            Number of jobs in all, those done included; None where it is not known.

        Raises:
            ConfigError: the words cannot be swept like this; nothing has been started.
        """
        ...

    def ask(self) -> Trial | None:
        """The next job; None where there is none now. It is asked again after each `tell`."""
        ...

    def tell(self, outcome: Outcome) -> None:
        """A job of this start has ended, however it did."""
        ...

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """Its lines in the table; also of the jobs that `plan` was told of."""
        ...

    def default_job(self) -> int | None:
        """Number of the job that has the settings as they are; None where none is known to."""
        ...


class Grid:
    """Goes through all combinations in the order in which they are written, the last key fastest.

    Args:
        workers: jobs that run at a time.
    """

    def __init__(self, *, workers: int) -> None:
        """Nothing planned yet."""
        self.workers = workers
        self._left: list[Trial] = []

    def plan(
        self,
        words: Sequence[Override],
        *,
        folder: Path,
        done: Mapping[int, Outcome],
    ) -> int:
        """See `Strategy.plan`."""
        every = [
            Trial(number, overrides)
            for number, overrides in enumerate(itertools.product(*map(_values, words)))
        ]
        for number, one in done.items():
            if number >= len(every) or one.trial.overrides != every[number].overrides:
                raise ConfigError(
                    f"job {number} of {folder} was made with {' '.join(one.trial.overrides)}, and "
                    "the grid has another there now. Start another sweep in another folder"
                )
        over = {number for number, one in done.items() if one.state != STOPPED}
        self._left = [trial for trial in every if trial.number not in over]
        return len(every)

    def ask(self) -> Trial | None:
        """See `Strategy.ask`."""
        return self._left.pop(0) if self._left else None

    def tell(self, outcome: Outcome) -> None:
        """See `Strategy.tell`; a grid learns nothing."""

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """See `Strategy.rows`."""
        return one_row(outcome)

    def default_job(self) -> int | None:
        """None: what is listed need not hold the settings as they are."""
        return None


def _values(word: Override) -> list[str]:
    """The word once a value of its key.

    Raises:
        ConfigError: an interval, which has no list of values.
    """
    if not word.is_sweep_override():
        return [str(word.input_line)]
    if not word.is_discrete_sweep():
        raise ConfigError(
            f"{word.input_line} is an interval, of which a grid cannot try every value; write a "
            "list (0.001,0.01) or range(0,1,step=0.1), or search it with sweep=optuna"
        )
    return [f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()]
