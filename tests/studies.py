"""Optuna studies for the tests, with a trial that a run can be."""

from collections.abc import Mapping
from pathlib import Path

import optuna

from robust_fin.training.pruning import StudyLink, journal_storage

MEDIAN = {
    "_target_": "optuna.pruners.MedianPruner",
    "n_startup_trials": 1,
    "n_warmup_steps": 2,
}


def read(journal: Path, name: str = "search") -> optuna.Study:
    """The study as it is on disk now."""
    return optuna.load_study(study_name=name, storage=journal_storage(journal))


def study_with(journal: Path, other: Mapping[int, float]) -> StudyLink:
    """A study of a finished trial with these figures, and one that runs: the link of the second."""
    study = optuna.create_study(
        study_name="search", storage=journal_storage(journal), direction="maximize"
    )
    study.add_trial(
        optuna.trial.create_trial(value=max(other.values()), intermediate_values=dict(other))
    )
    running = study.ask()
    return StudyLink(str(journal), "search", running.number, MEDIAN)
