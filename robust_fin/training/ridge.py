"""Ridge regression in closed form: what a straight line through the features forecasts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_PENALTIES = np.logspace(-8, 2, 21)  # a row, on standardised features
_PIECE = 1 << 16  # rows summed at once, in float64


@dataclass(frozen=True, slots=True)
class Ridge:
    """A line through standardised features; a feature that never changes has weight 0.

    Attributes:
        weights: one a feature, in target units a feature unit.
        intercept: in target units.
        penalty: a training row, chosen among 21 by generalised cross-validation.
    """

    weights: Float[np.ndarray, " features"]
    intercept: float
    penalty: float

    @classmethod
    def fit(cls, x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, " rows"]) -> "Ridge":
        """Least squares with the penalty that leave-one-out error, in closed form, likes best.

        Only sums over rows are kept, so that any number of rows fits in memory.

        Args:
            x: features of the training rows.
            y: their targets.

        Source: Golub, Heath and Wahba (1979), Generalized cross-validation as a method for choosing
        a good ridge parameter.
        """
        rows = y.size
        x_mean, y_mean = _mean(x), float(y.mean())
        gram, shared = _moments(x, y, x_mean, y_mean)
        scale = np.sqrt(np.diag(gram))
        used = scale > 1e-12 * np.sqrt(rows) * np.maximum(np.abs(x_mean), 1.0)
        safe = np.where(used, scale, 1.0)
        unit = gram / np.outer(safe, safe) * np.outer(used, used)
        sizes, axes = np.linalg.eigh(unit)
        sizes = np.maximum(sizes, 0.0)
        along = axes.T @ (shared / safe * used)
        total = float(((y - y_mean) ** 2).sum())
        penalty = min(_PENALTIES, key=lambda one: _validation_error(one, sizes, along, total, rows))
        weights = axes @ (along / (sizes + penalty)) / safe * used
        return cls(weights, y_mean - float(x_mean @ weights), float(penalty))

    def forecast(self, x: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, " rows"]:
        """In target units."""
        pieces = range(0, len(x), _PIECE)
        parts = [x[one : one + _PIECE].astype(np.float64) @ self.weights for one in pieces]
        return np.concatenate(parts) + self.intercept if parts else np.zeros(0)


def _mean(x: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, " features"]:
    return x.mean(axis=0, dtype=np.float64)


def _moments(
    x: Float[np.ndarray, "rows features"],
    y: Float[np.ndarray, " rows"],
    x_mean: Float[np.ndarray, " features"],
    y_mean: float,
) -> tuple[Float[np.ndarray, "features features"], Float[np.ndarray, " features"]]:
    """Sums over rows of products of deviations, feature with feature and feature with target."""
    width = x.shape[1]
    gram, shared = np.zeros((width, width)), np.zeros(width)
    for first in range(0, len(x), _PIECE):
        apart = x[first : first + _PIECE].astype(np.float64) - x_mean
        gram += apart.T @ apart
        shared += apart.T @ (y[first : first + _PIECE] - y_mean)
    return gram, shared


def _validation_error(
    penalty: float,
    sizes: Float[np.ndarray, " features"],
    along: Float[np.ndarray, " features"],
    total: float,
    rows: int,
) -> float:
    """Mean squared error of rows left out, to the approximation that they are alike.

    Args:
        penalty: of the fit.
        sizes: eigenvalues of the features' correlations.
        along: target along the eigenvectors.
        total: sum of squares of the centred target.
        rows: of train.
    """
    left = total - float(np.sum(along**2 * (sizes + 2 * penalty) / (sizes + penalty) ** 2))
    freedom = 1 + float(np.sum(sizes / (sizes + penalty)))
    return left / max(rows - freedom, 1e-9) ** 2
