"""Trials, their outcomes, and the strategies that are planned in advance: grid and population."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from hydra import compose
from hydra.core.override_parser.types import Override

from robust_fin.errors import ConfigError
from robust_fin.runs.results import MEMBERS
from robust_fin.runtime.records import read_members_file
from robust_fin.sweeps.search_space import MEMBER_KEYS, Settings, read_space, sobol_points

Figure = float | int | None
FINISHED, FAILED, PRUNED, STOPPED = "finished", "failed", "pruned", "stopped"
STATES = (FINISHED, FAILED, PRUNED, STOPPED)


@dataclass(frozen=True, slots=True)
class Trial:
    """The settings of one job.

    Attributes:
        number: of the job, from 0; also the name of its folder.
        overrides: all overrides of the job, both swept and common to all jobs.
        environment: variables for the job's processes, added to those of the sweep.
    """

    number: int
    overrides: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """Override values by key, as text; without the plus sign of an added key."""
        pairs = (override.partition("=") for override in self.overrides)
        return {key.lstrip("+~"): value for key, _, value in pairs}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes:
        trial: the job's trial.
        folder: run folder.
        state: finished, failed, pruned or stopped. A stopped job can resume.
        reason: one line, unless the job finished.
        metrics: metrics.json; empty unless the job finished.
        seconds: wall time, including the time before an interruption.
    """

    trial: Trial
    folder: Path
    state: str
    reason: str | None
    metrics: Mapping[str, Figure]
    seconds: float

    def __post_init__(self) -> None:
        assert self.state in STATES, self.state


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a sweep's table.

    Attributes:
        number: of the job.
        member: number of the population member; None if the row stands for the whole job.
        state: of the job or the member.
        reason: one line, unless it finished.
        settings: values by key, as text. Those that are equal in all rows become no column.
        overrides: of the job, joined.
        metrics: figures by name, with test/*; the table shows those of the chosen row only.
        seconds: wall time of the job.
        folder: run folder.
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


def job_row(outcome: Outcome) -> Row:
    """Return the row of a job that is a single trial."""
    trial = outcome.trial
    return Row(
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


@runtime_checkable
class Strategy(Protocol):
    """Chooses the next trial, given the outcomes so far.

    A sweep calls `plan` once, then `ask` whenever a worker is free and `tell` whenever a job has
    ended, all from one thread. The sweep is over when no job runs and `ask` returns None.

    Attributes:
        workers: number of jobs that run at the same time.
    """

    workers: int

    def plan(
        self, overrides: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]
    ) -> int | None:
        """Read the swept values and the outcomes before an interruption.

        Args:
            overrides: one per key, from `hydra.sweeper.params` and the command line. Those with
                `is_sweep_override` are swept, the others are common to all jobs.
            folder: of the sweep; it exists.
            done: outcomes of an earlier start of this sweep, by job number. A stopped job resumes
                when it is asked for again with the same number and overrides. The others must not
                be asked for again. A failed job that is to be retried is not included.

        Returns:
            Total number of jobs, including those done; None if unknown.

        Raises:
            ConfigError: these overrides cannot be swept. No job has started.
        """
        ...

    def ask(self) -> Trial | None:
        """Return the next trial; None if there is none until the next `tell`."""
        ...

    def tell(self, outcome: Outcome) -> None:
        """Take in the outcome of a job of this start."""
        ...

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """Return the table rows of a job, also of those passed to `plan`."""
        ...

    def default_job(self) -> int | None:
        """Return the number of the job with the default settings; None if there is none."""
        ...


class Grid:
    """Every combination of the swept values, in the order given; the last key varies fastest.

    Args:
        workers: number of jobs that run at the same time.
    """

    def __init__(self, *, workers: int) -> None:
        self.workers = workers
        self._pending: list[Trial] = []

    def plan(
        self, overrides: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]
    ) -> int:
        """See `Strategy.plan`."""
        trials = [
            Trial(number, words)
            for number, words in enumerate(itertools.product(*map(_expand, overrides)))
        ]
        for number, outcome in done.items():
            if number >= len(trials) or outcome.trial.overrides != trials[number].overrides:
                raise ConfigError(
                    f"job {number} of {folder} has the overrides "
                    f"{' '.join(outcome.trial.overrides)}, which differ from those of job {number} "
                    "of this grid. Start the sweep in another folder"
                )
        self._pending = _not_ended(trials, done)
        return len(trials)

    def ask(self) -> Trial | None:
        """See `Strategy.ask`."""
        return self._pending.pop(0) if self._pending else None

    def tell(self, outcome: Outcome) -> None:
        """See `Strategy.tell`; the plan is fixed."""

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """See `Strategy.rows`."""
        return [job_row(outcome)]

    def default_job(self) -> int | None:
        """Return None: the grid may not contain the default settings."""
        return None


def _not_ended(trials: Sequence[Trial], done: Mapping[int, Outcome]) -> list[Trial]:
    ended = {number for number, outcome in done.items() if outcome.state != STOPPED}
    return [trial for trial in trials if trial.number not in ended]


def _expand(override: Override) -> list[str]:
    """Return an override with each of its swept values; itself if it is not swept."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line} is an interval, but a grid needs a list of values. Use "
            "(0.001,0.01) or range(0,1,step=0.1), or draw from the interval with sweep=optuna or "
            "with sweep=population sweep.trials=N"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


class PopulationSearch:
    """A grid, or Sobol points, trained as populations: one job per architecture.

    Learning rate, weight decay, Huber delta, dropout and seed vary between the members of a
    population; every other swept key makes one job per value. A member has the numbers of the
    single run with its settings: bit for bit with engine=compiled, except for the last digits if
    dropout is swept.

    Args:
        workers: number of jobs that run at the same time.
        trials: number of Sobol points; None takes every combination.
        space: search space of the points, in addition to the keys swept on the command line.
        seed: of the Sobol sequence.
    """

    def __init__(
        self, *, workers: int, trials: int | None, space: Mapping[str, Any] | None, seed: int
    ) -> None:
        if trials is not None and trials < 1:
            raise ConfigError(f"sweep.trials={trials} must be a positive integer or null")
        if space and trials is None:
            raise ConfigError("sweep.space needs a number of points: set sweep.trials")
        self.workers, self._count, self._space, self._seed = workers, trials, space or {}, seed
        self._members: list[Settings] = []
        self._pending: list[Trial] = []

    def plan(
        self, overrides: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]
    ) -> int:
        """See `Strategy.plan`."""
        del folder
        swept = [override for override in overrides if override.is_sweep_override()]
        fixed = [str(word.input_line) for word in overrides if not word.is_sweep_override()]
        per_member = [word for word in swept if word.get_key_element() in MEMBER_KEYS]
        per_job = [word for word in swept if word.get_key_element() not in MEMBER_KEYS]
        self._members = self._member_settings(per_member)
        trials = [
            Trial(number, (*fixed, *words, *self._population((*fixed, *words))))
            for number, words in enumerate(itertools.product(*map(_expand, per_job)))
        ]
        self._pending = _not_ended(trials, done)
        return len(trials)

    def ask(self) -> Trial | None:
        """See `Strategy.ask`."""
        return self._pending.pop(0) if self._pending else None

    def tell(self, outcome: Outcome) -> None:
        """See `Strategy.tell`; the plan is fixed."""

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """Return one row per member, like a grid with one job per member."""
        return member_rows(outcome, self._members)

    def default_job(self) -> int | None:
        """Return None: the population may not contain the default settings."""
        return None

    def _member_settings(self, swept: Sequence[Override]) -> list[Settings]:
        if self._count is None:
            settings = combinations(swept)
        else:
            space = read_space(self._space, swept)
            unknown = sorted(set(space) - set(MEMBER_KEYS))
            if unknown:
                raise ConfigError(
                    f"sweep.space.{unknown[0]} cannot vary between members; only "
                    f"{', '.join(MEMBER_KEYS)} can. Sweep it on the command line: one job per value"
                )
            settings = sobol_points(space, self._count, seed=self._seed)
        if not settings or not settings[0]:
            raise ConfigError(
                "sweep=population has no key that varies between members. Sweep one of "
                f"{', '.join(MEMBER_KEYS)}, e.g. optimizer.lr=0.001,0.003,0.01"
            )
        return settings

    def _population(self, words: Sequence[str]) -> list[str]:
        """Return the overrides that define a job's members, all with the run's seed by default."""
        config = compose("train", overrides=list(words))
        if config.population.members is not None:
            raise ConfigError(
                f"population.members={config.population.members} is set by sweep=population "
                "itself. Leave it at null, or use sweep=grid"
            )
        lists = {key: [member[key] for member in self._members] for key in self._members[0]}
        lists.setdefault("seed", [str(config.seed)] * len(self._members))
        return [f"population.members={len(self._members)}"] + [
            f"population.{MEMBER_KEYS[key]}=[{','.join(values)}]" for key, values in lists.items()
        ]


def combinations(overrides: Sequence[Override]) -> list[Settings]:
    """Return every combination of the swept values; the last key varies fastest."""
    keys = [override.get_key_element() for override in overrides]
    values = [[word.partition("=")[2] for word in _expand(override)] for override in overrides]
    return [dict(zip(keys, point, strict=True)) for point in itertools.product(*values)]


def member_rows(outcome: Outcome, members: Sequence[Settings]) -> list[Row]:
    """Return one row per member of a population.

    Args:
        outcome: of the job.
        members: settings that differ between members, by key.
    """
    folds: list[list[dict[str, Any]]] = [[]] * len(members)
    if outcome.state == FINISHED:
        entries = read_members_file(outcome.folder / MEMBERS)
        folds = [entries[number :: len(members)] for number in range(len(members))]
    return [
        _member_row(outcome, number, settings, folds[number])
        for number, settings in enumerate(members)
    ]


# figures of a job that hold for each of its members
_JOB_FIGURES = (
    "parameters", "rows", "train_rows", "val_rows", "test_rows", "fit_rows", "folds",
    "train/outcome_excess_kurtosis", "train/objective_trivial",
)  # fmt: skip


def _member_row(
    outcome: Outcome, member: int, settings: Settings, folds: Sequence[Mapping[str, Any]]
) -> Row:
    """Return the row of a member, given its entry of members.json for each fold, if any."""
    state, reason, metrics = outcome.state, outcome.reason, dict[str, Figure]()
    if folds:
        state, reason = _member_state(folds)
        metrics = {name: outcome.metrics[name] for name in _JOB_FIGURES if name in outcome.metrics}
        metrics |= _member_figures(folds)
    common = outcome.trial.settings.items()
    return Row(
        number=outcome.trial.number,
        member=member,
        state=state,
        reason=reason,
        settings={k: v for k, v in common if not k.startswith("population.")} | settings,
        overrides=" ".join(outcome.trial.overrides),
        metrics=metrics,
        seconds=outcome.seconds,
        folder=outcome.folder,
    )


def _member_figures(folds: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Average each figure over the folds; None if a fold has none."""
    names = dict.fromkeys(n for fold in folds for n in fold if n.startswith(("val/", "test/")))
    figures: dict[str, Figure] = {}
    for name in names:
        values = [fold[name] for fold in folds if fold.get(name) is not None]
        figures[name] = float(np.mean(values)) if len(values) == len(folds) else None
    norms = [fold["gradient_norm_max"] for fold in folds if fold["gradient_norm_max"] is not None]
    return {**figures, "train/gradient_norm_max": max(norms, default=None)}


def _member_state(folds: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    frozen = next((fold for fold in folds if fold["frozen_at"] is not None), None)
    if frozen is None:
        return FINISHED, None
    where = f" of fold {frozen['fold']}" if len(folds) > 1 else ""
    return FAILED, (
        f"frozen at step {frozen['frozen_at']}{where}: a loss, gradient or weight is not finite"
    )
