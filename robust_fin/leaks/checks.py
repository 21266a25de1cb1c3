"""All leak checks of one config: bars, features, labels, and what the folds are fitted on."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from robust_fin.data.examples import Examples, columns_of, make_examples
from robust_fin.data.folds import SPANS, FittedFold, FoldSet, cut_folds, fit_transforms
from robust_fin.data.splits import Fold, Split
from robust_fin.data.targets import ForwardReturn
from robust_fin.data.transforms import FeatureTransform
from robust_fin.errors import ConfigError, SchemaError
from robust_fin.features.registry import FEATURES, FeatureSet, compute_features
from robust_fin.leaks.feature_check import check_features
from robust_fin.leaks.label_check import SAME_DAY, VIX, check_labels, check_vix
from robust_fin.leaks.perturbations import (
    CheckedColumn,
    Findings,
    Leak,
    Reach,
    cut_points,
    finite_std,
    format_minute,
    last_noticed,
    values_differ,
)
from robust_fin.market.labelling import Labeller
from robust_fin.market.sources import Bars

log = logging.getLogger(__name__)


def check_leaks(
    bars: Bars,
    *,
    labeller: Labeller,
    features: FeatureSet,
    target: ForwardReturn,
    split: Split,
    transform: Callable[..., FeatureTransform],
    cuts: int,
    every_feature: bool,
    seed: int,
) -> Findings:
    """Run all leak checks; the leaks come in the order in which a training run meets them.

    Args:
        bars: the bars to perturb.
        labeller: joined the VIX closes, if any, to the bars.
        features: names of the inputs.
        target: makes the labels.
        split: cuts the spans.
        transform: such as `FeatureTransform.fit` with its steps.
        cuts: number of mid-session cuts, and the most rolls to cut at.
        every_feature: check all registered features that the bars have columns for.
        seed: seed of the cuts and of the perturbations.

    Raises:
        ConfigError: `cuts` is not a positive integer.
    """
    if not isinstance(cuts, int) or cuts < 1:
        raise ConfigError(f"leaks.cuts={cuts} must be a whole number, at least 1")
    examples = make_examples(bars, names=features.names, target=target)
    ends = _train_ends(examples, split, count=cuts)
    points = cut_points(bars.table, count=cuts, seed=seed, ends=ends)
    names = checkable_features(bars, features.names) if every_feature else list(features.names)
    vix = (
        _unchecked_vix(bars, names)
        if labeller.closes is None
        else check_vix(bars.table, labeller, points)
    )
    parts = (
        vix,
        check_features(bars.table, columns_of(names), points, starts=cuts // 2 + 1, seed=seed),
        check_labels(bars.table, target, points, bar=bars.bar),
        check_folds(examples, features=features, transform=transform, split=split),
    )
    return Findings(
        [leak for part in parts for leak in part.leaks],
        [line for part in parts for line in part.checked],
    )


def checkable_features(bars: Bars, first: Sequence[str]) -> list[str]:
    """Return some features, then all other registered ones that the bars have columns for.

    Args:
        bars: the bars.
        first: names to start with.
    """
    names = []
    for name in (*first, *sorted(set(FEATURES) - set(first))):
        if _has_columns(bars.table.iloc[:2], name):
            names.append(name)
        else:
            log.info("feature %s not checked: the bars lack a column that it needs", name)
    return names


def _has_columns(bars: pd.DataFrame, name: str) -> bool:
    try:
        compute_features(bars, [name])
    except SchemaError:
        return False
    return True


def _train_ends(examples: Examples, split: Split, *, count: int) -> list[np.datetime64]:
    """Return the last label end of the training span of each of the first `count` folds."""
    cut = cut_folds(examples, split)
    return [examples.label_end[cut.rows[fold.train]].max() for fold in cut.folds[:count]]


def _unchecked_vix(bars: Bars, names: Sequence[str]) -> Findings:
    """Return a note if a feature reads a VIX column that came with the bars."""
    without = bars.table.iloc[:2].drop(columns="vix", errors="ignore")
    if all(_has_columns(without, name) for name in names):
        return Findings([], [])
    note = "not checked, assumed to be known at each bar; source.vix_path joins checkable closes"
    return Findings([], [CheckedColumn(VIX, SAME_DAY, 0, 0, note)])


Columns = dict[str, Float[np.ndarray, " _sample"]]
Index = Int[np.ndarray, " _rows"]
Stamps = Shaped[np.ndarray, " _rows"]
TransformFit = Callable[..., FeatureTransform]

SPLIT, RANK = "split", "rank target"
TRANSFORMS = "transforms, ranks"
OVERLAP, OTHERS, LATER = "labels of later spans", "rows outside train", "later rows"

_SAMPLE = 4096  # rows whose transformed values are compared
_NOISE = 3.0  # the largest change of a value, in standard deviations


class FoldStage(NamedTuple):
    """A fold of a split, as cut for choosing or for the refit.

    Attributes:
        name: such as `fold 0` or `fold 0, refit`.
        split: the split.
        cut: all folds of the split.
        number: number of the fold.
    """

    name: str
    split: Split
    cut: FoldSet
    number: int

    @property
    def fold(self) -> Fold:
        """The spans, as positions in the labelled rows."""
        return self.cut.folds[self.number]

    @property
    def train(self) -> Index:
        """Row numbers of the training rows in the examples."""
        return self.cut.rows[self.fold.train]


def check_folds(
    examples: Examples, *, features: FeatureSet, transform: TransformFit, split: Split
) -> Findings:
    """Look for overlapping labels, and for dependence on rows that must not be known.

    When all rows outside train change, the training rows and what is fitted on them must stay the
    same. When later rows of a table change, the earlier rows must be transformed as before.

    Args:
        examples: all rows with features.
        features: names of the inputs.
        transform: such as `FeatureTransform.fit` with its steps.
        split: cuts the spans; if it asks for a refit, the refit is checked too.
    """
    check = FoldCheck(examples, features, transform)
    stages = list(_stages(examples, split))
    leaks = [leak for stage in stages for leak in check.leaks(stage)]
    rows = sum(getattr(stage.fold, span).size for stage in stages for span in SPANS)
    sampled = sum(min(_SAMPLE, stage.train.size) for stage in stages) * (len(features.names) + 1)
    return Findings(
        leaks,
        [
            CheckedColumn(SPLIT, OVERLAP, len(stages), rows),
            CheckedColumn(TRANSFORMS, OTHERS, len(stages), sampled),
            CheckedColumn(TRANSFORMS, LATER, len(stages), check.compared),
        ],
    )


def _stages(examples: Examples, split: Split) -> Iterator[FoldStage]:
    """Iterate over the folds, and again with val added to train if there is a refit."""
    splits = {"": split} | ({", refit": split.without_val()} if split.refit else {})
    for suffix, scheme in splits.items():
        cut = cut_folds(examples, scheme)
        for number in range(len(cut.folds)):
            yield FoldStage(f"fold {number}{suffix}", scheme, cut, number)


class FoldCheck:
    """Compares what is fitted and transformed before and after other rows change.

    Args:
        examples: all rows with features.
        features: names of the inputs.
        transform: such as `FeatureTransform.fit` with its steps.
    """

    def __init__(self, examples: Examples, features: FeatureSet, transform: TransformFit) -> None:
        """Draw the changed values."""
        self._examples, self._features, self._transform = examples, features, transform
        self._noisy = _add_noise(examples)
        self._names = [*(f"{name}, transformed" for name in features.names), RANK]
        self.compared = 0  # values compared after later rows changed

    def leaks(self, stage: FoldStage) -> Iterator[Leak]:
        """Yield the leaks of a fold, at most one of each kind."""
        yield from _overlaps(self._examples, stage)
        if self._rows_depend_on_values(stage):
            yield Leak(
                f"{SPLIT}, {stage.name}",
                "its training rows change when the values of rows outside train change",
                "Cut by time, label_end, date and contract only",
            )
            return
        yield from self._fit_leaks(stage)
        yield from self._transform_leaks(stage)

    def _fit_leaks(self, stage: FoldStage) -> Iterator[Leak]:
        """Change the rows outside train; what is fitted must stay the same."""
        rows = stage.train[:: max(1, stage.train.size // _SAMPLE)][:_SAMPLE]
        outside, before = self._outside(stage), self._columns(self._fit(stage), rows)

        def changed_column(start: int) -> str | None:
            after = self._columns(self._fit(stage, outside[start:]), rows)
            return _first_difference(before, after, slice(None))

        last = last_noticed(lambda start: changed_column(start) is not None, outside.size)
        if last is None:
            return
        end, time = self._examples.label_end[stage.train].max(), self._examples.time
        reach = _reach_in_time(time, end, time[outside[last]])
        yield Leak(
            f"{changed_column(0)}, {stage.name}",
            "what is fitted changes with rows outside train; beyond the last training label, which "
            f"ends {format_minute(end)} UTC, it sees {reach}",
            "Fit on the training rows only",
            reach,
        )

    def _transform_leaks(self, stage: FoldStage) -> Iterator[Leak]:
        """Change the later half of some test rows; the transform of the others must not change."""
        rows, fitted = stage.cut.rows[stage.fold.test][:_SAMPLE], self._fit(stage)
        half, before = rows.size // 2, self._columns(fitted, rows)
        self.compared += half * len(before)

        def changed_column(start: int) -> str | None:
            after = self._columns(fitted, rows, rows[half + start :])
            return _first_difference(before, after, slice(0, half))

        last = last_noticed(lambda start: changed_column(start) is not None, rows.size - half)
        if last is None:
            return
        time = self._examples.time[rows]
        reach = _reach_in_time(time, time[half - 1], time[half + last])
        yield Leak(
            f"{changed_column(0)}, {stage.name}",
            f"values of test change when later rows of test change; it sees {reach}",
            "Let transform() use only the row itself and what fit() has learned",
            reach,
        )

    def _outside(self, stage: FoldStage) -> Index:
        outside = np.ones(self._examples.outcome.size, dtype=bool)
        outside[stage.train] = False
        return np.flatnonzero(outside)

    def _rows_depend_on_values(self, stage: FoldStage) -> bool:
        cut = cut_folds(self._changed(self._outside(stage)), stage.split)
        if len(cut.folds) != len(stage.cut.folds):
            return True
        return not np.array_equal(stage._replace(cut=cut).train, stage.train)

    def _fit(self, stage: FoldStage, changed: Index | None = None) -> FittedFold:
        return fit_transforms(
            self._changed(changed),
            stage.cut.rows,
            stage.fold,
            features=self._features,
            transform=self._transform,
        )

    def _columns(self, fitted: FittedFold, rows: Index, changed: Index | None = None) -> Columns:
        """Return the transformed inputs and ranks of some rows, by column."""
        examples = self._changed(changed)
        x = fitted.inputs(examples).rows(rows)
        columns = [*x.astype(np.float64).T, fitted.target.transform(examples.outcome[rows])]
        return dict(zip(self._names, columns, strict=True))

    def _changed(self, rows: Index | None) -> Examples:
        """Return the examples with noise added to some rows."""
        if rows is None:
            return self._examples
        features, outcome = self._examples.features.copy(), self._examples.outcome.copy()
        features[rows], outcome[rows] = self._noisy.features[rows], self._noisy.outcome[rows]
        return replace(self._examples, features=features, outcome=outcome)


def _first_difference(before: Columns, after: Columns, rows: slice) -> str | None:
    for name, values in before.items():
        if values_differ(values[rows], after[name][rows], std=finite_std(values[rows])).any():
            return name
    return None


def _add_noise(examples: Examples) -> Examples:
    """Change every value; a missing outcome stays missing."""
    draw = np.random.default_rng(0)
    columns = [*examples.features.T, examples.outcome]
    noise = [draw.uniform(0.1, _NOISE, column.size) * finite_std(column) for column in columns]
    return replace(
        examples,
        features=examples.features + np.stack(noise[:-1], axis=1),
        outcome=examples.outcome + noise[-1],
    )


def _overlaps(examples: Examples, stage: FoldStage) -> Iterator[Leak]:
    """Yield the first label of each span that overlaps labels of a later span."""
    time, end = examples.time[stage.cut.rows], examples.label_end[stage.cut.rows]
    for name, later_name in combinations(SPANS, 2):
        rows, later = getattr(stage.fold, name), np.sort(getattr(stage.fold, later_name))
        if not rows.size or not later.size:
            continue
        before = np.searchsorted(time[later], end[rows], side="left")
        latest_end = np.maximum.accumulate(end[later])[np.maximum(before, 1) - 1]
        bad = np.flatnonzero((before > 0) & (latest_end > time[rows]))
        if bad.size:
            row = int(rows[bad[0]])
            reach = _reach_in_time(time, time[row], time[later[before[bad[0]] - 1]])
            yield Leak(
                f"{SPLIT}, {stage.name}",
                f"the label of the {name} row at {format_minute(time[row])} UTC, which ends "
                f"{format_minute(end[row])} UTC, overlaps labels of {later_name}; "
                f"{bad.size:,} {name} rows overlap them; it sees {reach}",
                f"Purge {name} rows whose label reaches into {later_name}",
                reach,
            )


def _reach_in_time(time: Stamps, start: np.datetime64, stop: np.datetime64) -> Reach:
    """Return the reach from one time to a later one, in stamps of the given rows."""
    bars = np.unique(time[(time > start) & (time <= stop)]).size
    minutes = max(0.0, float((stop - start) / np.timedelta64(1, "m")))
    return Reach(bars, minutes, bars > 0 and bool(stop == time.max()))
