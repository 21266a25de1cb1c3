"""Optuna studies for tests."""

from collections.abc import Mapping
from pathlib import Path

import optuna

from robust_fin.training.pruning import StudyLink, journal_storage

MEDIAN = {
    "_target_": "optuna.pruners.MedianPruner",
    "n_startup_trials": 1,
    "n_warmup_steps": 2,
}


def load_study(journal: Path, name: str = "search") -> optuna.Study:
    """Load the study from its journal."""
    return optuna.load_study(study_name=name, storage=journal_storage(journal))


def study_with(journal: Path, other: Mapping[int, float]) -> StudyLink:
    """Create a study with a finished and a running trial; return the link of the running one.

    Args:
        journal: path of the journal.
        other: reported values of the finished trial, by epoch.
    """
    study = optuna.create_study(
        study_name="search", storage=journal_storage(journal), direction="maximize"
    )
    study.add_trial(
        optuna.trial.create_trial(value=max(other.values()), intermediate_values=dict(other))
    )
    running = study.ask()
    return StudyLink(str(journal), "search", running.number, MEDIAN)
