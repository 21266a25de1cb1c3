"""Forecasts that need no net, on the same rows, features and target."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from robust_fin.data.examples import Examples
from robust_fin.data.rank_target import RankTarget

Baseline = Callable[[Examples, np.ndarray, RankTarget], Float[np.ndarray, " rows"]]


def constant(
    examples: Examples,  # noqa: ARG001
    rows: np.ndarray,
    target: RankTarget,
) -> Float[np.ndarray, " rows"]:
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


BASELINES: dict[str, Baseline] = {"constant": constant, "minus_last_return": minus_last_return}
