"""Labelled examples of a market, and one fold of them with its fitted transforms."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from robust_fin.data.cache import (
    ArraySink,
    Cache,
    CacheEntry,
    NotCacheableError,
    environment_fingerprint,
    fingerprint,
)
from robust_fin.data.examples import Examples, make_examples, write_examples
from robust_fin.data.inputs import Inputs
from robust_fin.data.splits import Fold, FoldGroup, Split
from robust_fin.data.targets import ForwardReturn, RankTarget
from robust_fin.data.transforms import FeatureTransform, arrays_below
from robust_fin.errors import SplitError
from robust_fin.features.registry import FeatureSet
from robust_fin.market.schema import BarSummary
from robust_fin.market.sources import Bars, BarSource
from robust_fin.market.streams import BarStream

log = logging.getLogger(__name__)

SPANS = ("train", "val", "test")
_BLOCK_ROWS = 1 << 16  # rows transformed at once when a fold is written to disk

Index = Int[np.ndarray, " _rows"]


@dataclass(frozen=True, slots=True)
class Market:
    """Bars with features and labels, shared by all folds of a run.

    Attributes:
        bars: facts about the bars that were read.
        examples: all rows with features.
        fingerprint: everything the examples depend on; None if it cannot be determined.
    """

    bars: BarSummary
    examples: Examples
    fingerprint: Mapping[str, Any] | None = None

    @classmethod
    def from_bars(cls, bars: Bars, *, features: FeatureSet, target: ForwardReturn) -> "Market":
        """Compute features and labels of bars in memory."""
        return cls(bars.summary(), make_examples(bars, names=features.names, target=target))

    @classmethod
    def read(
        cls, source: BarSource, *, features: FeatureSet, target: ForwardReturn, cache: Cache
    ) -> "Market":
        """Read bars and compute features and labels, or take them from the cache.

        Args:
            source: where the bars come from; read in blocks if it has `block_rows`.
            features: inputs of the net.
            target: definition of the labels.
            cache: keeps the arrays.

        Raises:
            SourceError: the file cannot be read as bars, or no row has all features.
            SchemaError: a row breaks a rule of bar tables.
        """
        content = _fingerprints(cache, source=source, features=features, target=target)

        def build(sink: ArraySink, scratch: Path) -> dict[str, Any]:
            return read_examples(source, features, target, sink=sink, scratch=scratch)

        entry = cache.get_or_build(content, build)
        examples = Examples.from_arrays(entry.arrays, entry.metadata["examples"])
        bars = BarSummary.from_dict(entry.metadata["bars"])
        bars.log_warnings()
        return cls(bars, examples, content)


def read_examples(
    source: BarSource,
    features: FeatureSet,
    target: ForwardReturn,
    *,
    sink: ArraySink,
    scratch: Path,
) -> dict[str, Any]:
    """Write the examples of a source to a sink and return their metadata."""
    if source.block_rows is not None:
        stream = BarStream(source, scratch=scratch)
        counts = write_examples(stream, names=features.names, target=target, sink=sink)
        return {"bars": stream.summary().as_dict(), "examples": counts}
    bars = source.load()
    examples = make_examples(bars, names=features.names, target=target)
    for name, values in examples.arrays().items():
        sink.append(name, values)
    return {"bars": bars.summary().as_dict(), "examples": examples.metadata()}


def _fingerprints(cache: Cache, **parts: object) -> dict[str, Any] | None:
    """Return the fingerprints of some parts and of the environment; None if nothing is kept."""
    if cache.folder is None:
        return None
    try:
        named = {name: fingerprint(part) for name, part in parts.items()}
        return {"with": environment_fingerprint(), **named}
    except NotCacheableError as error:
        log.info("not caching prepared arrays, as they have no fingerprint: %s", error)
        return None


class FoldSet(NamedTuple):
    """All folds of a split.

    Attributes:
        rows: numbers of the labelled examples among all examples.
        folds: their spans are indices into `rows`.
    """

    rows: Index
    folds: tuple[Fold, ...]


@dataclass(frozen=True, slots=True)
class FittedFold:
    """Fold with the transforms fitted on its training rows.

    Attributes:
        fold: spans, as indices into `rows`.
        rows: numbers of the labelled examples among all examples.
        transform: of the features.
        target: of the forward return.
        prepared: float32 arrays `x_SPAN` and `rank_SPAN` from the cache; empty without one.
    """

    fold: Fold
    rows: Index
    transform: FeatureTransform
    target: RankTarget
    prepared: Mapping[str, np.ndarray] = field(default_factory=dict)

    def span(self, name: str) -> Index:
        """Return the row numbers of a span among all examples."""
        return self.rows[getattr(self.fold, name)]

    def inputs(self, examples: Examples) -> Inputs:
        """Return all rows of `examples` as the net reads them."""
        return Inputs.from_examples(examples, transform=self.transform)

    def x(self, examples: Examples, span: str) -> Float[np.ndarray, "rows features"]:
        """Return the inputs of a span, float32."""
        if f"x_{span}" in self.prepared:
            return self.prepared[f"x_{span}"]
        return self.inputs(examples).rows(self.span(span))

    def rank(self, examples: Examples, span: str) -> Float[np.ndarray, " rows"]:
        """Return the rank target of a span, float32."""
        if f"rank_{span}" in self.prepared:
            return self.prepared[f"rank_{span}"]
        return self.target.transform(examples.outcome[self.span(span)]).astype(np.float32)


def cut_folds(examples: Examples, split: Split) -> FoldSet:
    """Split the labelled examples into folds.

    Raises:
        SplitError: no row has a label, or a span would be empty.
    """
    rows = np.flatnonzero(~np.isnan(examples.outcome))
    if rows.size == 0:
        raise SplitError(f"none of {examples.outcome.size} rows has a label; use more bars")
    return FoldSet(rows, split.folds(examples.labelled_rows(rows)))


def fit_transforms(
    examples: Examples,
    rows: Index,
    fold: Fold,
    *,
    features: FeatureSet,
    transform: Callable[..., FeatureTransform],
) -> FittedFold:
    """Fit the transforms on the training rows of a fold.

    Args:
        examples: all rows with features.
        rows: numbers of the labelled examples among all examples.
        fold: spans, as indices into `rows`.
        features: names of the inputs.
        transform: for example `FeatureTransform.fit` with its steps.

    Raises:
        TransformError: a feature has no scale on the training rows.
    """
    train = rows[fold.train]
    fitted = transform(Inputs.from_examples(examples).rows(train), names=features.names)
    return FittedFold(fold, rows, fitted, RankTarget.fit(examples.outcome[train]))


def fit_fold(
    examples: Examples,
    *,
    features: FeatureSet,
    transform: Callable[..., FeatureTransform],
    split: Split,
    number: int = 0,
) -> FittedFold:
    """Cut one fold of a split and fit the transforms on its training rows.

    Args:
        examples: all rows with features.
        features: names of the inputs.
        transform: for example `FeatureTransform.fit` with its steps.
        split: how the folds are cut.
        number: of the fold.

    Raises:
        SplitError: a span would be empty, or there is no such fold.
        TransformError: a feature has no scale on the training rows.
    """
    rows, folds = cut_folds(examples, split)
    if not 0 <= number < len(folds):
        raise SplitError(f"fold {number} does not exist: the split has folds 0..{len(folds) - 1}")
    return fit_transforms(examples, rows, folds[number], features=features, transform=transform)


def prepare_fold(
    market: Market,
    *,
    features: FeatureSet,
    transform: Callable[..., FeatureTransform],
    split: Split,
    cache: Cache | None,
    number: int = 0,
) -> FittedFold:
    """Return `fit_fold`; with a cache, its arrays and those of every span are kept on disk."""
    settings: dict[str, Any] = {"features": features, "transform": transform, "split": split}
    settings["number"] = number
    content = None
    if cache is not None and market.fingerprint is not None:
        content = _fingerprints(cache, market=market.fingerprint, **settings)
    if cache is None or content is None:
        return fit_fold(market.examples, **settings)

    def build(sink: ArraySink, scratch: Path) -> dict[str, Any]:  # noqa: ARG001
        return _write_fold(fit_fold(market.examples, **settings), market.examples, sink)

    return _read_fold(cache.get_or_build(content, build))


def _write_fold(fitted: FittedFold, examples: Examples, sink: ArraySink) -> dict[str, Any]:
    sink.append("rows", fitted.rows)
    for name, values in fitted.transform.arrays().items():
        sink.append(f"transform.{name.replace('/', '.')}", values)
    for name, values in fitted.target.arrays().items():
        sink.append(f"target.{name}", values)
    inputs = fitted.inputs(examples)
    for span in SPANS:
        sink.append(f"fold.{span}", getattr(fitted.fold, span))
        rows = fitted.span(span)
        for start in range(0, max(1, rows.size), _BLOCK_ROWS):
            sink.append(f"x_{span}", inputs.rows(rows[start : start + _BLOCK_ROWS]))
        sink.append(f"rank_{span}", fitted.rank(examples, span))
    return {"purged": fitted.fold.purged, "groups": fitted.fold.groups}


def _read_fold(entry: CacheEntry) -> FittedFold:
    arrays = entry.arrays
    fold = Fold(
        **{span: arrays[f"fold.{span}"] for span in SPANS},
        purged=entry.metadata["purged"],
        groups=tuple(FoldGroup(*group) for group in entry.metadata["groups"]),
    )
    transform = arrays_below(arrays, "transform.")
    return FittedFold(
        fold,
        arrays["rows"],
        FeatureTransform.from_arrays({k.replace(".", "/"): v for k, v in transform.items()}),
        RankTarget.from_arrays(arrays_below(arrays, "target.")),
        {name: arrays[name] for span in SPANS for name in (f"x_{span}", f"rank_{span}")},
    )
