"""Transforms of the features: fitted on training rows, frozen after, stored as arrays.

Each is a frozen dataclass that only its `fit` makes, so an unfitted one cannot exist.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from robust_fin.errors import ConfigError, TransformError

_PIECE = 1 << 14  # rows transformed at once: what is between the steps stays in the cache
Matrix = Float[np.ndarray, "rows features"]


@runtime_checkable
class Transform(Protocol):
    """What every fitted transform of features can do."""

    def transform(self, x: Matrix) -> Matrix:
        """The transformed features, float64."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """All it has learnt and was told."""
        ...


Fit = Callable[..., Transform]


@dataclass(frozen=True, slots=True)
class RobustScaler:
    """(x - median) / IQR of the training rows, feature by feature."""

    median: Float[np.ndarray, " features"]
    iqr: Float[np.ndarray, " features"]

    @classmethod
    def fit(cls, train: Matrix, *, names: Sequence[str]) -> "RobustScaler":
        """Learn median and interquartile range.

        Raises:
            TransformError: a feature has an IQR of 0, so no scale.
        """
        low, median, high = _percentiles(train, np.array([25.0, 50.0, 75.0]))
        flat = np.flatnonzero(high - low == 0)
        if flat.size:
            raise TransformError(
                f"feature {names[flat[0]]} has an interquartile range of 0 on {len(train)} training"
                f" rows (median {median[flat[0]]:g}): it is almost constant. Leave it out, or use "
                "bars whose prices move"
            )
        return cls(median, high - low)

    def transform(self, x: Matrix) -> Matrix:
        """Centre and scale."""
        return (x - self.median) / self.iqr

    def arrays(self) -> dict[str, np.ndarray]:
        """Median and IQR, one entry a feature."""
        return {"median": self.median, "iqr": self.iqr}


@dataclass(frozen=True, slots=True)
class SmoothClip:
    """x / sqrt(1 + (x / limit)^2): the identity near 0, within (-limit, limit) everywhere."""

    limit: Float[
        np.ndarray, " one"
    ]  # not a scalar: np.ascontiguousarray would make it one of these

    @classmethod
    def fit(cls, train: Matrix, *, names: Sequence[str], limit: float) -> "SmoothClip":  # noqa: ARG003
        """Nothing is learnt; `limit` is in units of the scaled feature.

        Raises:
            ConfigError: `limit` is not above 0.
        """
        if limit <= 0:
            raise ConfigError(f"the limit of SmoothClip is {limit}; it must be above 0")
        return cls(np.array([float(limit)]))

    def transform(self, x: Matrix) -> Matrix:
        """Squash the tails."""
        return x / np.sqrt(1 + (x / self.limit) ** 2)

    def arrays(self) -> dict[str, np.ndarray]:
        """The limit."""
        return {"limit": self.limit}


@dataclass(frozen=True, slots=True)
class QuantileNormal:
    """Training ECDF, then the normal quantile; tails clipped at the outermost inner quantile.

    The ECDF is kept as `quantiles` at equally spaced levels. A value that ties with many training
    values gets the middle of its levels.
    """

    quantiles: Float[np.ndarray, "levels features"]

    @classmethod
    def fit(cls, train: Matrix, *, names: Sequence[str], levels: int = 1001) -> "QuantileNormal":
        """Learn the quantiles.

        Raises:
            TransformError: a feature is constant.
        """
        quantiles = _percentiles(train, np.linspace(0, 100, levels))
        flat = np.flatnonzero(quantiles[0] == quantiles[-1])
        if flat.size:
            raise TransformError(
                f"feature {names[flat[0]]} is {quantiles[0, flat[0]]:g} on all {len(train)} "
                "training rows; leave it out"
            )
        return cls(quantiles)

    def transform(self, x: Matrix) -> Matrix:
        """Map to the standard normal, at most +-3.29 with 1,001 levels."""
        grid = np.linspace(0, 1, len(self.quantiles))
        level = np.empty_like(x, dtype=np.float64)
        for column, knots in enumerate(self.quantiles.T):
            upward = np.interp(x[:, column], knots, grid)
            downward = 1 - np.interp(-x[:, column], -knots[::-1], grid)
            level[:, column] = (upward + downward) / 2
        edge = 0.5 / (len(grid) - 1)
        return ndtri(np.clip(level, edge, 1 - edge))

    def arrays(self) -> dict[str, np.ndarray]:
        """Quantiles at equally spaced levels, one column a feature."""
        return {"quantiles": self.quantiles}


def _percentiles(
    x: Matrix, levels: Float[np.ndarray, " levels"]
) -> Float[np.ndarray, "levels features"]:
    """Column by column: a copy of one is sorted at a time, and the figures are the same."""
    return np.stack([np.percentile(column, levels) for column in x.T], axis=1)


KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (RobustScaler, SmoothClip, QuantileNormal)
}


@dataclass(frozen=True, slots=True)
class FeatureTransform:
    """Fitted transforms, one after the other."""

    steps: tuple[Transform, ...]

    @classmethod
    def fit(
        cls, train: Matrix, *, names: Sequence[str], steps: Sequence[Fit]
    ) -> "FeatureTransform":
        """Fit each step on the training rows as the steps before it leave them.

        Args:
            train: (rows, features), unscaled.
            names: of the features, for messages.
            steps: such as `RobustScaler.fit`.
        """
        fitted: list[Transform] = []
        for fit in steps:
            if fitted:
                train = fitted[-1].transform(train)
            fitted.append(fit(train, names=names))
        return cls(tuple(fitted))

    def transform(self, x: Matrix) -> Float[np.ndarray, "rows features"]:
        """All steps; the result is float32, as the net takes it."""
        out = np.empty(x.shape, dtype=np.float32)
        for first in range(0, len(x), _PIECE):
            part = x[first : first + _PIECE]
            for step in self.steps:
                part = step.transform(part)
            out[first : first + _PIECE] = part
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """Every step's arrays, named `<position>/<kind>/<array>`."""
        return {
            f"{position}/{type(step).__name__}/{name}": value
            for position, step in enumerate(self.steps)
            for name, value in step.arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "FeatureTransform":
        """The transform that `arrays` came from."""
        steps: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        for key, value in arrays.items():
            position, kind, name = key.split("/")
            steps.setdefault((int(position), kind), {})[name] = value
        return cls(tuple(KINDS[kind](**steps[position, kind]) for position, kind in sorted(steps)))
