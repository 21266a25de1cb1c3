"""One fold of bars as tensors on the device."""

from collections.abc import Callable

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robust_fin.data.batches import (
    CallPlan,
    EpochOrder,
    ScoreBatches,
    ScoredBatch,
    TrainBatches,
    TrainCalls,
)
from robust_fin.data.cache import Cache
from robust_fin.data.folds import SPANS, Market, prepare_fold
from robust_fin.data.label_controls import KEPT, controlled
from robust_fin.data.ledger import RowLedger
from robust_fin.data.splits import Split
from robust_fin.data.target_scale import Scores, TargetScale
from robust_fin.data.transforms import FeatureTransform
from robust_fin.errors import ConfigError, SplitError
from robust_fin.features.registry import FeatureSet


class BarDataModule(L.LightningDataModule):
    """Batches of one fold.

    Args:
        market: labelled examples.
        features: the inputs of the net, in order.
        transform: makes the fitted transform from (train, names).
        split: how the spans are cut.
        scale: what the net is trained on, and how its forecasts become ranks.
        batch_size: rows a training batch and process.
        score_batch_size: rows a validation batch.
        seed: of the order of the training rows.
        cache: keeps the fold's arrays; None makes them anew.
        number: of the fold among those of the split.
        labels: that train and val are given: kept, shuffled or swapped (`label_controls`); test
            has its own in any case.
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
        """Fit the fold; the tensors are made when a trainer asks."""
        super().__init__()
        for name, size in (("batch_size", batch_size), ("score_batch_size", score_batch_size)):
            if size < 1:
                raise ConfigError(f"{name}={size} must be at least 1")
        self.market, self.features, self.split, self.scale = market, features, split, scale
        self.batch_size, self.score_batch_size, self.seed = batch_size, score_batch_size, seed
        self._transform, self._cache, self.number, self.labels = transform, cache, number, labels
        self.calls: CallPlan | None = None  # set where the compiled engine trains
        self.fitted = prepare_fold(
            market, features=features, transform=transform, split=split, cache=cache, number=number
        )
        rows = self.fitted.fold.train.size
        if rows < batch_size:
            raise SplitError(f"train has {rows} rows, fewer than batch_size={batch_size}; lower it")

    def for_refit(self) -> "BarDataModule":
        """The same data with val given to train and the transforms fitted anew."""
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
        """Transformed features of a span, float32, on the CPU."""
        return torch.from_numpy(self.fitted.x(self.market.examples, span))

    def target(self, span: str) -> Float[np.ndarray, " rows"]:
        """Rank target of a span, float64."""
        return self.fitted.target.transform(self.outcome(span))

    def outcome(self, span: str) -> Float[np.ndarray, " rows"]:
        """Forward return of a span, a fraction."""
        return self.market.examples.outcome[self.fitted.span(span)]

    def to_rank(self, forecast: Scores) -> Scores:
        """Forecasts of a net, in rank units, as every figure takes them."""
        return self.scale.to_rank(forecast, target=self.fitted.target)

    def has_val(self) -> bool:
        """Whether choices can be made."""
        return self.fitted.fold.val.size > 0

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Put the spans that training touches on the device."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        x, target = self.train_tensors()
        self._train = (x.to(device), target.to(device))
        self._val = ScoredBatch(*(part.to(device) for part in self.val_tensors()))

    def train_tensors(self) -> tuple[Float[Tensor, "rows features"], Float[Tensor, " rows"]]:
        """Features of train and what is to be forecast, float32, on the CPU."""
        rank, outcome = self._labelled("train")
        wanted = self.scale.trained(outcome=outcome, rank=rank)
        return self.x("train"), torch.from_numpy(wanted.astype(np.float32, copy=False))

    def val_tensors(self) -> ScoredBatch:
        """The val span, float32, on the CPU."""
        rank, outcome = (torch.from_numpy(one) for one in self._labelled("val"))
        return ScoredBatch(self.x("val"), rank, outcome.to(torch.float32))

    def train_dataloader(self) -> TrainBatches | TrainCalls:
        """Shuffled batches of this process, or calls of many steps where `calls` is set."""
        order = self.order(*self._place())
        if self.calls is None:
            return TrainBatches(*self._train, order=order)
        return TrainCalls(*self._train, order=order, plan=self.calls)

    def order(self, rank: int = 0, world: int = 1) -> EpochOrder:
        """Which training rows each step takes."""
        rows = self.fitted.fold.train.size
        return EpochOrder(rows, batch_size=self.batch_size, seed=self.seed, rank=rank, world=world)

    def val_dataloader(self) -> ScoreBatches:
        """The val span in the order of time; no batches where there is none."""
        rank, world = self._place()
        return ScoreBatches(self._val, batch_size=self.score_batch_size, rank=rank, world=world)

    def steps_an_epoch(self, world: int) -> int:
        """Optimizer steps of one pass over train, without accumulation."""
        return self.fitted.fold.train.size // (self.batch_size * world)

    def ledger(self) -> RowLedger:
        """Where every input row went."""
        examples, fold = self.market.examples, self.fitted.fold
        spans = {name: int(getattr(fold, name).size) for name in SPANS}
        dropped = examples.dropped | examples.unlabelled | fold.purged
        return RowLedger(examples.rows_in, dropped, spans, examples.reports)

    def _labelled(self, span: str) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Ranks, float32, and returns that training and choices see."""
        rank = self.fitted.rank(self.market.examples, span)
        return controlled(rank, self.outcome(span), labels=self.labels, seed=self.seed)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
