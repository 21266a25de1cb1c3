"""Folds whose labels overlap, and transforms or rank targets that know rows outside train."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from robust_fin.data.examples import Examples
from robust_fin.data.folds import SPANS, FittedFold, FoldSet, cut_folds, fit_transforms
from robust_fin.data.splits import Fold, Split
from robust_fin.data.transforms import FeatureTransform
from robust_fin.features.registry import FeatureSet
from robust_fin.leaks.perturbations import (
    Checked,
    Findings,
    Leak,
    Reach,
    farthest,
    moved,
    spread_of,
)

Columns = dict[str, Float[np.ndarray, " _sample"]]
Index = Int[np.ndarray, " _rows"]
Stamps = Shaped[np.ndarray, " _rows"]

SPLIT, RANK = "split", "rank target"
TRANSFORMS = "transforms, ranks"
OVERLAP, OTHERS, LATER = "labels of later spans", "rows outside train", "later rows"

_SAMPLE = 4096  # rows whose transformed values are compared
_NOISE = 3.0  # spreads that values of other rows are moved by


class Stage(NamedTuple):
    """One fold of a split, as it is cut for choosing or for the refit.

    Attributes:
        name: such as `fold 0` or `fold 0, refit`.
        split: how it was cut.
        cut: every fold of that split.
        number: of the fold.
    """

    name: str
    split: Split
    cut: FoldSet
    number: int

    @property
    def fold(self) -> Fold:
        """The spans, as numbers of labelled rows."""
        return self.cut.folds[self.number]

    @property
    def train(self) -> Index:
        """Training rows among all examples."""
        return self.cut.rows[self.fold.train]


def check_folds(
    examples: Examples,
    *,
    features: FeatureSet,
    transform: Callable[..., FeatureTransform],
    split: Split,
) -> Findings:
    """Look for labels that reach into another span, and for what is learnt from other rows.

    All rows outside train change, and train must be cut as before, and learn the same; later rows
    of a table change, and those before them must be transformed as before.

    Args:
        examples: all rows with features.
        features: names of the inputs.
        transform: such as `FeatureTransform.fit` with its steps.
        split: how the spans are cut; where it asks for a refit, that is looked at too.
    """
    check = FoldCheck(examples, features, transform)
    stages = list(stages_of(examples, split))
    leaks = [leak for stage in stages for leak in check.leaks(stage)]
    spans = [getattr(stage.fold, span).size for stage in stages for span in SPANS]
    sampled = sum(min(_SAMPLE, stage.train.size) for stage in stages) * (len(features.names) + 1)
    return Findings(
        leaks,
        [
            Checked(SPLIT, OVERLAP, len(stages), sum(spans)),
            Checked(TRANSFORMS, OTHERS, len(stages), sampled),
            Checked(TRANSFORMS, LATER, len(stages), check.applied),
        ],
    )


def stages_of(examples: Examples, split: Split) -> Iterator[Stage]:
    """Every fold, and every fold once more with val given to train where there is a refit."""
    for name, one in ("", split), (", refit", split.without_val() if split.refit else None):
        if one is None:
            continue
        cut = cut_folds(examples, one)
        for number in range(len(cut.folds)):
            yield Stage(f"fold {number}{name}", one, cut, number)


class FoldCheck:
    """Holds what is fitted on a fold against what is fitted when other rows have other values.

    Args:
        examples: all rows with features.
        features: names of the inputs.
        transform: such as `FeatureTransform.fit` with its steps.
    """

    def __init__(
        self,
        examples: Examples,
        features: FeatureSet,
        transform: Callable[..., FeatureTransform],
    ) -> None:
        """Draw what the values of other rows become."""
        self._examples, self._features, self._transform = examples, features, transform
        self._other = noisy(examples)
        self._names = [*(f"{name}, transformed" for name in features.names), RANK]
        self.applied = 0  # values compared after later rows had changed

    def leaks(self, stage: Stage) -> Iterator[Leak]:
        """Of one fold, at most one of each kind."""
        yield from overlapping(self._examples, stage)
        if self._depends_on_values(stage):
            yield Leak(
                f"{SPLIT}, {stage.name}",
                "its training rows are others when the values of rows outside train change",
                "Cut by time, label_end, date and contract alone",
            )
            return
        yield from self._learnt(stage)
        yield from self._applied(stage)

    def _learnt(self, stage: Stage) -> Iterator[Leak]:
        """What is fitted must not notice that rows outside train are others."""
        rows = stage.train[:: max(1, stage.train.size // _SAMPLE)][:_SAMPLE]
        others, before = self._others(stage), self._columns(self._fit(stage), rows)

        def column(place: int) -> str | None:
            changed = others[place:]
            return differing(before, self._columns(self._fit(stage, changed), rows), slice(None))

        found = extent(column, others.size)
        if found is None:
            return
        first, last = found
        end, time = self._examples.label_end[stage.train].max(), self._examples.time
        seen = between(time, end, time[others[last]])
        yield Leak(
            f"{first}, {stage.name}",
            "what is fitted changes with rows outside train; beyond the last training label, which "
            f"ends {minute(end)} UTC, it sees {seen}",
            "Fit on the training rows alone",
            seen,
        )

    def _applied(self, stage: Stage) -> Iterator[Leak]:
        """What is transformed must not notice that later rows of the same table are others."""
        rows, fitted = stage.cut.rows[stage.fold.test][:_SAMPLE], self._fit(stage)
        half, before = rows.size // 2, self._columns(fitted, rows)
        self.applied += half * len(before)

        def column(place: int) -> str | None:
            after = self._columns(fitted, rows, rows[half + place :])
            return differing(before, after, slice(0, half))

        found = extent(column, rows.size - half)
        if found is None:
            return
        first, last = found
        time = self._examples.time[rows]
        seen = between(time, time[half - 1], time[half + last])
        yield Leak(
            f"{first}, {stage.name}",
            f"values of test change when later rows of test change; it sees {seen}",
            "Let transform() use what fit() has learnt and the row itself, and nothing else",
            seen,
        )

    def _others(self, stage: Stage) -> Index:
        outside = np.ones(self._examples.outcome.size, dtype=bool)
        outside[stage.train] = False
        return np.flatnonzero(outside)

    def _depends_on_values(self, stage: Stage) -> bool:
        """Whether other rows are trained on where values outside train are others."""
        cut = cut_folds(self._mixed(self._others(stage)), stage.split)
        if len(cut.folds) != len(stage.cut.folds):
            return True
        return not np.array_equal(stage._replace(cut=cut).train, stage.train)

    def _fit(self, stage: Stage, changed: Index | None = None) -> FittedFold:
        return fit_transforms(
            self._mixed(changed),
            stage.cut.rows,
            stage.fold,
            features=self._features,
            transform=self._transform,
        )

    def _columns(self, fitted: FittedFold, rows: Index, changed: Index | None = None) -> Columns:
        """The transformed values of some rows, by column."""
        examples = self._mixed(changed)
        x = fitted.transform.transform(examples.features[rows])
        columns = [*x.astype(np.float64).T, fitted.target.transform(examples.outcome[rows])]
        return dict(zip(self._names, columns, strict=True))

    def _mixed(self, changed: Index | None) -> Examples:
        """The examples, some of them with other values."""
        if changed is None:
            return self._examples
        features, outcome = self._examples.features.copy(), self._examples.outcome.copy()
        features[changed] = self._other.features[changed]
        outcome[changed] = self._other.outcome[changed]
        return replace(self._examples, features=features, outcome=outcome)


def extent(column: Callable[[int], str | None], size: int) -> tuple[str, int] | None:
    """The first column that moves, and the last of `size` starts from which one still does."""
    last = farthest(lambda place: column(place) is not None, size)
    first = column(0) if last is not None else None
    return None if last is None or first is None else (first, last)


def differing(before: Columns, after: Columns, rows: slice) -> str | None:
    """The first column that moved at some rows."""
    for name, values in before.items():
        one, other = values[rows], after[name][rows]
        if moved(one, other, spread=spread_of(one)).any():
            return name
    return None


def noisy(examples: Examples) -> Examples:
    """The same rows with other values; where there is no outcome there is none."""
    draw = np.random.default_rng(0)
    features, outcome = examples.features, examples.outcome
    columns = [*features.T, outcome]
    moved_by = [draw.uniform(0.1, _NOISE, one.size) * spread_of(one) for one in columns]
    return replace(
        examples,
        features=features + np.stack(moved_by[:-1], axis=1),
        outcome=outcome + moved_by[-1],
    )


def overlapping(examples: Examples, stage: Stage) -> Iterator[Leak]:
    """The first label of one span that shares time with a label of a later span."""
    time, end = examples.time[stage.cut.rows], examples.label_end[stage.cut.rows]
    for some, others in combinations(SPANS, 2):
        rows, later = getattr(stage.fold, some), np.sort(getattr(stage.fold, others))
        if not rows.size or not later.size:
            continue
        before = np.searchsorted(time[later], end[rows], side="left")
        reach = np.maximum.accumulate(end[later])[np.maximum(before, 1) - 1]
        bad = np.flatnonzero((before > 0) & (reach > time[rows]))
        if bad.size:
            row = int(rows[bad[0]])
            last = time[later[before[bad[0]] - 1]]
            seen = between(time, time[row], last)
            yield Leak(
                f"{SPLIT}, {stage.name}",
                f"the label of the {some} row at {minute(time[row])} UTC, which ends "
                f"{minute(end[row])} UTC, shares time with labels of {others}, and so do "
                f"{bad.size:,} {some} rows in all; it sees {seen}",
                f"Purge {some} rows whose label reaches into {others}",
                seen,
            )


def between(time: Stamps, start: np.datetime64, stop: np.datetime64) -> Reach:
    """From one moment to a later one, in stamps of some rows that begin between them."""
    bars = np.unique(time[(time > start) & (time <= stop)]).size
    minutes = max(0.0, float((stop - start) / np.timedelta64(1, "m")))
    return Reach(bars, minutes, bars > 0 and bool(stop == time.max()))


def minute(stamp: np.datetime64) -> str:
    """A moment to the minute."""
    return str(np.datetime_as_string(stamp, unit="m"))
