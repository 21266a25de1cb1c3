"""Quick learners, and the training rows of a fold cut into parts for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
from robust_fin.ranking.importance import Matrix, ScoredPart, Scorer
from robust_fin.training.baselines import GradientBoosting, Spectrum, check_lightgbm_installed

KNOTS = (-1.0, 0.0, 1.0)  # of inputs that are near standard normal
PIECE = 1 << 14  # rows expanded at once
PENALTIES = np.logspace(-6, 1, 29)  # relative to the largest eigenvalue
ROUNDS, LEAVES, RATE, LEAST_ROWS = 100, 31, 0.05, 200  # of LightGBM

Targets = Float[np.ndarray, " rows"]
Learner = Callable[[np.ndarray, np.ndarray], Scorer]  # inputs, targets in rank units -> forecast


@dataclass(frozen=True, slots=True)
class TrainingSpan:
    """Training rows of one fold.

    Attributes:
        names: names of the features.
        examples: all rows with features; only the training rows are read.
        rows: numbers of the training rows, in time order.
        embargo: bars dropped before each scored part, in addition to the purge.
        judged: number of training rows that are val or test rows of another fold.
    """

    names: tuple[str, ...]
    examples: Examples
    rows: np.ndarray
    embargo: int
    judged: int

    @classmethod
    def from_fold(
        cls, examples: Examples, cut: FoldSet, number: int, *, names: tuple[str, ...], embargo: int
    ) -> "TrainingSpan":
        """Take the training rows of one fold of a split.

        Args:
            examples: all rows with features.
            cut: all folds of the split.
            number: number of the fold.
            names: names of the features.
            embargo: embargo of the split, in bars.
        """
        judged = np.zeros(cut.rows.size, dtype=bool)
        for fold in cut.folds:
            judged[fold.val] = judged[fold.test] = True
        train = cut.folds[number].train
        return cls(names, examples, cut.rows[train], embargo, int(judged[train].sum()))

    def x(self, *, most: int) -> Matrix:
        """Return the raw features of at most `most` evenly spaced rows."""
        step = -(-self.rows.size // most)
        return Inputs.from_examples(self.examples).rows(self.rows[::step])

    def parts(
        self, count: int, *, first: float, learner: Learner, names: Sequence[str] | None = None
    ) -> Iterator[ScoredPart]:
        """Cut consecutive parts, and fit a learner on all rows before each of them.

        Transform and rank target are fitted on the same rows as the learner.

        Args:
            count: number of parts, with numbers of trading dates as equal as possible.
            first: share of the rows before the first part.
            learner: fits inputs that are near standard normal, float32.
            names: features to use; None uses all.

        Raises:
            SplitError: there are too few trading dates.
            TransformError: a feature is constant on the fitted rows.
        """
        names = self.names if names is None else names
        raw = Inputs.from_examples(
            self.examples, columns=[self.names.index(name) for name in names]
        )
        for fold in self._cut(count, first):
            fitted, scored = self.rows[fold.train], self.rows[fold.test]
            x = raw.rows(fitted)
            transform = FeatureTransform.fit(x, names=names, steps=[QuantileNormal.fit])
            inputs = raw.with_transform(transform)
            target = RankTarget.fit(self.examples.outcome[fitted])
            outcome = self.examples.outcome[scored]
            yield ScoredPart(
                x=inputs.rows(scored),
                target=target.transform(outcome),
                outcome=outcome,
                trading_date=self.examples.trading_date[scored],
                trivial=target.median,
                forecast=learner(
                    inputs.rows(fitted), target.transform(self.examples.outcome[fitted])
                ),
            )

    def _cut(self, count: int, first: float) -> Iterator[Fold]:
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
            dates = np.unique(self.examples.trading_date[self.rows]).size
            raise SplitError(
                f"{count} parts after the first {first:g} of the training rows cannot be cut: "
                f"{self.rows.size} training rows have {dates} trading dates, and "
                f"split.embargo={self.embargo}. Use fewer parts or more bars"
            ) from None  # the original message names settings that the user has not given


@dataclass(frozen=True, slots=True)
class RidgeForecast:
    """A constant, a piecewise linear function of each input, and the product of every two inputs.

    Attributes:
        constant: in rank units.
        slopes: slope of each input, and its change at each of `KNOTS`.
        products: coefficient of each pair, above the diagonal.
    """

    constant: float
    slopes: Float[Tensor, "pieces features"]
    products: Float[Tensor, "features features"]

    def __call__(self, x: Matrix) -> Targets:
        """Return scores in rank units."""
        rows = torch.from_numpy(x).float()
        score = rows @ self.slopes[0]
        for knot, bend in zip(KNOTS, self.slopes[1:], strict=True):
            score += (rows - knot).relu_() @ bend
        score += ((rows @ self.products) * rows).sum(dim=1)
        return score.double().add_(self.constant).numpy()


def fit_ridge(x: Matrix, target: Targets, *, seed: int, threads: int) -> RidgeForecast:  # noqa: ARG001
    """Fit a ridge regression on `expand_columns` of the inputs, in closed form.

    The penalty is chosen by generalized cross-validation on the fitted rows.

    Args:
        x: near standard normal, as `robust_fin.data.transforms.QuantileNormal` makes them.
        target: in rank units.
        seed: unused.
        threads: unused; torch has its own setting.

    Source: Hoerl and Kennard (1970), Ridge regression; Golub, Heath and Wahba (1979), Generalized
    cross-validation as a method for choosing a good ridge parameter.
    """
    moments, mean = _moments(torch.from_numpy(x).float(), torch.from_numpy(target).double())
    scale = moments.diagonal()[:-1].sqrt()
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)  # a constant gets no slope
    gram = moments[:-1, :-1] / scale / scale[:, None]
    cross = moments[:-1, -1] / scale
    spectrum = Spectrum.from_moments(gram.numpy(), cross.numpy())
    penalty = spectrum.penalty(
        PENALTIES * spectrum.eigenvalues.max(), spread=float(moments[-1, -1]), rows=len(x)
    )
    weights = torch.from_numpy(spectrum.weights(penalty)) / scale
    features = x.shape[1]
    slopes = features * (1 + len(KNOTS))
    above = torch.triu_indices(features, features, offset=1)
    products = torch.zeros(features, features, dtype=torch.float64)
    products[above[0], above[1]] = weights[slopes:]
    return RidgeForecast(
        float(mean[-1] - mean[:-1] @ weights),
        weights[:slopes].reshape(-1, features).float(),
        products.float(),
    )


def expand_columns(x: Float[Tensor, "rows features"]) -> Float[Tensor, "rows columns"]:
    """Return the inputs, their part above each of `KNOTS`, and the product of every two."""
    first, second = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
    bends = [(x - knot).relu() for knot in KNOTS]
    return torch.cat([x, *bends, x[:, first] * x[:, second]], dim=1)


def _moments(
    x: Float[Tensor, "rows features"], target: Float[Tensor, " rows"]
) -> tuple[Float[Tensor, "columns columns"], Float[Tensor, " columns"]]:
    """Return covariances and means of the expanded inputs and the target, which comes last.

    Products are summed in float32 within a piece of rows, and in float64 over the pieces.
    """
    center, total, crossed = target.mean(), None, None
    for first in range(0, len(x), PIECE):
        centered = (target[first : first + PIECE] - center).float()[:, None]
        rows = torch.cat([expand_columns(x[first : first + PIECE]), centered], dim=1)
        piece_total, piece_crossed = rows.sum(dim=0).double(), (rows.T @ rows).double()
        total = piece_total if total is None else total + piece_total
        crossed = piece_crossed if crossed is None else crossed + piece_crossed
    assert total is not None
    assert crossed is not None
    mean = total / len(x)
    moments = crossed / len(x) - torch.outer(mean, mean)
    mean[-1] += center
    return moments, mean


def fit_lightgbm(x: Matrix, target: Targets, *, seed: int, threads: int) -> Scorer:
    """Fit boosted trees, which find more than ridge and take many times as long.

    Args:
        x: inputs.
        target: in rank units.
        seed: seed of LightGBM.
        threads: number of LightGBM's threads.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    check_lightgbm_installed(wanted_by="select.learner=lightgbm", instead="select.learner=ridge")
    trees = GradientBoosting(
        trees=ROUNDS, learning_rate=RATE, leaves=LEAVES, min_rows=LEAST_ROWS,
        column_share=1.0, penalty=0.0, threads=threads, seed=seed,
    )  # fmt: skip
    return trees.fit(x, target)


LEARNERS: dict[str, Callable[..., Scorer]] = {"ridge": fit_ridge, "lightgbm": fit_lightgbm}
