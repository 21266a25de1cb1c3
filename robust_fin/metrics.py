"""Metrics as pure functions of arrays, shared by training, reports and tests.

Notation: a *score* is the net's forecast after the link, a *target* is the rank of the forward
return among the training returns, an *outcome* is the raw forward return. Each has one entry per
row.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

YARDSTICK_DELTA = (
    0.1  # Huber delta of every reported loss, in rank units, whatever loss was trained
)


def huber_loss(
    score: Float[np.ndarray, " rows"],
    target: Float[np.ndarray, " rows"],
    *,
    delta: float = YARDSTICK_DELTA,
) -> float:
    """Compute the mean Huber loss: quadratic up to `delta`, linear beyond.

    Source: P. J. Huber (1964), Robust estimation of a location parameter.
    """
    return float(huber_terms(score, target, delta=delta).mean())


def huber_terms(
    score: Float[np.ndarray, " rows"] | float,
    target: Float[np.ndarray, " rows"],
    *,
    delta: float = YARDSTICK_DELTA,
) -> Float[np.ndarray, " rows"]:
    """Compute the Huber loss per row, in squared rank units; `score` may be a constant."""
    error = np.abs(np.asarray(score, dtype=np.float64) - target)
    return np.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta))


def squared_loss(score: Float[np.ndarray, " rows"], target: Float[np.ndarray, " rows"]) -> float:
    """Compute the mean squared error."""
    return float(np.mean((score.astype(np.float64) - target) ** 2))


def absolute_loss(score: Float[np.ndarray, " rows"], target: Float[np.ndarray, " rows"]) -> float:
    """Compute the mean absolute error."""
    return float(np.mean(np.abs(score.astype(np.float64) - target)))


def skill(loss: float, trivial: float) -> float:
    """Return the share of the trivial forecast's loss that was saved: 1 - loss / trivial.

    NaN if the trivial loss is 0, because then there was nothing to save.
    """
    return 1.0 - loss / trivial if trivial > 0 else math.nan


def rank_ic(score: Float[np.ndarray, " rows"], outcome: Float[np.ndarray, " rows"]) -> float:
    """Compute the Spearman correlation of forecast and outcome; NaN if either is constant.

    NaN, not 0: a constant forecast has no ranking, which is different from a ranking without
    information.
    """
    if score.size < 2:
        return math.nan
    return correlation(rankdata(score), rankdata(outcome))


def correlation(a: Float[np.ndarray, " rows"], b: Float[np.ndarray, " rows"]) -> float:
    """Compute the Pearson correlation; NaN if either array is constant."""
    if _is_constant(a) or _is_constant(b):
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def _is_constant(values: Float[np.ndarray, " rows"]) -> bool:
    # not by the variance: 0.1 minus the mean of three 0.1 is not exactly 0
    return bool(np.all(values == values[:1]))


def excess_kurtosis(values: Float[np.ndarray, " rows"]) -> float:
    """Compute the fourth standardised moment minus 3; NaN for a constant, 0 for a normal."""
    if _is_constant(values):
        return math.nan
    centred = values - values.mean()
    variance = float(np.mean(centred**2))
    return float(np.mean(centred**4)) / variance**2 - 3.0 if variance > 0 else math.nan


class Yardstick:
    """Reference for the forecasts of a span; ranks and trivial losses are computed once.

    Args:
        target: rank target in [0, 1].
        outcome: raw forward return, a fraction.
        train_median: trivial forecast under Huber and absolute loss, in rank units; one per row if
            rows come from several folds.
        train_mean: trivial forecast under squared loss, likewise.
    """

    def __init__(
        self,
        target: Float[np.ndarray, " rows"],
        outcome: Float[np.ndarray, " rows"],
        *,
        train_median: float | Float[np.ndarray, " rows"],
        train_mean: float | Float[np.ndarray, " rows"],
    ) -> None:
        """Compute the losses of the trivial forecasts."""
        self.target, self._ranks = target, rankdata(outcome)
        median = np.broadcast_to(train_median, target.shape)
        mean = np.broadcast_to(train_mean, target.shape)
        self._trivial = huber_loss(median, target)
        self._trivial_squared = squared_loss(mean, target)
        self._trivial_absolute = absolute_loss(median, target)

    def metrics(self, score: Float[np.ndarray, " rows"]) -> dict[str, float]:
        """Compute every metric that is reported for a span.

        Args:
            score: forecast after the link, in rank units.

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
    """Compute `Yardstick.metrics` of a single forecast."""
    yardstick = Yardstick(target, outcome, train_median=train_median, train_mean=train_mean)
    return yardstick.metrics(score)
