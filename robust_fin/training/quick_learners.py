"""Learners that are fitted in seconds, to see what inputs are worth."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robust_fin.errors import ConfigError

KNOTS = (-1.0, 0.0, 1.0)  # of inputs that are near standard normal
PIECE = 1 << 14  # rows expanded at once
PENALTIES = np.logspace(-6, 1, 29)  # relative to the largest eigenvalue
ROUNDS, LEAVES, RATE, LEAST_ROWS = 100, 31, 0.05, 200  # of LightGBM

Inputs = Float[np.ndarray, "rows features"]
Targets = Float[np.ndarray, " rows"]
Learner = Callable[..., Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True, slots=True)
class RidgeForecast:
    """A constant, a broken line in each input, and a product of every two inputs.

    Attributes:
        constant: in rank units.
        slopes: of each input, and by how much its line turns at each of `KNOTS`.
        products: coefficient of each pair, above the diagonal.
    """

    constant: float
    slopes: Float[Tensor, "pieces features"]
    products: Float[Tensor, "features features"]

    def __call__(self, x: Inputs) -> Float[np.ndarray, " rows"]:
        """Scores in rank units."""
        rows = torch.from_numpy(x).float()
        score = rows @ self.slopes[0]
        for knot, turn in zip(KNOTS, self.slopes[1:], strict=True):
            score += (rows - knot).relu_() @ turn
        score += ((rows @ self.products) * rows).sum(dim=1)
        return score.double().add_(self.constant).numpy()


def fit_ridge(x: Inputs, target: Targets, *, seed: int, threads: int) -> RidgeForecast:  # noqa: ARG001
    """Least squares with a penalty on the coefficients, in closed form.

    Broken lines and products of pairs find what bends or depends on one other input, and nothing
    beyond. The penalty is the one of least generalised cross-validation on the fitted rows.

    Args:
        x: near standard normal, as `robust_fin.data.transforms.QuantileNormal` makes them.
        target: in rank units.
        seed: not needed; nothing is drawn.
        threads: not needed; torch has been told.

    Source: Hoerl and Kennard (1970), Ridge regression; Golub, Heath and Wahba (1979), Generalized
    cross-validation as a method for choosing a good ridge parameter.
    """
    moments, mean = _moments(torch.from_numpy(x).float(), torch.from_numpy(target).double())
    scale = moments.diagonal()[:-1].sqrt()
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)  # a constant has no slope
    gram = moments[:-1, :-1] / scale / scale[:, None]
    shared = moments[:-1, -1] / scale
    weights = _ridge(gram, shared, float(moments[-1, -1]), rows=len(x)) / scale
    features = x.shape[1]
    lines = features * (1 + len(KNOTS))
    above = torch.triu_indices(features, features, offset=1)
    products = torch.zeros(features, features, dtype=torch.float64)
    products[above[0], above[1]] = weights[lines:]
    return RidgeForecast(
        float(mean[-1] - mean[:-1] @ weights),
        weights[:lines].reshape(-1, features).float(),
        products.float(),
    )


def expanded(x: Float[Tensor, "rows features"]) -> Float[Tensor, "rows columns"]:
    """The inputs, what of them lies above each of `KNOTS`, and the product of every two."""
    first, second = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
    bent = [(x - knot).relu() for knot in KNOTS]
    return torch.cat([x, *bent, x[:, first] * x[:, second]], dim=1)


def _moments(
    x: Float[Tensor, "rows features"], target: Float[Tensor, " rows"]
) -> tuple[Float[Tensor, "columns columns"], Float[Tensor, " columns"]]:
    """Covariances and means of the expanded inputs and the target, which comes last.

    Products are float32 within a piece of rows, about its own middle, and float64 from piece to
    piece.
    """
    middle = target.mean()
    total = crossed = None
    for first in range(0, len(x), PIECE):
        part = (target[first : first + PIECE] - middle).float()[:, None]
        rows = torch.cat([expanded(x[first : first + PIECE]), part], dim=1)
        added, squared = rows.sum(dim=0).double(), (rows.T @ rows).double()
        total = added if total is None else total + added
        crossed = squared if crossed is None else crossed + squared
    assert total is not None
    assert crossed is not None
    mean = total / len(x)
    moments = crossed / len(x) - torch.outer(mean, mean)
    mean[-1] += middle
    return moments, mean


def _ridge(
    gram: Float[Tensor, "columns columns"],
    shared: Float[Tensor, " columns"],
    spread: float,
    *,
    rows: int,
) -> Float[Tensor, " columns"]:
    """Coefficients of scaled columns, with the penalty of least generalised cross-validation.

    Args:
        gram: covariances of the columns.
        shared: their covariances with the target.
        spread: variance of the target.
        rows: that all of it comes from.
    """
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    along = vectors.T @ shared
    penalties = torch.from_numpy(PENALTIES)[:, None] * values.max()
    kept = along / (values + penalties)
    left = spread - (2 * along * kept - values * kept**2).sum(dim=1)
    freedom = (values / (values + penalties)).sum(dim=1)
    best = int((left / (1 - freedom / rows).clamp(min=1e-9) ** 2).argmin())
    return vectors @ kept[best]


def fit_lightgbm(
    x: Inputs, target: Targets, *, seed: int, threads: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Boosted trees: they find what ridge cannot, and take many times as long.

    Args:
        x: inputs.
        target: in rank units.
        seed: of LightGBM.
        threads: of LightGBM.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    package = lightgbm()
    settings = {
        "objective": "l2", "num_leaves": LEAVES, "learning_rate": RATE,
        "min_data_in_leaf": LEAST_ROWS, "seed": seed, "num_threads": threads,
        "deterministic": True, "verbosity": -1,
    }  # fmt: skip
    booster = package.train(settings, package.Dataset(x, label=target), num_boost_round=ROUNDS)
    return lambda rows: booster.predict(rows, num_threads=threads)


def lightgbm() -> ModuleType:
    """The package, which is an extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("lightgbm")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "select.learner=lightgbm needs LightGBM, which is not installed: "
            "pip install 'robust-fin[boost]', or write select.learner=ridge"
        ) from error


LEARNERS: dict[str, Learner] = {"ridge": fit_ridge, "lightgbm": fit_lightgbm}
