"""The rows of a population in a sweep's table, one a member, from its members.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robust_fin.results import MEMBERS
from robust_fin.sweeps.trial import FAILED, FINISHED, Figure, Outcome, Row

_SPANS = ("val/", "test/")
# figures of a job that are those of each of its members
_OF_ALL = (
    "parameters", "rows", "train_rows", "val_rows", "test_rows", "fit_rows", "folds",
    "train/outcome_excess_kurtosis", "train/objective_trivial",
)  # fmt: skip


def member_rows(outcome: Outcome, members: Sequence[Mapping[str, str]]) -> list[Row]:
    """A row a member, as the table of a grid has one a job.

    Args:
        outcome: of the job.
        members: what each member's own settings are, by key.
    """
    entries = _entries(outcome.folder, len(members)) if outcome.state == FINISHED else None
    shared = {
        key: value
        for key, value in outcome.trial.settings.items()
        if not key.startswith("population.")
    }
    rows = []
    for number, own in enumerate(members):
        state, reason, metrics = outcome.state, outcome.reason, dict[str, Figure]()
        if entries is not None:
            metrics = {k: outcome.metrics[k] for k in _OF_ALL if k in outcome.metrics}
            metrics |= _figures(entries[number])
            state, reason = _fate(entries[number])
        rows.append(
            Row(
                number=outcome.trial.number,
                member=number,
                state=state,
                reason=reason,
                settings={**shared, **own},
                overrides=" ".join(outcome.trial.overrides),
                metrics=metrics,
                seconds=outcome.seconds,
                folder=outcome.folder,
            )
        )
    return rows


def _entries(run: Path, members: int) -> list[list[dict[str, Any]]]:
    """What members.json says of each member, fold by fold."""
    content = json.loads((run / MEMBERS).read_text(encoding="utf-8"))["members"]
    return [content[number::members] for number in range(members)]


def _figures(folds: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Means over the folds; null where one of them has none."""
    names = dict.fromkeys(name for one in folds for name in one if name.startswith(_SPANS))
    found: dict[str, Figure] = {}
    for name in names:
        values = [one[name] for one in folds if one.get(name) is not None]
        found[name] = float(np.mean(values)) if len(values) == len(folds) else None
    found["train/gradient_norm_max"] = max(
        (one["gradient_norm_max"] for one in folds if one["gradient_norm_max"] is not None),
        default=None,
    )
    return found


def _fate(folds: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    frozen = [one for one in folds if one["frozen_at"] is not None]
    if not frozen:
        return FINISHED, None
    fold = f" of fold {frozen[0]['fold']}" if len(folds) > 1 else ""
    return FAILED, (
        f"frozen at step {frozen[0]['frozen_at']}{fold}: a loss, gradient or weight is not finite"
    )
