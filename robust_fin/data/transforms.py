"""Transforms of the features: fitted on training rows, frozen after that, stored as arrays.

Each is a frozen dataclass that is created by its `fit`, so an unfitted transform cannot exist.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from robust_fin.errors import ConfigError, TransformError

_BLOCK_ROWS = 1 << 14  # rows transformed at once, so that intermediate results fit the CPU cache
Matrix = Float[np.ndarray, "rows features"]


@runtime_checkable
class Transform(Protocol):
    """Fitted transform of features, applied row by row."""

    def transform(self, x: Matrix) -> Matrix:
        """Return the transformed features, float64."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fitted arrays and the settings."""
        ...


Fit = Callable[..., Transform]


@dataclass(frozen=True, slots=True)
class RobustScaler:
    """(x - median) / IQR of the training rows, per feature."""

    median: Float[np.ndarray, " features"]
    iqr: Float[np.ndarray, " features"]

    @classmethod
    def fit(cls, train: Matrix, *, names: Sequence[str]) -> "RobustScaler":
        """Fit median and interquartile range.

        Raises:
            TransformError: a feature has an interquartile range of 0.
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
        """See `Transform`."""
        return {"median": self.median, "iqr": self.iqr}


@dataclass(frozen=True, slots=True)
class SmoothClip:
    """x / sqrt(1 + (x / limit)^2): the identity near 0, within (-limit, limit) everywhere."""

    limit: Float[np.ndarray, " 1"]  # np.ascontiguousarray makes scalars arrays of this shape

    @classmethod
    def fit(cls, train: Matrix, *, names: Sequence[str], limit: float) -> "SmoothClip":  # noqa: ARG003
        """Keep `limit`, in units of the scaled feature; nothing is fitted.

        Raises:
            ConfigError: `limit` is not positive.
        """
        if limit <= 0:
            raise ConfigError(f"SmoothClip: limit={limit} must be > 0")
        return cls(np.array([float(limit)]))

    def transform(self, x: Matrix) -> Matrix:
        """Squash the tails."""
        return x / np.sqrt(1 + (x / self.limit) ** 2)

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Transform`."""
        return {"limit": self.limit}


@dataclass(frozen=True, slots=True)
class QuantileNormal:
    """Training ECDF, then the normal quantile; tails clipped at the outermost inner quantile.

    The ECDF is stored as `quantiles` at equally spaced levels. A value that ties with many training
    values gets the middle of its levels.
    """

    quantiles: Float[np.ndarray, "levels features"]

    @classmethod
    def fit(cls, train: Matrix, *, names: Sequence[str], levels: int = 1001) -> "QuantileNormal":
        """Fit the quantiles.

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
        """See `Transform`."""
        return {"quantiles": self.quantiles}


def _percentiles(
    x: Matrix, levels: Float[np.ndarray, " levels"]
) -> Float[np.ndarray, "levels features"]:
    """Compute percentiles column by column, so that only one sorted copy is in memory."""
    return np.stack([np.percentile(column, levels) for column in x.T], axis=1)


KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (RobustScaler, SmoothClip, QuantileNormal)
}


@dataclass(frozen=True, slots=True)
class FeatureTransform:
    """Sequence of fitted transforms."""

    steps: tuple[Transform, ...]

    @classmethod
    def fit(
        cls, train: Matrix, *, names: Sequence[str], steps: Sequence[Fit]
    ) -> "FeatureTransform":
        """Fit each step on the training rows as transformed by the steps before it.

        Args:
            train: (rows, features), unscaled.
            names: of the features, for messages.
            steps: for example `RobustScaler.fit`.
        """
        fitted: list[Transform] = []
        for fit in steps:
            if fitted:
                train = fitted[-1].transform(train)
            fitted.append(fit(train, names=names))
        return cls(tuple(fitted))

    def transform(self, x: Matrix) -> Float[np.ndarray, "rows features"]:
        """Apply all steps; the result is float32."""
        out = np.empty(x.shape, dtype=np.float32)
        for start in range(0, len(x), _BLOCK_ROWS):
            block = x[start : start + _BLOCK_ROWS]
            for step in self.steps:
                block = step.transform(block)
            out[start : start + _BLOCK_ROWS] = block
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of every step, named `<position>/<kind>/<array>`."""
        return {
            f"{position}/{type(step).__name__}/{name}": value
            for position, step in enumerate(self.steps)
            for name, value in step.arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "FeatureTransform":
        """Restore a transform from its `arrays`."""
        steps: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        for key, value in arrays.items():
            position, kind, name = key.split("/")
            steps.setdefault((int(position), kind), {})[name] = value
        return cls(tuple(KINDS[kind](**steps[position, kind]) for position, kind in sorted(steps)))


def arrays_below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose name starts with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
