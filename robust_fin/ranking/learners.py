"""Quick learners on inner folds of the training rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robust_fin.data.examples import Examples
from robust_fin.data.folds import FoldSet
from robust_fin.data.inputs import Inputs
from robust_fin.data.splits import Fold
from robust_fin.data.targets import RankTarget
from robust_fin.data.time_series_folds import TRADING_DATE, WalkForward
from robust_fin.data.transforms import FeatureTransform, QuantileNormal
from robust_fin.errors import SplitError
from robust_fin.training.baselines import GradientBoosting, Spectrum, check_lightgbm_installed


class TrainingPart(NamedTuple):
    """Training rows to fit on, and later ones to score, with transforms fitted on the former.

    Attributes:
        fit_x: near standard normal, float32.
        fit_target: rank among the fitted rows.
        x: of the scored rows.
        target: of the scored rows: rank among the fitted ones.
        outcome: forward return, a fraction.
        trading_date: datetime64, of each scored row.
        trivial: median of the target over the fitted rows, in rank units.
    """

    fit_x: Float[np.ndarray, "_fitted features"]
    fit_target: Float[np.ndarray, " _fitted"]
    x: Float[np.ndarray, "rows features"]
    target: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    trading_date: np.ndarray
    trivial: float


@dataclass(frozen=True, slots=True)
class TrainingSpan:
    """The training rows of one fold.

    Attributes:
        names: of the features.
        examples: all rows with features; of them, those of other spans are never read.
        rows: numbers of the training rows, in the order of time.
        embargo: bars dropped before each scored part, beside the purge.
        judged: how many of the training rows another fold validates or tests.
    """

    names: tuple[str, ...]
    examples: Examples
    rows: np.ndarray
    embargo: int
    judged: int

    @classmethod
    def of(
        cls, examples: Examples, cut: FoldSet, number: int, *, names: tuple[str, ...], embargo: int
    ) -> "TrainingSpan":
        """The training rows of one fold of a split.

        Args:
            examples: all rows with features.
            cut: every fold.
            number: of the fold.
            names: of the features.
            embargo: of the split, in bars.
        """
        judged = np.zeros(cut.rows.size, dtype=bool)
        for fold in cut.folds:
            judged[fold.val] = judged[fold.test] = True
        train = cut.folds[number].train
        return cls(names, examples, cut.rows[train], embargo, int(judged[train].sum()))

    def x(self, *, most: int) -> Float[np.ndarray, "rows features"]:
        """Features as they are, of at most `most` evenly spaced rows."""
        some = self.rows[:: -(-self.rows.size // most)]
        return Inputs.from_examples(self.examples).rows(some)

    def parts(
        self, count: int, *, first: float, names: Sequence[str] | None = None
    ) -> Iterator[TrainingPart]:
        """Consecutive parts of the span, each after all the rows that are fitted for it.

        Args:
            count: of the parts, as equal in trading dates as can be.
            first: share of the rows before the first part.
            names: some of the features; None takes all.

        Raises:
            SplitError: there are too few trading dates.
            TransformError: a feature is constant on the fitted rows.
        """
        names = self.names if names is None else names
        columns = [self.names.index(name) for name in names]
        raw = Inputs.from_examples(self.examples, columns=columns)
        for fold in self._cut(count, first):
            fit, scored = self.rows[fold.train], self.rows[fold.test]
            transform = FeatureTransform.fit(raw.rows(fit), names=names, steps=[QuantileNormal.fit])
            inputs = raw.with_transform(transform)
            target = RankTarget.fit(self.examples.outcome[fit])
            outcome = self.examples.outcome[scored]
            yield TrainingPart(
                inputs.rows(fit),
                target.transform(self.examples.outcome[fit]),
                inputs.rows(scored),
                target.transform(outcome),
                outcome,
                self.examples.trading_date[scored],
                target.median,
            )

    def _cut(self, count: int, first: float) -> Iterator[Fold]:
        trading_date = self.examples.trading_date[self.rows]
        scheme = WalkForward(
            by=TRADING_DATE,
            test_blocks=count,
            first_test=first,
            window=None,
            val_fraction=0.0,
            embargo=self.embargo,
            lockbox=0.0,
            refit=False,
        )
        try:
            yield from scheme.each_fold(self.examples.labelled_rows(self.rows))
        except SplitError:
            raise SplitError(
                f"{count} parts after the first {first:g} of the training rows cannot be cut: "
                f"{self.rows.size} training rows have {np.unique(trading_date).size} trading dates,"
                f" and split.embargo={self.embargo}. Use fewer parts or more bars"
            ) from None  # whose words are of settings that nobody has given


KNOTS = (-1.0, 0.0, 1.0)  # of inputs that are near standard normal
PIECE = 1 << 14  # rows expanded at once
PENALTIES = np.logspace(-6, 1, 29)  # relative to the largest eigenvalue
ROUNDS, LEAVES, RATE, LEAST_ROWS = 100, 31, 0.05, 200  # of LightGBM

Matrix = Float[np.ndarray, "rows features"]
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

    def __call__(self, x: Matrix) -> Float[np.ndarray, " rows"]:
        """Scores in rank units."""
        rows = torch.from_numpy(x).float()
        score = rows @ self.slopes[0]
        for knot, turn in zip(KNOTS, self.slopes[1:], strict=True):
            score += (rows - knot).relu_() @ turn
        score += ((rows @ self.products) * rows).sum(dim=1)
        return score.double().add_(self.constant).numpy()


def fit_ridge(x: Matrix, target: Targets, *, seed: int, threads: int) -> RidgeForecast:  # noqa: ARG001
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
    spectrum = Spectrum.from_moments(gram.numpy(), shared.numpy())
    penalty = spectrum.penalty(
        PENALTIES * spectrum.eigenvalues.max(), spread=float(moments[-1, -1]), rows=len(x)
    )
    weights = torch.from_numpy(spectrum.weights(penalty)) / scale
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


def fit_lightgbm(
    x: Matrix, target: Targets, *, seed: int, threads: int
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
    check_lightgbm_installed(wanted_by="select.learner=lightgbm", instead="select.learner=ridge")
    trees = GradientBoosting(
        trees=ROUNDS, learning_rate=RATE, leaves=LEAVES, min_rows=LEAST_ROWS,
        column_share=1.0, penalty=0.0, threads=threads, seed=seed,
    )  # fmt: skip
    return trees.fit(x, target)


LEARNERS: dict[str, Learner] = {"ridge": fit_ridge, "lightgbm": fit_lightgbm}
