"""All leak checks on the bars, features, labels and folds of one config."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from robust_fin.data.examples import Examples, columns_of, make_examples
from robust_fin.data.folds import cut_folds
from robust_fin.data.splits import Split
from robust_fin.data.targets import ForwardReturn
from robust_fin.data.transforms import FeatureTransform
from robust_fin.errors import ConfigError, SchemaError
from robust_fin.features.registry import FEATURES, FeatureSet, compute_features
from robust_fin.leaks.feature_check import check_features
from robust_fin.leaks.fold_check import check_folds
from robust_fin.leaks.label_check import SAME_DAY, VIX, check_labels, check_vix
from robust_fin.leaks.perturbations import CheckedColumn, Findings, cut_points
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
