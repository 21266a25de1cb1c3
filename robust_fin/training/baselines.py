"""Baselines on the same rows: constants, minus the last return, ridge and boosted trees."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback

from robust_fin.data.datamodule import BarDataModule
from robust_fin.data.examples import Examples
from robust_fin.data.targets import RankTarget
from robust_fin.errors import ConfigError
from robust_fin.training.settings import FitSettings

TRIVIAL_TAG = "train/objective_trivial"


def trivial_objective(settings: FitSettings, folds: Sequence[BarDataModule]) -> float:
    """Training objective of a constant: the median of what is trained on, or its mean if better.

    NaN where members have objectives of their own.

    Args:
        settings: of the fit.
        folds: whose training rows are averaged over.
    """
    if settings.population.delta is not None:
        return math.nan
    loss, found = settings.loss, []
    for data in folds:
        trained = data.scale.training_target(
            outcome=data.outcome("train"), rank=data.target("train")
        )
        wanted = torch.from_numpy(trained)
        constants = (wanted.median(), wanted.mean())
        found.append(min(float(loss(one.expand_as(wanted), wanted)) for one in constants))
    return float(np.mean(found)) if found else math.nan


class TrivialObjective(Callback):
    """Draws it where training starts and at the end of every epoch, so that it is a line.

    Args:
        value: of the constant; NaN is not drawn.
    """

    def __init__(self, value: float) -> None:
        """Keep it."""
        self.value = value

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """The first point, which a run that goes on has already."""
        if trainer.global_step == 0:
            self._draw(trainer, at=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """A point where the last step's loss lies, so that a checkpoint after it keeps it."""
        if trainer.global_step:
            self._draw(trainer, at=trainer.global_step - 1)

    def _draw(self, trainer: L.Trainer, *, at: int) -> None:
        if math.isnan(self.value):
            return
        for logger in trainer.loggers:
            logger.log_metrics({TRIVIAL_TAG: self.value}, step=at)


_PENALTIES = np.logspace(-8, 2, 21)  # a row, on standardised features
_PIECE = 1 << 16  # rows summed at once, in float64


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A least-squares problem along the axes of its features, where any penalty is quick to try.

    Attributes:
        eigenvalues: eigenvalues of the features' products.
        eigenvectors: their eigenvectors, in columns.
        projections: products of features and target, along the axes.

    Source: Golub, Heath and Wahba (1979), Generalized cross-validation as a method for choosing a
    good ridge parameter.
    """

    eigenvalues: Float[np.ndarray, " features"]
    eigenvectors: Float[np.ndarray, "features features"]
    projections: Float[np.ndarray, " features"]

    @classmethod
    def from_moments(
        cls, gram: Float[np.ndarray, "features features"], shared: Float[np.ndarray, " features"]
    ) -> "Spectrum":
        """From sums (or means) of products of centred features, with each other and the target."""
        sizes, axes = np.linalg.eigh(gram)
        return cls(np.maximum(sizes, 0.0), axes, axes.T @ shared)

    def weights(self, penalty: float) -> Float[np.ndarray, " features"]:
        """Of the features, with that penalty on their squares."""
        return self.eigenvectors @ (self.projections / (self.eigenvalues + penalty))

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
            kept = (
                self.projections**2
                * (self.eigenvalues + 2 * penalty)
                / (self.eigenvalues + penalty) ** 2
            )
            freedom = 1 + float(np.sum(self.eigenvalues / (self.eigenvalues + penalty)))
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
        spectrum = Spectrum.from_moments(unit, shared / safe * used)
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


Forecast = Callable[[np.ndarray], np.ndarray]


def check_lightgbm_installed(*, wanted_by: str, instead: str) -> None:
    """Ask for the library before anything is computed.

    Args:
        wanted_by: the setting that needs it.
        instead: one that does without.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    if importlib.util.find_spec("lightgbm") is None:
        raise ConfigError(
            f"{wanted_by} needs LightGBM, which is not installed: "
            f"pip install 'robust-fin[boost]', or write {instead}"
        )


@dataclass(frozen=True, slots=True)
class GradientBoosting:
    """LightGBM with squared error, on features as they are.

    Attributes:
        trees: boosting rounds.
        learning_rate: of a tree.
        leaves: of a tree, at most.
        min_rows: of a leaf, at least.
        column_share: of the features that each tree sees.
        penalty: on squared leaf values.
        threads: of LightGBM.
        seed: of the choice of features.
    """

    trees: int
    learning_rate: float
    leaves: int
    min_rows: int
    column_share: float
    penalty: float
    threads: int
    seed: int

    def __post_init__(self) -> None:
        """Ask for the library before anything is computed.

        Raises:
            ConfigError: LightGBM is not installed.
        """
        check_lightgbm_installed(wanted_by="baselines=full", instead="baselines=default")

    def fit(self, x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, " rows"]) -> Forecast:
        """Trees grown on the training rows, as what makes forecasts of others.

        Args:
            x: features of the training rows.
            y: their targets.
        """
        import lightgbm  # an extra, and slow to load

        train = lightgbm.Dataset(x, y, free_raw_data=True)
        grown = lightgbm.train(self._settings(), train, num_boost_round=self.trees)
        return lambda rows: np.asarray(
            grown.predict(rows, num_threads=self.threads), dtype=np.float64
        )

    def _settings(self) -> dict[str, float | str | bool]:
        return {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_rows,
            "feature_fraction": self.column_share,
            "lambda_l2": self.penalty,
            "num_threads": self.threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


BASELINE_NAMES = ("constant", "minus_last_return", "ridge", "lightgbm")


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
