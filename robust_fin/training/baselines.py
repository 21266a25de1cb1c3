"""Forecasts that need no net, on the same folds, rows, features and target."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from robust_fin.data.datamodule import BarDataModule
from robust_fin.data.examples import Examples
from robust_fin.data.rank_target import RankTarget
from robust_fin.training.gradient_boosting import GradientBoosting
from robust_fin.training.ridge import Ridge

NAMES = ("constant", "minus_last_return", "ridge", "lightgbm")


@dataclass(frozen=True, slots=True)
class Baselines:
    """What every net is held against: the constant, reversal, a line, and trees where asked for.

    Attributes:
        lightgbm: the trees; None leaves them out.
    """

    lightgbm: GradientBoosting | None

    def forecasts(self, data: BarDataModule) -> dict[str, Float[np.ndarray, " rows"]]:
        """Forecasts of the fold's test rows, in rank units, by name.

        Args:
            data: the fold that test is scored with; nothing but its train is learnt from.
        """
        examples, target = data.market.examples, data.fitted.target
        train, test = data.fitted.span("train"), data.fitted.span("test")
        rank = data.target("train")
        line = Ridge.fit(data.x("train").numpy(), rank)
        found = {
            "constant": constant(test, target),
            "minus_last_return": minus_last_return(examples, test, target),
            "ridge": line.forecast(data.x("test").numpy()),
        }
        if self.lightgbm is not None:
            values = examples.features
            found["lightgbm"] = self.lightgbm.fit(values[train], rank)(values[test])
        return found


def constant(rows: np.ndarray, target: RankTarget) -> Float[np.ndarray, " rows"]:
    """The median of the target over the training rows, everywhere: the trivial predictor."""
    return np.full(rows.size, target.median)


def minus_last_return(
    examples: Examples, rows: np.ndarray, target: RankTarget
) -> Float[np.ndarray, " rows"]:
    """Minus the return of the row's own bar, through the rank target: pure reversal.

    The first bar of a contract has no return; there it forecasts the training median.
    """
    last = examples.last_return[rows]
    score = target.transform(-np.nan_to_num(last, nan=0.0))
    return np.where(np.isnan(last), target.median, score)
