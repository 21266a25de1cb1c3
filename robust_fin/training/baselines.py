"""Baselines on the rows of a fold: constant, minus the last return, ridge, boosted trees."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.callbacks import Callback

from robust_fin.data.datamodule import BarDataModule
from robust_fin.data.examples import Examples
from robust_fin.data.targets import RankTarget
from robust_fin.errors import ConfigError
from robust_fin.training.settings import FitSettings

BASELINE_NAMES = ("constant", "minus_last_return", "ridge", "lightgbm")
TRIVIAL_TAG = "train/objective_trivial"
_PENALTIES = np.logspace(-8, 2, 21)  # per training row, on standardised features
_CHUNK = 1 << 16  # rows that are converted to float64 at once


def trivial_objective(settings: FitSettings, folds: Sequence[BarDataModule]) -> float:
    """Return the training objective of the best constant: the median or the mean of the target.

    It is averaged over the folds. It is NaN if the members of a population have different losses.
    """
    if settings.population.delta is not None:
        return math.nan
    objectives = []
    for data in folds:
        outcome, rank = data.outcome("train"), data.target("train")
        target = torch.from_numpy(data.scale.training_target(outcome=outcome, rank=rank))
        losses = (
            settings.loss(value.expand_as(target), target)
            for value in (target.median(), target.mean())
        )
        objectives.append(min(map(float, losses)))
    return float(np.mean(objectives)) if objectives else math.nan


class TrivialObjective(Callback):
    """Logs the trivial objective at the start and at the end of each epoch, as a flat curve.

    Args:
        value: the objective; NaN is not logged.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Log the first point, unless the run is resumed."""
        if trainer.global_step == 0:
            self._log(trainer, step=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Log at the step of the last loss, so that a resume from here keeps the point."""
        if trainer.global_step:
            self._log(trainer, step=trainer.global_step - 1)

    def _log(self, trainer: L.Trainer, *, step: int) -> None:
        if not math.isnan(self.value):
            for logger in trainer.loggers:
                logger.log_metrics({TRIVIAL_TAG: self.value}, step=step)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A least-squares problem in the eigenbasis of its features, where each penalty is cheap.

    Attributes:
        eigenvalues: of the Gram matrix of the features.
        eigenvectors: of the Gram matrix, in columns.
        projections: X^T y in the eigenbasis.

    Source: Golub, Heath and Wahba (1979), Generalized cross-validation as a method for choosing a
    good ridge parameter.
    """

    eigenvalues: Float[np.ndarray, " features"]
    eigenvectors: Float[np.ndarray, "features features"]
    projections: Float[np.ndarray, " features"]

    @classmethod
    def from_moments(
        cls, gram: Float[np.ndarray, "features features"], xty: Float[np.ndarray, " features"]
    ) -> "Spectrum":
        """Build from X^T X and X^T y (sums or means over rows) of centred features and target."""
        eigenvalues, eigenvectors = np.linalg.eigh(gram)
        return cls(np.maximum(eigenvalues, 0.0), eigenvectors, eigenvectors.T @ xty)

    def weights(self, penalty: float) -> Float[np.ndarray, " features"]:
        """Return the ridge weights for a penalty."""
        return self.eigenvectors @ (self.projections / (self.eigenvalues + penalty))

    def penalty(
        self, penalties: Float[np.ndarray, " penalties"], *, spread: float, rows: int
    ) -> float:
        """Return the penalty with the least generalised cross-validation error.

        Args:
            penalties: candidates.
            spread: sum (or mean) of squares of the centred target.
            rows: number of training rows.
        """
        values, squares = self.eigenvalues, self.projections**2

        def gcv_error(penalty: float) -> float:
            explained = squares * (values + 2 * penalty) / (values + penalty) ** 2
            freedom = 1 + float(np.sum(values / (values + penalty)))
            return (spread - float(explained.sum())) / max(rows - freedom, 1e-9) ** 2

        return float(min(penalties, key=gcv_error))


@dataclass(frozen=True, slots=True)
class Ridge:
    """Ridge regression on standardised features; a constant feature has weight 0.

    Attributes:
        weights: target units per feature unit.
        intercept: in target units.
        penalty: chosen among 21 by generalised cross-validation.
    """

    weights: Float[np.ndarray, " features"]
    intercept: float
    penalty: float

    @classmethod
    def fit(cls, x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, " rows"]) -> "Ridge":
        """Fit the weights, and choose the penalty by generalised cross-validation.

        Only sums over rows are stored, so any number of rows fits in memory.

        Args:
            x: features of the training rows.
            y: targets of the training rows.
        """
        rows = y.size
        x_mean, y_mean = x.mean(axis=0, dtype=np.float64), float(y.mean())
        gram, xty = _centred_moments(x, y, x_mean, y_mean)
        scale = np.sqrt(np.diag(gram))
        used = scale > 1e-12 * np.sqrt(rows) * np.maximum(np.abs(x_mean), 1.0)
        safe = np.where(used, scale, 1.0)
        standardised = gram / np.outer(safe, safe) * np.outer(used, used)
        spectrum = Spectrum.from_moments(standardised, xty / safe * used)
        penalty = spectrum.penalty(_PENALTIES, spread=float(((y - y_mean) ** 2).sum()), rows=rows)
        weights = spectrum.weights(penalty) / safe * used
        return cls(weights, y_mean - float(x_mean @ weights), penalty)

    def forecast(self, x: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, " rows"]:
        """Return forecasts in target units."""
        starts = range(0, len(x), _CHUNK)
        chunks = [x[at : at + _CHUNK].astype(np.float64) @ self.weights for at in starts]
        return np.concatenate(chunks) + self.intercept if chunks else np.zeros(0)


def _centred_moments(
    x: Float[np.ndarray, "rows features"],
    y: Float[np.ndarray, " rows"],
    x_mean: Float[np.ndarray, " features"],
    y_mean: float,
) -> tuple[Float[np.ndarray, "features features"], Float[np.ndarray, " features"]]:
    """Return X^T X and X^T y of the deviations from the means."""
    width = x.shape[1]
    gram, xty = np.zeros((width, width)), np.zeros(width)
    for at in range(0, len(x), _CHUNK):
        centred = x[at : at + _CHUNK].astype(np.float64) - x_mean
        gram += centred.T @ centred
        xty += centred.T @ (y[at : at + _CHUNK] - y_mean)
    return gram, xty


Forecast = Callable[[np.ndarray], np.ndarray]


def check_lightgbm_installed(*, wanted_by: str, instead: str) -> None:
    """Raise ConfigError if LightGBM is not installed.

    Args:
        wanted_by: setting that needs LightGBM, for the message.
        instead: setting that does not.
    """
    if importlib.util.find_spec("lightgbm") is None:
        raise ConfigError(
            f"{wanted_by} needs LightGBM, which is not installed. "
            f"Run pip install 'robust-fin[boost]', or use {instead}"
        )


@dataclass(frozen=True, slots=True)
class GradientBoosting:
    """LightGBM with squared error, on features that are not scaled.

    Attributes:
        trees: boosting rounds.
        learning_rate: shrinkage of each tree.
        leaves: per tree, at most.
        min_rows: per leaf, at least.
        column_share: share of the features that each tree may use.
        penalty: L2 penalty on leaf values.
        threads: of LightGBM.
        seed: of the sampling of features.
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
        """Check that LightGBM is installed before anything is computed."""
        check_lightgbm_installed(wanted_by="baselines=full", instead="baselines=default")

    def fit(self, x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, " rows"]) -> Forecast:
        """Fit the trees; return a function from features to forecasts.

        Args:
            x: features of the training rows.
            y: targets of the training rows.
        """
        import lightgbm  # optional, and slow to import

        train = lightgbm.Dataset(x, y, free_raw_data=True)
        booster = lightgbm.train(self._parameters(), train, num_boost_round=self.trees)
        return lambda rows: np.asarray(
            booster.predict(rows, num_threads=self.threads), dtype=np.float64
        )

    def _parameters(self) -> dict[str, float | str | bool]:
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


@dataclass(frozen=True, slots=True)
class Baselines:
    """The forecasts that every net is compared with.

    Attributes:
        lightgbm: boosted trees; None leaves them out.
    """

    lightgbm: GradientBoosting | None

    def forecasts(self, data: BarDataModule) -> dict[str, Float[np.ndarray, " rows"]]:
        """Return forecasts of the fold's test rows by name, in rank units.

        Args:
            data: the fold; only its training rows are fitted on.
        """
        examples, target = data.market.examples, data.fitted.target
        train, test = data.fitted.span("train"), data.fitted.span("test")
        rank = data.target("train")
        forecasts = {
            "constant": constant(test, target),
            "minus_last_return": minus_last_return(examples, test, target),
            "ridge": Ridge.fit(data.x("train").numpy(), rank).forecast(data.x("test").numpy()),
        }
        if self.lightgbm is not None:
            values = examples.features
            forecasts["lightgbm"] = self.lightgbm.fit(values[train], rank)(values[test])
        return forecasts


def constant(rows: Int[np.ndarray, " rows"], target: RankTarget) -> Float[np.ndarray, " rows"]:
    """Forecast the median of the training target for every row."""
    return np.full(rows.size, target.median)


def minus_last_return(
    examples: Examples, rows: Int[np.ndarray, " rows"], target: RankTarget
) -> Float[np.ndarray, " rows"]:
    """Forecast minus the return of the row's own bar, in rank units.

    The first bar of a contract has no return; its forecast is the training median.
    """
    last = examples.last_return[rows]
    score = target.transform(-np.nan_to_num(last, nan=0.0))
    return np.where(np.isnan(last), target.median, score)
