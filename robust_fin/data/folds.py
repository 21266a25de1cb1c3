"""From a source to one fitted fold: what every batch is cut from, prepared once and kept."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from robust_fin.data.cache import Cache, Prepared, Sink
from robust_fin.data.cache_key import NotCacheableError, describe, surroundings
from robust_fin.data.examples import Examples, make_examples, write_examples
from robust_fin.data.inputs import Inputs
from robust_fin.data.splits import Fold, FoldGroup, Split
from robust_fin.data.targets import ForwardReturn, RankTarget
from robust_fin.data.transforms import FeatureTransform
from robust_fin.errors import SplitError
from robust_fin.features.registry import FeatureSet
from robust_fin.market.schema import BarSummary
from robust_fin.market.sources import Bars, BarSource
from robust_fin.market.streams import BarStream

log = logging.getLogger(__name__)

SPANS = ("train", "val", "test")
_PIECE = 1 << 16  # rows transformed at once on their way to disk


@dataclass(frozen=True, slots=True)
class Market:
    """Bars made into labelled examples, before any span is cut: shared by every fold of a run.

    Attributes:
        bars: what was read.
        examples: all rows with features.
        identity: all that the examples depend on; None where that cannot be told.
    """

    bars: BarSummary
    examples: Examples
    identity: Mapping[str, Any] | None = None

    @classmethod
    def from_bars(cls, bars: Bars, *, features: FeatureSet, target: ForwardReturn) -> "Market":
        """Compute features and labels, once."""
        return cls(bars.summary(), make_examples(bars, names=features.names, target=target))

    @classmethod
    def read(
        cls, source: BarSource, *, features: FeatureSet, target: ForwardReturn, cache: Cache
    ) -> "Market":
        """The same from a source, whole or in blocks, or from what an earlier run has prepared.

        Args:
            source: of the bars.
            features: the inputs of the net.
            target: what is forecast.
            cache: keeps the arrays.

        Raises:
            SourceError: the file cannot be read as bars, or no row has all features.
            SchemaError: a row breaks the contract of a bar table.
        """
        identity = identified(cache, source=source, features=features, target=target)

        def build(sink: Sink, scratch: Path) -> dict[str, Any]:
            return read_examples(source, features, target, sink=sink, scratch=scratch)

        found = cache.prepared(identity, build)
        examples = Examples.from_arrays(found.arrays, found.described["examples"])
        return cls(BarSummary.from_dict(found.described["bars"]), examples, identity)


def identified(cache: Cache, **parts: object) -> dict[str, Any] | None:
    """The identity of what is made of those parts; None, said in the log, where there is none."""
    if cache.folder is None:
        return None
    try:
        return {"with": surroundings(), **{name: describe(one) for name, one in parts.items()}}
    except NotCacheableError as error:
        log.info("prepared arrays are not kept, for a stale one could not be told: %s", error)
        return None


def read_examples(
    source: BarSource, features: FeatureSet, target: ForwardReturn, *, sink: Sink, scratch: Path
) -> dict[str, Any]:
    """Write the examples of a source into a sink; returns the facts of the bars and the counts."""
    if source.block_rows is not None:
        stream = BarStream(source, scratch=scratch)
        described = write_examples(stream, names=features.names, target=target, sink=sink)
        return {"bars": stream.summary().as_dict(), "examples": described}
    bars = source.load()
    examples = make_examples(bars, names=features.names, target=target)
    for name, values in examples.arrays().items():
        sink.append(name, values)
    return {"bars": bars.summary().as_dict(), "examples": examples.described()}


@dataclass(frozen=True, slots=True)
class FittedFold:
    """A fold with the transforms learnt on its training rows.

    Attributes:
        fold: row numbers into the labelled examples.
        rows: numbers of the labelled examples among all examples.
        transform: of the features.
        target: of the forward return.
        prepared: float32 arrays that are at hand already, `x_SPAN` and `rank_SPAN`; where a fold
            is kept on disk they are mapped into memory.
    """

    fold: Fold
    rows: np.ndarray
    transform: FeatureTransform
    target: RankTarget
    prepared: Mapping[str, np.ndarray] = field(default_factory=dict)

    def span(self, name: str) -> np.ndarray:
        """Row numbers of a span among all examples."""
        return self.rows[getattr(self.fold, name)]

    def inputs(self, examples: Examples) -> Inputs:
        """Return all rows of `examples` as the net reads them."""
        return Inputs.from_examples(examples, transform=self.transform)

    def x(self, examples: Examples, span: str) -> Float[np.ndarray, "rows features"]:
        """Transformed features of a span, float32."""
        if f"x_{span}" in self.prepared:
            return self.prepared[f"x_{span}"]
        return self.inputs(examples).rows(self.span(span))

    def rank(self, examples: Examples, span: str) -> Float[np.ndarray, " rows"]:
        """Rank target of a span, float32."""
        if f"rank_{span}" in self.prepared:
            return self.prepared[f"rank_{span}"]
        return self.target.transform(examples.outcome[self.span(span)]).astype(np.float32)


def fit_fold(
    examples: Examples,
    *,
    features: FeatureSet,
    transform: Callable[..., FeatureTransform],
    split: Split,
    number: int = 0,
) -> FittedFold:
    """Cut the spans among the labelled examples and learn the transforms on train alone.

    Args:
        examples: all rows with features.
        features: names of the inputs.
        transform: such as `FeatureTransform.fit` with its steps.
        split: how to cut.
        number: of the fold.

    Raises:
        SplitError: a span would be empty, or there is no such fold.
        TransformError: a feature has no scale on the training rows.
    """
    cut = cut_folds(examples, split)
    if not 0 <= number < len(cut.folds):
        raise SplitError(f"there is no fold {number}: the split has {len(cut.folds)}, from 0 on")
    return fit_transforms(
        examples, cut.rows, cut.folds[number], features=features, transform=transform
    )


class FoldSet(NamedTuple):
    """Every fold of a split.

    Attributes:
        rows: numbers of the labelled examples among all examples.
        folds: row numbers into the labelled examples.
    """

    rows: np.ndarray
    folds: tuple[Fold, ...]


def cut_folds(examples: Examples, split: Split) -> FoldSet:
    """Cut the labelled examples.

    Raises:
        SplitError: no row has a label, or a span would be empty.
    """
    rows = np.flatnonzero(~np.isnan(examples.outcome))
    if rows.size == 0:
        raise SplitError(f"none of {examples.outcome.size} rows has a label; use more bars")
    folds = split.folds(
        examples.time[rows],
        examples.label_end[rows],
        trading_date=examples.trading_date[rows],
        contract=examples.contract[rows],
    )
    return FoldSet(rows, folds)


def fit_transforms(
    examples: Examples,
    rows: np.ndarray,
    fold: Fold,
    *,
    features: FeatureSet,
    transform: Callable[..., FeatureTransform],
) -> FittedFold:
    """Learn the transforms on the training rows of a fold that is cut already.

    Args:
        examples: all rows with features.
        rows: numbers of the labelled examples among all examples.
        fold: row numbers into those.
        features: names of the inputs.
        transform: such as `FeatureTransform.fit` with its steps.

    Raises:
        TransformError: a feature has no scale on the training rows.
    """
    train = rows[fold.train]
    return FittedFold(
        fold,
        rows,
        transform(examples.features[train], names=features.names),
        RankTarget.fit(examples.outcome[train]),
    )


def prepare_fold(
    market: Market,
    *,
    features: FeatureSet,
    transform: Callable[..., FeatureTransform],
    split: Split,
    cache: Cache | None,
    number: int = 0,
) -> FittedFold:
    """`fit_fold`, kept with the float32 arrays of every span where the cache keeps anything."""
    settings: dict[str, Any] = {"features": features, "transform": transform, "split": split}
    settings["number"] = number
    identity = None
    if cache is not None and market.identity is not None:
        identity = identified(cache, market=market.identity, **settings)
    if cache is None or identity is None:
        return fit_fold(market.examples, **settings)

    def build(sink: Sink, scratch: Path) -> dict[str, Any]:  # noqa: ARG001
        return _write_fold(fit_fold(market.examples, **settings), market.examples, sink)

    return _read_fold(cache.prepared(identity, build))


def _write_fold(fitted: FittedFold, examples: Examples, sink: Sink) -> dict[str, Any]:
    sink.append("rows", fitted.rows)
    for name, values in fitted.transform.arrays().items():
        sink.append(f"transform.{name.replace('/', '.')}", values)
    for name, values in fitted.target.arrays().items():
        sink.append(f"target.{name}", values)
    inputs = fitted.inputs(examples)
    for span in SPANS:
        sink.append(f"fold.{span}", getattr(fitted.fold, span))
        rows = fitted.span(span)
        for first in range(0, max(1, rows.size), _PIECE):
            some = rows[first : first + _PIECE]
            sink.append(f"x_{span}", inputs.rows(some))
        sink.append(f"rank_{span}", fitted.rank(examples, span))
    return {"purged": fitted.fold.purged, "groups": fitted.fold.groups}


def _read_fold(found: Prepared) -> FittedFold:
    arrays = found.arrays
    prepared = {f"{kind}_{span}" for kind in ("x", "rank") for span in SPANS}
    spans: dict[str, Any] = {span: arrays[f"fold.{span}"] for span in SPANS}
    transform = _below(arrays, "transform.")
    return FittedFold(
        Fold(
            **spans,
            purged=found.described["purged"],
            groups=tuple(FoldGroup(*group) for group in found.described["groups"]),
        ),
        arrays["rows"],
        FeatureTransform.from_arrays({k.replace(".", "/"): v for k, v in transform.items()}),
        RankTarget.from_arrays(_below(arrays, "target.")),
        {name: arrays[name] for name in prepared},
    )


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
