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


STUDY_VARIABLE = "ROBUST_FIN_STUDY"
REPORTED_STEPS = (
    "optimizer_steps"  # user attribute of a trial: when each of its figures was reported
)


def check_optuna_installed() -> None:
    """Refuse to go on without Optuna; and let it say what is wrong, not what it does.

    Raises:
        ConfigError: names the extra.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError(
            f"sweep=optuna needs Optuna ({error}). Install the extra: "
            'pip install -c constraints.txt -e ".[sweep]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def journal_storage(journal: Path) -> "JournalStorage":
    """What studies in a file are read and written through; the file is made where there is none."""
    check_optuna_installed()
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    path = str(journal.absolute())
    return JournalStorage(JournalFileBackend(path, lock_obj=journal_lock(journal)))


def journal_lock(journal: Path) -> "JournalFileOpenLock | JournalFileSymlinkLock":
    """What makes writers wait for each other: a link, which is made at once over NFS too.

    One that a killed process left is taken away after 30 seconds.
    """
    from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

    # a relative link would point nowhere, and a writer that waits for it would never see its age
    path = str(journal.absolute())
    return JournalFileOpenLock(path) if sys.platform == "win32" else JournalFileSymlinkLock(path)


@dataclass(frozen=True, slots=True)
class StudyLink:
    """Which trial a run is.

    Attributes:
        journal: file of the study, absolute.
        study: its name.
        trial: number in it.
        pruner: as in YAML.
    """

    journal: str
    study: str
    trial: int
    pruner: dict[str, Any]

    def to_environment(self) -> dict[str, str]:
        """What the processes of the run need to find it."""
        return {STUDY_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "StudyLink | None":
        """Of this process; None where it belongs to no study."""
        content = environ.get(STUDY_VARIABLE)
        return None if content is None else cls(**json.loads(content))


class LinkedTrial:
    """A trial that is told figures, and says when it should end.

    Args:
        link: which one.

    Attributes:
        trial: what the study knew of it when it was last asked.
    """

    def __init__(self, link: StudyLink) -> None:
        """Read the study."""
        self.link, self._storage = link, journal_storage(Path(link.journal))
        import optuna

        pruner = instantiate(link.pruner)
        self._study = optuna.load_study(study_name=link.study, storage=self._storage, pruner=pruner)
        study = self._storage.get_study_id_from_name(link.study)
        self._id = self._storage.get_trial_id_from_study_id_trial_number(study, link.trial)
        self.trial: FrozenTrial = self._storage.get_trial(self._id)

    @classmethod
    def from_environment(cls) -> "LinkedTrial | None":
        """Of this process; None where there is none, or where the study takes no more from it.

        A run that is resumed by hand, after its sweep is over or was moved, trains to its end.
        """
        link = StudyLink.from_environment(os.environ)
        if link is None:
            return None
        if not Path(link.journal).is_file():
            log.warning("the journal %s is gone; this run is not pruned", link.journal)
            return None
        found = cls(link)
        if found.trial.state.is_finished():
            log.info("trial %d of %s has ended; this run is not pruned", link.trial, link.study)
            return None
        return found

    def report(self, figure: float, *, step: int) -> None:
        """Add a figure; one of a step that was reported before, as after a resume, adds nothing.

        Figures are numbered, from 1, not named by their steps, so that trials with other batch
        sizes compare.

        Args:
            figure: finite, the greater the better.
            step: optimizer steps done.
        """
        known = self.steps
        if step not in known:
            number = 1 + sum(one < step for one in known)
            self._storage.set_trial_intermediate_value(self._id, number, figure)
            self._storage.set_trial_user_attr(self._id, REPORTED_STEPS, [*known, step])
        self.trial = self._storage.get_trial(self._id)

    @property
    def steps(self) -> list[int]:
        """Optimizer steps at which figures were reported."""
        return list(self.trial.user_attrs.get(REPORTED_STEPS, ()))

    def should_prune(self) -> bool:
        """Whether the pruner has seen enough."""
        return bool(self._study.pruner.prune(self._study, self.trial))


PRUNING_METRIC = "val/skill"  # what a search maximises, and nothing else


class PruneOnVal(L.Callback):
    """Reports val/skill after each validation, and stops where the study's pruner says so.

    Rank 0 reports and decides for all processes. A figure that is no number is not reported: what
    became of such a run is told by its end.

    Args:
        trial: of this process; None where it belongs to no study, or in all ranks but the first.
    """

    def __init__(self, trial: LinkedTrial | None) -> None:
        """Nothing reported yet."""
        self._trial = trial

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Report, and stop all processes together.

        Raises:
            Pruned: says when, and at which figure.
        """
        if trainer.sanity_checking:
            return
        skill = float(trainer.callback_metrics[PRUNING_METRIC])
        said = broadcast_from_first(self._verdict(skill, trainer) if is_first() else None)
        if said is not None:
            raise Pruned(said)

    def _verdict(self, skill: float, trainer: L.Trainer) -> str | None:
        """Why to stop; None to go on."""
        if self._trial is None or not math.isfinite(skill):
            return None
        self._trial.report(skill, step=trainer.global_step)
        if not self._trial.should_prune():
            return None
        link, best = self._trial.link, max(self._trial.trial.intermediate_values.values())
        return (
            f"trial {link.trial} of {link.study} was pruned in epoch {trainer.current_epoch + 1}, "
            f"at step {trainer.global_step}: its best {PRUNING_METRIC} so far, {best:.6f}, is "
            "behind the other trials' by then"
        )


def pruning_callbacks(*, has_val: bool) -> list[L.Callback]:
    """Those of a fit that is a trial of a study; none for any other.

    Args:
        has_val: else there is nothing to compare, as in a refit.
    """
    if not has_val or STUDY_VARIABLE not in os.environ:
        return []
    return [PruneOnVal(LinkedTrial.from_environment() if is_first() else None)]
