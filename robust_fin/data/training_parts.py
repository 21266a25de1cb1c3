"""A fold's training rows cut into parts of their own, for choices that may see no other row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from robust_fin.data.examples import Examples
from robust_fin.data.folds import Cut
from robust_fin.data.rank_target import RankTarget
from robust_fin.data.splits import Fold
from robust_fin.data.transforms import FeatureTransform, QuantileNormal
from robust_fin.data.walk_forward import TRADING_DATE, WalkForward
from robust_fin.errors import SplitError


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
        cls, examples: Examples, cut: Cut, number: int, *, names: tuple[str, ...], embargo: int
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
        return self.examples.features[self.rows[:: -(-self.rows.size // most)]]

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
        for fold in self._cut(count, first):
            fit, scored = self.rows[fold.train], self.rows[fold.test]
            inputs = self.examples.features[np.ix_(fit, columns)]
            transform = FeatureTransform.fit(inputs, names=names, steps=[QuantileNormal.fit])
            target = RankTarget.fit(self.examples.outcome[fit])
            outcome = self.examples.outcome[scored]
            yield TrainingPart(
                transform.transform(inputs),
                target.transform(self.examples.outcome[fit]),
                transform.transform(self.examples.features[np.ix_(scored, columns)]),
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
            yield from scheme.each_fold(
                self.examples.time[self.rows],
                self.examples.label_end[self.rows],
                trading_date=trading_date,
                contract=self.examples.contract[self.rows],
            )
        except SplitError:
            raise SplitError(
                f"{count} parts after the first {first:g} of the training rows cannot be cut: "
                f"{self.rows.size} training rows have {np.unique(trading_date).size} trading dates,"
                f" and split.embargo={self.embargo}. Use fewer parts or more bars"
            ) from None  # whose words are of settings that nobody has given
