"""sweep=optuna: an adaptive search for the best val/skill, as an Optuna study in a journal file."""

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra import compose
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from robust_fin.errors import ConfigError
from robust_fin.ledger.trials import config_hash
from robust_fin.runs.schema import plain_values
from robust_fin.sweeps.search_space import (
    Space,
    default_values,
    distribution,
    read_space,
    suggest,
    to_text,
)
from robust_fin.sweeps.strategy import FINISHED, PRUNED, STOPPED, Outcome, Row, Trial, job_row
from robust_fin.training.pruning import (
    PRUNING_METRIC,
    StudyLink,
    check_optuna_installed,
    journal_lock,
    journal_storage,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages.journal import JournalStorage
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

JOURNAL = "study.journal"
COMPLETE, PRUNE, FAIL = "COMPLETE", "PRUNED", "FAIL"  # names of Optuna's trial states
# user attributes of a trial
_SWEEP, _JOB, _REASON, _LOST, _DEFAULT = "sweep", "job", "reason", "lost", "default"


class OptunaSearch:
    """Asks an Optuna study for the next trial, and maximises val/skill.

    Args:
        trials: total number of trials of the study, over all commands that share it; trials lost
            to a kill are not counted.
        workers: number of jobs of this command that run at the same time.
        space: config keys and their values, see `robust_fin.sweeps.search_space`. Keys swept on
            the command line are added.
        try_default: make the default settings the first trial.
        seed: of the sampler.
        study: name of the study in the journal.
        storage: journal file that several commands can share; None: a file in the sweep's folder.
        sampler: Optuna sampler as in YAML, without a seed.
        pruner: Optuna pruner as in YAML; None prunes no trial. Populations and several folds are
            never pruned.
    """

    def __init__(
        self,
        *,
        trials: int,
        workers: int,
        space: Mapping[str, Any] | None,
        try_default: bool,
        seed: int,
        study: str,
        storage: str | None,
        sampler: dict[str, Any],
        pruner: dict[str, Any] | None,
    ) -> None:
        if trials < 1:
            raise ConfigError(f"sweep.trials={trials} must be a positive integer")
        self.trials, self.workers, self.try_default = trials, workers, try_default
        self._given_space, self._name, self._storage = space or {}, study, storage
        self._sampler, self._seed, self._pruner = sampler, seed, pruner
        self._fixed: tuple[str, ...] = ()
        self._default: dict[str, object] | None = None
        self._stopped: list[Trial] = []  # resumed before anything else is tried
        self._jobs: set[int] = set()  # job numbers in use

    def plan(
        self, overrides: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]
    ) -> int | None:
        """See `Strategy.plan`."""
        swept = [override for override in overrides if override.is_sweep_override()]
        fixed = [
            override for override in overrides
            # sweep/sampler and sweep/pruner are no part of a job's config
            if not override.is_sweep_override() and not override.key_or_group.startswith("sweep/")
        ]  # fmt: skip
        space = _drop_fixed(read_space(self._given_space, swept), fixed)
        self._fixed = tuple(str(override.input_line) for override in fixed)
        config, choices = compose_base(self._fixed, space)
        self._default = default_values(space, config, choices) if self.try_default else None
        self._log_limits(config)
        self.study = SharedStudy(
            Path(self._storage or folder / JOURNAL).expanduser().absolute(),
            self._name,
            folder=folder,
            space=space,
            settings=config_hash(plain_values(config)),
            sampler=self._sampler,
            seed=self._seed,
            pruner=self._pruner,
        )
        self._restore(done)
        return self.trials if self._storage is None else None

    def ask(self) -> Trial | None:
        """See `Strategy.ask`."""
        if self._stopped:
            return self._stopped.pop(0)
        job = next(number for number in range(len(self._jobs) + 1) if number not in self._jobs)
        values = self.study.ask(job, trials=self.trials, default=self._default)
        if values is None:
            return None
        self._jobs.add(job)
        words = tuple(f"{key}={value}" for key, value in values.items())
        return Trial(job, self._fixed + words, self.study.environment(job))

    def tell(self, outcome: Outcome) -> None:
        """See `Strategy.tell`. A trial whose val/skill is not finite counts as failed."""
        job, reason = outcome.trial.number, outcome.reason
        skill = outcome.metrics.get(PRUNING_METRIC)
        if outcome.state == STOPPED:
            return  # it can resume, so its trial stays open
        if outcome.state == PRUNED:
            self.study.tell(job, PRUNE, reason=reason)
        elif outcome.state == FINISHED and skill is not None and math.isfinite(skill):
            self.study.tell(job, COMPLETE, value=float(skill))
        else:
            self.study.tell(job, FAIL, reason=reason or f"{PRUNING_METRIC} is {skill}")

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """See `Strategy.rows`."""
        return [job_row(outcome)]

    def default_job(self) -> int | None:
        """See `Strategy.default_job`."""
        return self.study.default_job() if self.try_default else None

    def _restore(self, done: Mapping[int, Outcome]) -> None:
        """Resume stopped trials, and tell the study the outcomes that a kill kept from it."""
        self._jobs = set(done)
        for job, outcome in sorted(done.items()):
            if outcome.state == STOPPED:
                environment = self.study.environment(job)
                self._stopped.append(Trial(job, outcome.trial.overrides, environment))
        for job in self.study.unfinished_jobs():
            if job in done:
                self.tell(done[job])
            else:
                self.study.mark_lost(job)
        self.study.release_except(done)

    def _log_limits(self, config: DictConfig) -> None:
        holdout = config.split["_target_"].endswith(".Holdout")
        if self._pruner is not None and (not holdout or config.population.members is not None):
            log.info("populations and several folds are not pruned: every trial trains to its end")
        if self._default is None:
            log.info("the default settings are not a trial, so the best trial may be worse")


def _drop_fixed(space: Space, fixed: Sequence[Override]) -> Space:
    """Remove the keys that the command line sets."""
    keys = {override.get_key_element().lstrip("+") for override in fixed}
    left = {key: values for key, values in space.items() if key.lstrip("+") not in keys}
    if not left:
        raise ConfigError(
            "sweep=optuna has no key to search. Set keys and their values in sweep.space, or on "
            "the command line: 'optimizer.lr=tag(log,interval(0.0003,0.03))'"
        )
    return left


def compose_base(fixed: Sequence[str], space: Space) -> tuple[DictConfig, dict[str, str]]:
    """Compose the config that all jobs share, and return it with the choice of each config group.

    A job is composed too, so that an unknown key fails here, before any job starts.

    Raises:
        ConfigError: there is no val span.
    """
    config = compose("train", overrides=list(fixed), return_hydra_config=True)
    compose("train", overrides=[*fixed, *(f"{k}={v.example()}" for k, v in space.items())])
    choices = {str(key): str(value) for key, value in config.hydra.runtime.choices.items()}
    with open_dict(config):
        for name in ("hydra", "sweep"):
            config.pop(name, None)
    if not config.split.val_fraction:
        raise ConfigError(
            f"sweep=optuna maximises val/skill, but split.val_fraction={config.split.val_fraction} "
            "leaves no val span. Set split.val_fraction=0.1"
        )
    return config, choices


class SharedStudy:
    """One sweep's view of an Optuna study that several sweeps may share.

    `settings` is the hash of all settings that are not searched.

    Raises:
        ConfigError: the study has another space or other settings, or its file cannot be written.
    """

    def __init__(
        self,
        journal: Path,
        name: str,
        *,
        folder: Path,
        space: Space,
        settings: str,
        sampler: Mapping[str, Any],
        seed: int,
        pruner: dict[str, Any] | None,
    ) -> None:
        check_optuna_installed()
        self._sampler, self._seed, self._pruner = sampler, seed, pruner
        self._seeded_sampler(0)  # a wrong setting fails here and not in every job
        instantiate(pruner)
        self._journal, self._folder, self._space = journal, str(folder.absolute()), space
        self._storage, self._study = _open_study(journal, name)
        _check_same_search(self._study, journal, space=space, settings=settings)
        own = [one for one in self._trials() if one.user_attrs.get(_SWEEP) == self._folder]
        self._trial_of = {one.user_attrs[_JOB]: one.number for one in own if not _is_lost(one)}
        self._released: set[int] = set()  # failed trials whose jobs are retried

    def ask(
        self, job: int, *, trials: int, default: Mapping[str, object] | None
    ) -> dict[str, str] | None:
        """Return the values of the next trial as text; None if the study has `trials` trials.

        The first trial has the values of `default`, if given.
        """
        if self._count(self._trials()) >= trials:
            return None
        trial = self._study.ask()
        self._study.sampler = self._seeded_sampler(trial.number)  # used from the first suggest on
        before = self._trials()[: trial.number]
        trial.set_user_attr(_SWEEP, self._folder)
        trial.set_user_attr(_JOB, job)
        self._trial_of[job] = trial.number
        if self._count(before) >= trials:  # another command asked at the same time
            self.mark_lost(job)
            return None
        if default is not None and all(_is_lost(one) for one in before if _is_default(one)):
            trial.set_user_attr(_DEFAULT, True)
            self._set_params(trial.number, default)
            values = dict(default)
        else:
            values = {key: suggest(trial, key, one) for key, one in self._space.items()}
        # a categorical value is text already
        return {k: v if isinstance(v, str) else to_text(v) for k, v in values.items()}

    def tell(
        self, job: int, state: str, *, value: float | None = None, reason: str | None = None
    ) -> None:
        """Report how a job ended; ignored if its trial has ended or does not exist."""
        from optuna.trial import TrialState

        number = self._trial_of.get(job)
        if number is None or self._trials()[number].state.is_finished():
            return
        if reason is not None:
            self._set_attribute(number, _REASON, reason)
        if state == PRUNE and not self._trials()[number].intermediate_values:
            state = FAIL
        self._study.tell(number, value, state=TrialState[state])

    def mark_lost(self, job: int) -> None:
        """Fail the trial of a killed job; it is not counted."""
        self._set_attribute(self._trial_of[job], _LOST, True)
        self.tell(job, FAIL)

    def release_except(self, jobs: Collection[int]) -> None:
        """Stop counting the trials of all other jobs, which failed and are to be retried."""
        for job in set(self._trial_of) - set(jobs):
            self._released.add(self._trial_of.pop(job))

    def unfinished_jobs(self) -> list[int]:
        """Return the jobs of this sweep whose trials are open."""
        trials = self._trials()
        return [job for job, n in self._trial_of.items() if not trials[n].state.is_finished()]

    def default_job(self) -> int | None:
        """Return this sweep's job with the default settings; None if another sweep has it."""
        trials = self._trials()
        own = ((job, trials[number]) for job, number in self._trial_of.items())
        return next((job for job, one in own if _is_default(one) and not _is_lost(one)), None)

    def environment(self, job: int) -> dict[str, str]:
        """Return the variables by which a job reports to its trial; empty without a pruner."""
        number = self._trial_of.get(job)
        if self._pruner is None or number is None:
            return {}
        link = StudyLink(str(self._journal), self._study.study_name, number, self._pruner)
        return link.to_environment()

    def _seeded_sampler(self, number: int) -> Any:
        """Return a sampler whose draws depend on seed and trial number only.

        A resumed search then draws the same values, and two commands draw different ones.
        """
        seed = np.random.SeedSequence([self._seed, number]).generate_state(1)
        return instantiate(self._sampler, seed=int(seed[0]))

    def _trials(self) -> "list[FrozenTrial]":
        return self._study.get_trials(deepcopy=False)

    def _count(self, trials: "Sequence[FrozenTrial]") -> int:
        return sum(not _is_lost(one) and one.number not in self._released for one in trials)

    def _set_params(self, number: int, values: Mapping[str, object]) -> None:
        for key, value in values.items():
            known = distribution(self._space[key])
            internal = known.to_internal_repr(value)
            self._storage.set_trial_param(self._trial_id(number), key, internal, known)

    def _set_attribute(self, number: int, key: str, value: object) -> None:
        self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def _trial_id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)


def _open_study(journal: Path, name: str) -> "tuple[JournalStorage, Study]":
    import optuna

    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        repair_journal(journal)
        storage = journal_storage(journal)
        study = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", load_if_exists=True
        )
    except OSError as error:
        raise ConfigError(
            f"the study cannot be kept in {journal} ({error.strerror}). Choose another file with "
            "sweep.storage=FILE"
        ) from error
    return storage, study


def repair_journal(journal: Path) -> None:
    """Remove an incomplete last line, which a killed process left; it would corrupt the next."""
    if not journal.is_file():
        return
    lock = journal_lock(journal)
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            content = file.read()
            complete = content.rfind(b"\n") + 1
            if complete < len(content):
                log.warning("removed the incomplete last line of %s", journal)
                file.truncate(complete)
    finally:
        lock.release()


def _check_same_search(study: "Study", journal: Path, *, space: Space, settings: str) -> None:
    """Raise ConfigError if the study's trials have another space or other settings."""
    search = {"space": {key: asdict(one) for key, one in space.items()}, "settings": settings}
    for name, value in search.items():
        now = json.dumps(value, sort_keys=True)
        before = study.user_attrs.get(name)
        if before is None:
            study.set_user_attr(name, now)
        elif before != now:
            what = "another sweep.space" if name == "space" else "other settings"
            raise ConfigError(
                f"the study {study.study_name} in {journal} has {what}: {before}, but this sweep "
                f"has {now}. Use another name for another search: sweep.study=NAME"
            )


def _is_lost(trial: "FrozenTrial") -> bool:
    return bool(trial.user_attrs.get(_LOST))


def _is_default(trial: "FrozenTrial") -> bool:
    """Check for the default trial. Trial 0 counts before its command has set the attribute."""
    return trial.number == 0 or bool(trial.user_attrs.get(_DEFAULT))
