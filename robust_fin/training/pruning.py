"""Pruning: a run as a trial of an Optuna study in a shared journal file."""

import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from hydra.utils import instantiate

from robust_fin.errors import ConfigError, Pruned
from robust_fin.runtime.rank_info import broadcast_from_first, is_first

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from optuna.storages.journal import (
        JournalFileOpenLock,
        JournalFileSymlinkLock,
        JournalStorage,
    )
    from optuna.trial import FrozenTrial


STUDY_VARIABLE = "ROBUST_FIN_STUDY"  # environment variable with the StudyLink of a run
REPORTED_STEPS = "optimizer_steps"  # user attribute of a trial: the steps of its reports
PRUNING_METRIC = "val/skill"


def check_optuna_installed() -> None:
    """Raise ConfigError if Optuna is not installed; limit its log to warnings."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError(
            f"sweep=optuna needs Optuna ({error}). Install the extra: "
            'pip install -c constraints.txt -e ".[sweep]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def journal_storage(journal: Path) -> "JournalStorage":
    """Return the Optuna storage of a journal file, which is created if it does not exist."""
    check_optuna_installed()
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    path = str(journal.absolute())
    return JournalStorage(JournalFileBackend(path, lock_obj=journal_lock(journal)))


def journal_lock(journal: Path) -> "JournalFileOpenLock | JournalFileSymlinkLock":
    """Return the lock that serialises writers: a symbolic link, which is atomic over NFS too.

    Optuna removes the lock of a killed process after 30 seconds.
    """
    from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

    # with a relative path the link would dangle, and a waiting writer could not read its age
    path = str(journal.absolute())
    return JournalFileOpenLock(path) if sys.platform == "win32" else JournalFileSymlinkLock(path)


@dataclass(frozen=True, slots=True)
class StudyLink:
    """Identifies the trial that a run belongs to.

    Attributes:
        journal: absolute path of the study's journal file.
        study: name of the study.
        trial: number of the trial.
        pruner: config of the pruner.
    """

    journal: str
    study: str
    trial: int
    pruner: dict[str, Any]

    def to_environment(self) -> dict[str, str]:
        """Return the environment variables that the processes of the run need."""
        return {STUDY_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "StudyLink | None":
        """Read the environment variables; None if the process belongs to no trial."""
        content = environ.get(STUDY_VARIABLE)
        return None if content is None else cls(**json.loads(content))


class LinkedTrial:
    """A trial that reports metrics to its study and asks the pruner.

    Args:
        link: identifies the trial.

    Attributes:
        trial: the trial as of the last report.
    """

    def __init__(self, link: StudyLink) -> None:
        self.link, self._storage = link, journal_storage(Path(link.journal))
        import optuna

        pruner = instantiate(link.pruner)
        self._study = optuna.load_study(study_name=link.study, storage=self._storage, pruner=pruner)
        study = self._storage.get_study_id_from_name(link.study)
        self._id = self._storage.get_trial_id_from_study_id_trial_number(study, link.trial)
        self.trial: FrozenTrial = self._storage.get_trial(self._id)

    @classmethod
    def from_environment(cls) -> "LinkedTrial | None":
        """Return the trial of this process; None if there is none or it is finished.

        A run that is resumed by hand, after its sweep ended or was moved, is not pruned.
        """
        link = StudyLink.from_environment(os.environ)
        if link is None:
            return None
        if not Path(link.journal).is_file():
            log.warning("journal %s does not exist; this run is not pruned", link.journal)
            return None
        linked = cls(link)
        if linked.trial.state.is_finished():
            log.info("trial %d of %s is finished; this run is not pruned", link.trial, link.study)
            return None
        return linked

    def report(self, value: float, *, step: int) -> None:
        """Report a value, unless that step was reported before, as happens after a resume.

        Optuna gets the number of the report, counted from 1, instead of the step, so that trials
        with different batch sizes are comparable.

        Args:
            value: finite; greater is better.
            step: optimizer steps done.
        """
        known = self.steps
        if step not in known:
            number = 1 + sum(earlier < step for earlier in known)
            self._storage.set_trial_intermediate_value(self._id, number, value)
            self._storage.set_trial_user_attr(self._id, REPORTED_STEPS, [*known, step])
        self.trial = self._storage.get_trial(self._id)

    @property
    def steps(self) -> list[int]:
        """Optimizer steps of the reports so far."""
        return list(self.trial.user_attrs.get(REPORTED_STEPS, ()))

    def should_prune(self) -> bool:
        """Return True if the pruner wants to stop the trial."""
        return bool(self._study.pruner.prune(self._study, self.trial))


class PruneOnVal(L.Callback):
    """Reports val/skill after each validation, and stops the run if the pruner says so.

    Rank 0 reports and decides for all ranks. A skill that is not finite is not reported; such a run
    ends by other checks.

    Args:
        trial: of this process; None without a trial, and on all ranks but 0.
    """

    def __init__(self, trial: LinkedTrial | None) -> None:
        self._trial = trial

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Report, and raise Pruned on all ranks if the trial is to stop."""
        if trainer.sanity_checking:
            return
        skill = float(trainer.callback_metrics[PRUNING_METRIC])
        reason = broadcast_from_first(self._reason_to_stop(skill, trainer) if is_first() else None)
        if reason is not None:
            raise Pruned(reason)

    def _reason_to_stop(self, skill: float, trainer: L.Trainer) -> str | None:
        if self._trial is None or not math.isfinite(skill):
            return None
        self._trial.report(skill, step=trainer.global_step)
        if not self._trial.should_prune():
            return None
        link, best = self._trial.link, max(self._trial.trial.intermediate_values.values())
        return (
            f"trial {link.trial} of {link.study} was pruned in epoch {trainer.current_epoch + 1}, "
            f"at step {trainer.global_step}: its best {PRUNING_METRIC} so far, {best:.6f}, is "
            "behind that of the other trials"
        )


def pruning_callbacks(*, has_val: bool) -> list[L.Callback]:
    """Return the callback of a fit that is a trial of a study; an empty list for other fits.

    Args:
        has_val: False if nothing is validated, as in a refit.
    """
    if not has_val or STUDY_VARIABLE not in os.environ:
        return []
    return [PruneOnVal(LinkedTrial.from_environment() if is_first() else None)]
