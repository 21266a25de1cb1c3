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


class Yardstick:
    """What the forecasts of one span are held against; ranks and trivial losses are taken once.

    Args:
        target: the rank target in [0, 1].
        outcome: the raw forward return, as a fraction.
        train_median: the trivial forecast under Huber and absolute loss, in rank units; one a row
            where rows are of several folds.
        train_mean: the trivial forecast under squared loss, likewise.
    """

    def __init__(
        self,
        target: Float[np.ndarray, " rows"],
        outcome: Float[np.ndarray, " rows"],
        *,
        train_median: float | Float[np.ndarray, " rows"],
        train_mean: float | Float[np.ndarray, " rows"],
    ) -> None:
        """Measure the trivial forecasts."""
        self.target, self._ranks = target, rankdata(outcome)
        median, mean = (np.broadcast_to(one, target.shape) for one in (train_median, train_mean))
        self._trivial = huber_loss(median, target)
        self._trivial_squared = squared_loss(mean, target)
        self._trivial_absolute = absolute_loss(median, target)

    def figures(self, score: Float[np.ndarray, " rows"]) -> dict[str, float]:
        """Every figure that is reported of a span.

        Args:
            score: the forecast after the link, in rank units.

        Returns:
            loss, loss_trivial, skill, skill_squared, mae, mae_trivial, rank_ic.
        """
        loss = huber_loss(score, self.target)
        return {
            "loss": loss,
            "loss_trivial": self._trivial,
            "skill": skill(loss, self._trivial),
            "skill_squared": skill(squared_loss(score, self.target), self._trivial_squared),
            "mae": absolute_loss(score, self.target),
            "mae_trivial": self._trivial_absolute,
            "rank_ic": math.nan if score.size < 2 else correlation(rankdata(score), self._ranks),
        }


def span_metrics(
    score: Float[np.ndarray, " rows"],
    target: Float[np.ndarray, " rows"],
    outcome: Float[np.ndarray, " rows"],
    *,
    train_median: float | Float[np.ndarray, " rows"],
    train_mean: float | Float[np.ndarray, " rows"],
) -> dict[str, float]:
    """`Yardstick.figures` of one forecast."""
    yardstick = Yardstick(target, outcome, train_median=train_median, train_mean=train_mean)
    return yardstick.figures(score)
