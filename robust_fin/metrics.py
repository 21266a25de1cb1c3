"""Metrics as pure functions of arrays: one definition for training, report and tests.

Notation: a *score* is the net's forecast after the link, a *target* the rank of the forward return
among the training returns, an *outcome* the raw forward return. All are one entry a row.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

YARDSTICK_DELTA = 0.1  # the Huber delta, in rank units, of every reported loss whatever was trained


def huber_loss(
    score: Float[np.ndarray, " rows"],
    target: Float[np.ndarray, " rows"],
    *,
    delta: float = YARDSTICK_DELTA,
) -> float:
    """Mean Huber loss: quadratic up to `delta`, linear beyond.

    Source: P. J. Huber (1964), Robust estimation of a location parameter.
    """
    return float(huber_terms(score, target, delta=delta).mean())


def huber_terms(
    score: Float[np.ndarray, " rows"] | float,
    target: Float[np.ndarray, " rows"],
    *,
    delta: float = YARDSTICK_DELTA,
) -> Float[np.ndarray, " rows"]:
    """Huber loss row by row, in squared rank units; `score` may be one constant for all rows."""
    size = np.abs(np.asarray(score, dtype=np.float64) - target)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def squared_loss(score: Float[np.ndarray, " rows"], target: Float[np.ndarray, " rows"]) -> float:
    """Mean squared error."""
    return float(np.mean((score.astype(np.float64) - target) ** 2))


def absolute_loss(score: Float[np.ndarray, " rows"], target: Float[np.ndarray, " rows"]) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(score.astype(np.float64) - target)))


def skill(loss: float, trivial: float) -> float:
    """Share of the trivial predictor's loss that was saved: 1 - loss / trivial.

    NaN where the trivial loss is 0, because then there was nothing to save.
    """
    return 1.0 - loss / trivial if trivial > 0 else math.nan


def rank_ic(score: Float[np.ndarray, " rows"], outcome: Float[np.ndarray, " rows"]) -> float:
    """Spearman correlation of forecast and outcome; NaN when either is constant.

    NaN, not 0: a constant forecast has no ranking, which is a different fact from a ranking that
    carries nothing.
    """
    if score.size < 2:
        return math.nan
    return correlation(rankdata(score), rankdata(outcome))


def correlation(a: Float[np.ndarray, " rows"], b: Float[np.ndarray, " rows"]) -> float:
    """Pearson correlation; NaN when either side is constant."""
    if _constant(a) or _constant(b):
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def _constant(values: Float[np.ndarray, " rows"]) -> bool:
    # the variance would not tell: 0.1 minus the mean of three 0.1 is not 0
    return bool(np.all(values == values[:1]))


def excess_kurtosis(values: Float[np.ndarray, " rows"]) -> float:
    """Fourth standardised moment minus 3 (0 for a normal law); NaN for a constant."""
    if _constant(values):
        return math.nan
    centred = values - values.mean()
    variance = float(np.mean(centred**2))
    return float(np.mean(centred**4)) / variance**2 - 3.0 if variance > 0 else math.nan


def span_metrics(
    score: Float[np.ndarray, " rows"],
    target: Float[np.ndarray, " rows"],
    outcome: Float[np.ndarray, " rows"],
    *,
    train_median: float,
    train_mean: float,
) -> dict[str, float]:
    """Every figure of one span (val or test) that is reported.

    Args:
        score: the forecast after the link, in rank units.
        target: the rank target in [0, 1].
        outcome: the raw forward return, as a fraction.
        train_median: the trivial forecast under Huber and absolute loss, in rank units.
        train_mean: the trivial forecast under squared loss, in rank units.

    Returns:
        loss, loss_trivial, skill, skill_squared, mae, mae_trivial, rank_ic.
    """
    median, mean = np.full_like(target, train_median), np.full_like(target, train_mean)
    loss, trivial = huber_loss(score, target), huber_loss(median, target)
    return {
        "loss": loss,
        "loss_trivial": trivial,
        "skill": skill(loss, trivial),
        "skill_squared": skill(squared_loss(score, target), squared_loss(mean, target)),
        "mae": absolute_loss(score, target),
        "mae_trivial": absolute_loss(median, target),
        "rank_ic": rank_ic(score, outcome),
    }
