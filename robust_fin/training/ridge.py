"""Ridge regression in closed form: what a straight line through the features forecasts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_PENALTIES = np.logspace(-8, 2, 21)  # a row, on standardised features
_PIECE = 1 << 16  # rows summed at once, in float64


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A least-squares problem along the axes of its features, where any penalty is quick to try.

    Attributes:
        sizes: eigenvalues of the features' products.
        axes: their eigenvectors, in columns.
        along: products of features and target, along the axes.

    Source: Golub, Heath and Wahba (1979), Generalized cross-validation as a method for choosing a
    good ridge parameter.
    """

    sizes: Float[np.ndarray, " features"]
    axes: Float[np.ndarray, "features features"]
    along: Float[np.ndarray, " features"]

    @classmethod
    def of(
        cls, gram: Float[np.ndarray, "features features"], shared: Float[np.ndarray, " features"]
    ) -> "Spectrum":
        """From sums (or means) of products of centred features, with each other and the target."""
        sizes, axes = np.linalg.eigh(gram)
        return cls(np.maximum(sizes, 0.0), axes, axes.T @ shared)

    def weights(self, penalty: float) -> Float[np.ndarray, " features"]:
        """Of the features, with that penalty on their squares."""
        return self.axes @ (self.along / (self.sizes + penalty))

    def penalty(
        self, penalties: Float[np.ndarray, " penalties"], *, spread: float, rows: int
    ) -> float:
        """The one of least squared error on rows left out, to the approximation that all are alike.

        Args:
            penalties: to choose among.
            spread: sum (or mean) of squares of the centred target.
            rows: that all of it comes from.
        """

        def error(penalty: float) -> float:
            kept = self.along**2 * (self.sizes + 2 * penalty) / (self.sizes + penalty) ** 2
            freedom = 1 + float(np.sum(self.sizes / (self.sizes + penalty)))
            return (spread - float(kept.sum())) / max(rows - freedom, 1e-9) ** 2

        return float(min(penalties, key=error))


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
        spectrum = Spectrum.of(unit, shared / safe * used)
        penalty = spectrum.penalty(_PENALTIES, spread=float(((y - y_mean) ** 2).sum()), rows=rows)
        weights = spectrum.weights(penalty) / safe * used
        return cls(weights, y_mean - float(x_mean @ weights), penalty)

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
