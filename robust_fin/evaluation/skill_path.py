"""Skill over time: the share of the constant's loss that was saved up to each trading date."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.evaluation.date_sums import DatedRows
from robust_fin.evaluation.significance import CONSTANT, NET
from robust_fin.metrics import huber_terms


@dataclass(frozen=True, slots=True)
class SkillPath:
    """Where each model stands after each date; the last value is its skill.

    Attributes:
        dates: trading dates of the test span, increasing.
        saved: by model, loss saved up to and with the date over the constant's whole loss.
    """

    dates: np.ndarray
    saved: Mapping[str, Float[np.ndarray, " dates"]]

    def month_ends(self) -> list[int]:
        """Places of the last date of each month."""
        months = self.dates.astype("datetime64[M]")
        return [int(place) for place in np.flatnonzero(np.append(months[1:] != months[:-1], True))]


def skill_path(models: Mapping[str, pd.DataFrame]) -> SkillPath:
    """The path of every model but the constant.

    Args:
        models: labelled rows of each, as `robust_fin.evaluation.significance.models_of` has them.
    """
    trivial = models[CONSTANT]["score"].to_numpy(dtype=np.float64)
    rows = DatedRows.of(models[NET], trivial=trivial)
    constant = rows.added(huber_terms(rows.trivial, rows.target))
    saved = {}
    for name in (one for one in models if one != CONSTANT):
        score = models[name]["score"].to_numpy(dtype=np.float64)
        loss = rows.added(huber_terms(score, rows.target))
        saved[name] = np.cumsum(constant - loss) / constant.sum()
    return SkillPath(rows.dates, saved)
