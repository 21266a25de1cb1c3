"""What a sweep tries, and how that ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
