"""What the best trial of a sweep is worth on val dates that did not choose it, in words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.errors import BundleError
from robust_fin.evaluation.bootstrap import Interval
from robust_fin.evaluation.cells import percent
from robust_fin.evaluation.choice import LEAST_DATES, Choice, choice
from robust_fin.results import VAL_LOSSES
from robust_fin.sweeps.table import skill_of
from robust_fin.sweeps.trial import Row

_DAY = ["fold", "trading_date"]


def val_gains(losses: pd.DataFrame, member: int | None) -> pd.Series:
    """Share of its val/skill that a trial owes to each date; they add up to it.

    Args:
        losses: what val_losses.parquet holds.
        member: of a population; None for the net, or the mean forecast.

    Returns:
        By fold and trading date; empty where the member has none.
    """
    own = losses["member"].isna() if member is None else losses["member"] == member
    one = losses[own.fillna(False).astype(bool)].set_index(_DAY)
    trivial = one["loss_trivial"] * one["rows"]
    saved = trivial - one["loss"] * one["rows"]
    whole = trivial.groupby(level="fold").transform("sum")
    return saved / whole / one.index.get_level_values("fold").nunique()


def gains_of(rows: Sequence[Row]) -> Float[np.ndarray, "dates rows"]:
    """`val_gains` of trials, in the order of time within each fold.

    Raises:
        BundleError: one has none, or not on the dates of the first.
    """
    read: dict[Path, pd.DataFrame] = {}
    found: list[pd.Series] = []
    for row in rows:
        path = row.folder / VAL_LOSSES
        if path not in read:
            if not path.is_file():
                raise BundleError(f"job {row.number} left no {VAL_LOSSES}")
            read[path] = pd.read_parquet(path)
        one = val_gains(read[path], row.member)
        if found and not one.index.equals(found[0].index):
            raise BundleError(
                f"job {row.number} has other val dates than job {rows[0].number}, so they cannot "
                "be compared date by date"
            )
        found.append(one)
    return np.stack([one.to_numpy(dtype=np.float64) for one in found], axis=1)


def deflated_choice(rows: Sequence[Row], *, default_job: int | None) -> Choice | str:
    """The choice by val/skill, on dates that did not make it; else the reason why there is none.

    Args:
        rows: of the sweep; at least two have a val/skill.
        default_job: number of the job with the settings as they are; None where none has them.
    """
    known = [row for row in rows if np.isfinite(skill_of(row))]
    try:
        gains = gains_of(known)
    except BundleError as error:
        return str(error)
    if len(gains) < LEAST_DATES:
        return f"val has {len(gains)} trading dates, and {LEAST_DATES} are needed"
    numbers = [row.number for row in known]
    reference = numbers.index(default_job) if default_job in numbers else None
    return choice(gains, reference=reference)


def choice_words(found: Choice | str, *, default_job: int | None) -> list[str]:
    """What it says, in sentences.

    Args:
        found: see `deflated_choice`.
        default_job: likewise.
    """
    if isinstance(found, str):
        return [f"Not deflated by dates: {found}."]
    said = [
        f"Chosen on some of the {found.dates} val dates and measured on the others, the best of "
        f"{found.trials} has {percent(found.deflated)} (BBC-CV; at least 95 %): so much is left of "
        f"its {100 * found.shown:+.4f} % without the dates that chose it."
    ]
    if found.apart is not None:
        said.append(
            f"Over job {default_job}, the default settings, it is {percent(found.apart)} on the "
            f"same dates: {_beyond(found.apart)}."
        )
    return said


def _beyond(apart: Interval) -> str:
    if apart.is_above(0):
        return "better than the default settings"
    if apart.is_below(0):
        return "worse than the default settings"
    return "not shown to be better than the default settings"
