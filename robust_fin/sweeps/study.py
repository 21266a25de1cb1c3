"""An Optuna study in a journal file that several sweeps share, and its sampler."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate

from robust_fin.errors import ConfigError
from robust_fin.sweeps.search_space import Between, Space, Values, text_of
from robust_fin.training.pruning import (
    StudyLink,
    check_optuna_installed,
    journal_lock,
    journal_storage,
)

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a study chooses what is tried, and what is ended early.

    Attributes:
        sampler: as in YAML, without its seed.
        seed: of the sampler.
        pruner: as in YAML; None ends nothing.
    """

    sampler: Mapping[str, Any]
    seed: int
    pruner: dict[str, Any] | None

    def check(self) -> None:
        """Build both once, so that a wrong setting ends the search and not every job."""
        self.seeded(0)
        if self.pruner is not None:
            instantiate(self.pruner)

    def seeded(self, number: int) -> "BaseSampler":
        """The sampler of a trial, whose draws depend on seed and number, however often resumed.

        Several commands on one study would else try the same values.
        """
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)
        found: BaseSampler = instantiate(self.sampler, seed=int(seed[0]))
        return found


def distribution_of(values: Values) -> "BaseDistribution":
    """Values of a key as Optuna knows them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Between):
        return CategoricalDistribution(values.choices)
    low, high, log = values.low, values.high, values.log
    if values.whole:
        return IntDistribution(int(low), int(high), log=log, step=int(values.step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=values.step)


def suggested(trial: "Trial", key: str, values: "BaseDistribution") -> object:
    """What the sampler takes for a key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, CategoricalDistribution):
        return trial.suggest_categorical(key, values.choices)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(key, values.low, values.high, step=values.step, log=values.log)
    assert isinstance(values, FloatDistribution)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)


def word_of(value: object) -> str:
    """A value of a trial as it is written on a command line; a choice is text already."""
    return value if isinstance(value, str) else text_of(value)


if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages.journal import JournalStorage
    from optuna.trial import FrozenTrial


COMPLETE, PRUNE, FAIL = "COMPLETE", "PRUNED", "FAIL"  # as Optuna names them
_SWEEP, _JOB, _REASON = "sweep", "job", "reason"  # user attributes of a trial
_LOST, _DEFAULT = "lost", "default"


class SharedStudy:
    """What one sweep sees of a study, and adds to it.

    Args:
        study: opened.
        storage: that it lies in.
        journal: the file of that.
        folder: of the sweep.
        space: what is searched.
        sampling: how it chooses.
    """

    def __init__(
        self,
        study: "Study",
        storage: "JournalStorage",
        journal: Path,
        *,
        folder: Path,
        space: Space,
        sampling: Sampling,
    ) -> None:
        """Learn which trials are those of this sweep."""
        self._study, self._storage, self._journal = study, storage, journal
        self._sampling, self._folder = sampling, str(folder.absolute())
        self._distributions = {key: distribution_of(one) for key, one in space.items()}
        own = [one for one in self._trials() if one.user_attrs.get(_SWEEP) == self._folder]
        self._of_job = {one.user_attrs[_JOB]: one.number for one in own if not _is_lost(one)}
        self._again: set[int] = set()  # failed trials whose jobs are done once more

    @classmethod
    def opened(
        cls,
        journal: Path,
        name: str,
        *,
        folder: Path,
        space: Space,
        settings: str,
        sampling: Sampling,
    ) -> "SharedStudy":
        """Make a study, or join it.

        Args:
            journal: its file.
            name: of the study.
            folder: of the sweep.
            space: what is searched.
            settings: hash of what is not.
            sampling: how it chooses.

        Raises:
            ConfigError: the study was begun with another space or other settings, or its file
                cannot be written.
        """
        check_optuna_installed()
        import optuna

        sampling.check()
        try:
            journal.parent.mkdir(parents=True, exist_ok=True)
            mend(journal)
            storage = journal_storage(journal)
            study = optuna.create_study(
                study_name=name, storage=storage, direction="maximize", load_if_exists=True
            )
        except OSError as error:
            raise ConfigError(
                f"the study cannot be kept in {journal} ({error.strerror}). Give another file with "
                "sweep.storage=FILE"
            ) from error
        _require_same(study, journal, space=space, settings=settings)
        return cls(study, storage, journal, folder=folder, space=space, sampling=sampling)

    def ask(
        self, job: int, *, trials: int, default: Mapping[str, object] | None
    ) -> dict[str, str] | None:
        """Values of the next trial, as they are written; None where the study has enough.

        Args:
            job: number of the job that trains it.
            trials: of the study in all.
            default: what the first trial is; None leaves it to the sampler.
        """
        if self._counted(self._trials()) >= trials:
            return None
        trial = self._study.ask()
        self._study.sampler = self._sampling.seeded(
            trial.number
        )  # it is asked when a value is wanted
        before = self._trials()[: trial.number]
        trial.set_user_attr(_SWEEP, self._folder)
        trial.set_user_attr(_JOB, job)
        self._of_job[job] = trial.number
        if self._counted(before) >= trials:  # another command was faster
            self.lose(job)
            return None
        if default is not None and all(_is_lost(one) for one in before if _is_default(one)):
            trial.set_user_attr(_DEFAULT, True)
            self._fix(trial.number, default)
            values = dict(default)
        else:
            values = {key: suggested(trial, key, one) for key, one in self._distributions.items()}
        return {key: word_of(value) for key, value in values.items()}

    def tell(
        self, job: int, state: str, *, value: float | None = None, reason: str | None = None
    ) -> None:
        """How a job ended; nothing where the study knows already, or never knew of it."""
        from optuna.trial import TrialState

        number = self._of_job.get(job)
        if number is None or self._trials()[number].state.is_finished():
            return
        if reason is not None:
            self._note(number, _REASON, reason)
        found = TrialState[state]
        if state == PRUNE and not self._trials()[number].intermediate_values:
            found = TrialState.FAIL
        self._study.tell(number, value, state=found)

    def lose(self, job: int) -> None:
        """Give up the trial of a job that was killed; it does not count."""
        self._note(self._of_job[job], _LOST, True)
        self.tell(job, FAIL)

    def unfinished(self) -> list[int]:
        """Jobs of this sweep that the study still waits for."""
        trials = self._trials()
        return [job for job, one in self._of_job.items() if not trials[one].state.is_finished()]

    def do_again(self, job: int) -> None:
        """Let a job that failed not count, so that another can take its place."""
        self._again.add(self._of_job.pop(job))

    def jobs(self) -> list[int]:
        """Jobs of this sweep that have trials."""
        return sorted(self._of_job)

    def default_job(self) -> int | None:
        """The job of this sweep that has the default settings; None where another sweep has it."""
        trials = self._trials()
        found = [
            job for job, one in self._of_job.items()
            if _is_default(trials[one]) and not _is_lost(trials[one])
        ]  # fmt: skip
        return found[0] if found else None

    def environment(self, job: int) -> dict[str, str]:
        """What the processes of a job need to report and to be pruned; nothing without a pruner."""
        number = self._of_job.get(job)
        pruner = self._sampling.pruner
        if pruner is None or number is None:
            return {}
        link = StudyLink(str(self._journal), self._study.study_name, number, pruner)
        return link.to_environment()

    def _trials(self) -> "list[FrozenTrial]":
        return self._study.get_trials(deepcopy=False)

    def _counted(self, trials: "list[FrozenTrial]") -> int:
        return sum(not _is_lost(one) and one.number not in self._again for one in trials)

    def _fix(self, number: int, values: Mapping[str, object]) -> None:
        for key, value in values.items():
            one = self._distributions[key]
            held = one.to_internal_repr(value)
            self._storage.set_trial_param(self._id(number), key, held, one)

    def _note(self, number: int, key: str, value: object) -> None:
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)


def mend(journal: Path) -> None:
    """Cut off a last line that a killed process left torn, which would spoil the next one."""
    if not journal.is_file():
        return
    lock = journal_lock(journal)
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                log.warning("%s ended in a torn line, which is cut off", journal)
                file.truncate(whole)
    finally:
        lock.release()


def _require_same(study: "Study", journal: Path, *, space: Space, settings: str) -> None:
    """Trials of one study must differ in what is searched alone."""
    own = {"space": {key: asdict(one) for key, one in space.items()}, "settings": settings}
    for name, value in own.items():
        now = json.dumps(value, sort_keys=True)
        before = study.user_attrs.get(name)
        if before is None:
            study.set_user_attr(name, now)
        elif before != now:
            what = "in another sweep.space" if name == "space" else "with other settings"
            raise ConfigError(
                f"the study {study.study_name} in {journal} searches {what}: {before}, and not "
                f"{now}. Give another sweep.study=NAME for another search"
            )


def _is_lost(trial: "FrozenTrial") -> bool:
    return bool(trial.user_attrs.get(_LOST))


def _is_default(trial: "FrozenTrial") -> bool:
    """The first is one as soon as it is there, before it is said."""
    return trial.number == 0 or bool(trial.user_attrs.get(_DEFAULT))
