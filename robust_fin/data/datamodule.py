"""LightningDataModules: one fold of the bars, and the data sets of a population."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from robust_fin.data.batches import (
    CallPlan,
    EpochOrder,
    ScoreBatches,
    ScoredBatch,
    TrainBatches,
    TrainCalls,
    TrainWindows,
)
from robust_fin.data.cache import Cache
from robust_fin.data.examples import RowLedger
from robust_fin.data.folds import SPANS, Market, prepare_fold
from robust_fin.data.splits import Split
from robust_fin.data.targets import KEPT, Scores, TargetScale, apply_label_control
from robust_fin.data.transforms import FeatureTransform
from robust_fin.errors import ConfigError, SplitError
from robust_fin.features.registry import FeatureSet


class BarDataModule(L.LightningDataModule):
    """Batches of one fold.

    Args:
        market: labelled examples.
        features: inputs of the net, in order.
        transform: fits the transform from (train, names).
        split: how the spans are cut.
        scale: training target of the net, and conversion of its forecasts to ranks.
        batch_size: rows per training batch and process.
        score_batch_size: rows per validation batch.
        seed: of the order of the training rows.
        cache: keeps the fold's arrays; None recomputes them.
        number: of the fold in the split.
        labels: of train and val: kept, shuffled or swapped (`apply_label_control`); those of test
            are always kept.
    """

    def __init__(
        self,
        market: Market,
        *,
        features: FeatureSet,
        transform: Callable[..., FeatureTransform],
        split: Split,
        scale: TargetScale,
        batch_size: int,
        score_batch_size: int,
        seed: int,
        cache: Cache | None = None,
        number: int = 0,
        labels: str = KEPT,
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("score_batch_size", score_batch_size)):
            if size < 1:
                raise ConfigError(f"{name}={size} must be >= 1")
        self.market, self.features, self.split, self.scale = market, features, split, scale
        self.batch_size, self.score_batch_size, self.seed = batch_size, score_batch_size, seed
        self._transform, self._cache, self.number, self.labels = transform, cache, number, labels
        self.calls: CallPlan | None = None  # set by the compiled engine
        self.fitted = prepare_fold(
            market, features=features, transform=transform, split=split, cache=cache, number=number
        )
        rows = self.fitted.fold.train.size
        if rows < batch_size:
            raise SplitError(f"train has {rows} rows, fewer than batch_size={batch_size}; lower it")

    def for_refit(self) -> "BarDataModule":
        """Return the same fold with val given to train and the transforms refitted."""
        return BarDataModule(
            self.market,
            features=self.features,
            transform=self._transform,
            split=self.split.without_val(),
            scale=self.scale,
            batch_size=self.batch_size,
            score_batch_size=self.score_batch_size,
            seed=self.seed,
            cache=self._cache,
            number=self.number,
            labels=self.labels,
        )

    def x(self, span: str) -> Float[Tensor, "rows features"]:
        """Return the inputs of a span, float32, on the CPU."""
        return torch.from_numpy(self.fitted.x(self.market.examples, span))

    def target(self, span: str) -> Float[np.ndarray, " rows"]:
        """Return the rank target of a span, float64."""
        return self.fitted.target.transform(self.outcome(span))

    def outcome(self, span: str) -> Float[np.ndarray, " rows"]:
        """Return the forward returns of a span, fractions."""
        return self.market.examples.outcome[self.fitted.span(span)]

    def to_rank(self, forecast: Scores) -> Scores:
        """Convert forecasts of the net to rank units."""
        return self.scale.to_rank(forecast, target=self.fitted.target)

    def has_val(self) -> bool:
        """Return whether the fold has a val span."""
        return self.fitted.fold.val.size > 0

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Move train and val to the device."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        x, target = self.train_tensors()
        self._train = (x.to(device), target.to(device))
        self._val = ScoredBatch(*(column.to(device) for column in self.val_tensors()))

    def train_tensors(self) -> tuple[Float[Tensor, "rows features"], Float[Tensor, " rows"]]:
        """Return inputs and training target of train, float32, on the CPU."""
        rank, outcome = self._labels("train")
        target = self.scale.training_target(outcome=outcome, rank=rank)
        return self.x("train"), torch.from_numpy(target.astype(np.float32, copy=False))

    def val_tensors(self) -> ScoredBatch:
        """Return the val span, float32, on the CPU."""
        rank, outcome = map(torch.from_numpy, self._labels("val"))
        return ScoredBatch(self.x("val"), rank, outcome.to(torch.float32))

    def train_dataloader(self) -> TrainBatches | TrainCalls:
        """Return shuffled batches of this process; calls of many steps if `calls` is set."""
        order = self.order(*self._rank_and_world_size())
        if self.calls is None:
            return TrainBatches(*self._train, order=order)
        return TrainCalls(*self._train, order=order, plan=self.calls)

    def order(self, rank: int = 0, world_size: int = 1) -> EpochOrder:
        """Return the order of the training rows."""
        rows, size = self.fitted.fold.train.size, self.batch_size
        return EpochOrder(rows, batch_size=size, seed=self.seed, rank=rank, world_size=world_size)

    def val_dataloader(self) -> ScoreBatches:
        """Return the val span in time order; no batches without val."""
        rank, world_size = self._rank_and_world_size()
        size = self.score_batch_size
        return ScoreBatches(self._val, batch_size=size, rank=rank, world_size=world_size)

    def steps_per_epoch(self, world_size: int) -> int:
        """Return the number of batches in one pass over train."""
        return self.order(0, world_size).steps

    def row_ledger(self) -> RowLedger:
        """Account for every row of the input."""
        examples, fold = self.market.examples, self.fitted.fold
        spans = {name: int(getattr(fold, name).size) for name in SPANS}
        dropped = examples.dropped | examples.unlabelled | fold.purged
        return RowLedger(examples.rows_in, dropped, spans, examples.reports)

    def _labels(self, span: str) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Return ranks, float32, and outcomes for training and choices."""
        rank = self.fitted.rank(self.market.examples, span)
        return apply_label_control(rank, self.outcome(span), labels=self.labels, seed=self.seed)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


@dataclass(frozen=True, slots=True)
class MemberData:
    """Data set of some members of a population, usually one fold.

    Attributes:
        x: inputs of the training rows, float32.
        target: training target, float32.
        val: rows for choices; may be empty.
        train_median: of the target, in rank units.
        train_mean: likewise.
        to_rank: converts forecasts of a net to rank units.
        rows: numbers of the rows of `x` to train on, int64; None for all.
    """

    x: Float[Tensor, "rows features"]
    target: Float[Tensor, " rows"]
    val: ScoredBatch
    train_median: float
    train_mean: float
    to_rank: Callable[[Scores], Scores]
    rows: Int[Tensor, " used"] | None = None

    @classmethod
    def from_datamodule(cls, data: BarDataModule) -> "MemberData":
        """Take the tensors of a fold."""
        target = data.fitted.target
        spans = (*data.train_tensors(), data.val_tensors())
        return cls(*spans, target.median, target.mean, data.to_rank)

    @property
    def size(self) -> int:
        """Number of rows to train on."""
        return len(self.target) if self.rows is None else len(self.rows)


class PopulationDataModule(L.LightningDataModule):
    """Step windows to train in, and the numbers of the data sets to validate on.

    Args:
        sets: data sets of the members.
        plan: how an epoch is cut into windows.
    """

    def __init__(self, sets: Sequence[MemberData], plan: CallPlan) -> None:
        super().__init__()
        self.sets, self.plan = tuple(sets), plan

    def train_dataloader(self) -> TrainWindows:
        """Return the windows of an epoch."""
        return TrainWindows(self.plan)

    def val_dataloader(self) -> list[int]:
        """Return the number of every data set with a val span."""
        return [number for number, data in enumerate(self.sets) if len(data.val.target)]
