"""One fold as tensors: the LightningDataModule, and the batches of a population's members."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
        wanted = self.scale.training_target(outcome=outcome, rank=rank)
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

    def order(self, rank: int = 0, world_size: int = 1) -> EpochOrder:
        """Which training rows each step takes."""
        rows = self.fitted.fold.train.size
        return EpochOrder(
            rows, batch_size=self.batch_size, seed=self.seed, rank=rank, world_size=world_size
        )

    def val_dataloader(self) -> ScoreBatches:
        """The val span in the order of time; no batches where there is none."""
        rank, world_size = self._place()
        return ScoreBatches(
            self._val, batch_size=self.score_batch_size, rank=rank, world_size=world_size
        )

    def steps_per_epoch(self, world_size: int) -> int:
        """Optimizer steps of one pass over train, without accumulation."""
        return self.fitted.fold.train.size // (self.batch_size * world_size)

    def ledger(self) -> RowLedger:
        """Where every input row went."""
        examples, fold = self.market.examples, self.fitted.fold
        spans = {name: int(getattr(fold, name).size) for name in SPANS}
        dropped = examples.dropped | examples.unlabelled | fold.purged
        return RowLedger(examples.rows_in, dropped, spans, examples.reports)

    def _labelled(self, span: str) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Ranks, float32, and returns that training and choices see."""
        rank = self.fitted.rank(self.market.examples, span)
        return apply_label_control(rank, self.outcome(span), labels=self.labels, seed=self.seed)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


@dataclass(frozen=True, slots=True)
class MemberData:
    """One data set: a fold of the bars, or anything of the same features.

    Attributes:
        x: training rows, float32, transformed.
        target: what is forecast of them, float32.
        val: what choices are made on; of length 0 where there is none.
        train_median: of the target, in rank units.
        train_mean: likewise.
        to_rank: forecast of a net -> rank units.
        rows: numbers of the rows of `x` that are trained on, int64; None for all of them.
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
        """A fold as a data set."""
        target = data.fitted.target
        spans = (*data.train_tensors(), data.val_tensors())
        return cls(*spans, target.median, target.mean, data.to_rank)

    @property
    def size(self) -> int:
        """Rows trained on."""
        return len(self.target) if self.rows is None else len(self.rows)


class StepWindow(NamedTuple):
    """Steps of one epoch that every member takes before the next call.

    A member whose data set has fewer steps an epoch takes its share, so that epochs end together.

    Attributes:
        epoch: counted from 0.
        start: first step, on the scale of the largest data set.
        stop: step after the last.
    """

    epoch: int
    start: int
    stop: int


class EpochPosition:
    """The place in an epoch of a loader that has no batches of its own."""

    def __init__(self) -> None:
        """Before the first step of epoch 0."""
        self.epoch, self.next_step, self._resume_at = 0, 0, 0

    def set_epoch(self, epoch: int) -> None:
        """The next pass."""
        self.epoch = epoch

    def begin(self) -> int:
        """The step to start at."""
        first, self._resume_at = self._resume_at, 0
        self.next_step = first
        return first

    def resume_at(self, step: int) -> None:
        """Where a checkpoint left the epoch."""
        self._resume_at = step


class TrainWindows:
    """The windows of an epoch, one a call.

    Args:
        plan: where calls begin.
    """

    def __init__(self, plan: CallPlan) -> None:
        """Start before the first window."""
        self.plan, self.order = plan, EpochPosition()

    @property
    def sampler(self) -> EpochPosition:
        """Where Lightning looks for `set_epoch`."""
        return self.order

    def __len__(self) -> int:
        """Windows an epoch."""
        return len(self.plan.boundaries()) - 1

    def __iter__(self) -> Iterator[StepWindow]:
        """Windows of this epoch; the first one is shorter where a checkpoint lies inside it."""
        first = self.order.begin()
        for stop in self.plan.boundaries()[self.plan.completed_calls(first) + 1 :]:
            self.order.next_step = stop
            yield StepWindow(self.order.epoch, first, stop)
            first = stop

    def rewind(self, steps: int) -> None:
        """The last call stopped so many steps before its end."""
        self.order.next_step -= steps

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch, in steps."""
        return {"next_batch": self.order.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place; one at the end of an epoch is the start of the next."""
        self.order.resume_at(state["next_batch"] % max(1, self.plan.steps))


class PopulationDataModule(L.LightningDataModule):
    """Windows to train in, and the numbers of the data sets to validate on.

    Args:
        sets: of the members.
        plan: how an epoch is cut into windows.
    """

    def __init__(self, sets: Sequence[MemberData], plan: CallPlan) -> None:
        """Nothing is copied."""
        super().__init__()
        self.sets, self.plan = tuple(sets), plan

    def train_dataloader(self) -> TrainWindows:
        """The windows of an epoch."""
        return TrainWindows(self.plan)

    def val_dataloader(self) -> list[int]:
        """The number of every data set that has a val span."""
        return [number for number, one in enumerate(self.sets) if len(one.val.target)]


class MemberOrders:
    """Which rows each member's steps take, from the same permutations as a run of its own.

    A permutation is kept for the epoch while all of them fit `limit`; beyond that it is drawn anew
    for every window, so that memory does not grow with the number of members.

    Args:
        orders: of each member; those that are one object share their permutation.
        limit: bytes.
    """

    def __init__(self, orders: Sequence[EpochOrder], *, limit: int = 1 << 30) -> None:
        """Nothing drawn yet."""
        self._orders = orders
        distinct = {id(one): one.rows for one in orders}
        self.keeps = 4 * sum(distinct.values()) <= limit
        self._kept: dict[int, Int[Tensor, " rows"]] = {}
        self._epoch = -1

    def enter(self, epoch: int) -> None:
        """Choose the epoch, before any thread asks for its rows."""
        if epoch != self._epoch:
            self._kept, self._epoch = {}, epoch

    def rows(self, member: int, start: int, stop: int) -> Int[Tensor, "steps batch"]:
        """Row numbers of the steps [start, stop) of the member's epoch, int64."""
        order = self._orders[member]
        batch = order.batch_size
        return self._permutation(order)[start * batch : stop * batch].long().view(-1, batch)

    def _permutation(self, order: EpochOrder) -> Int[Tensor, " rows"]:
        found = self._kept.get(id(order))
        if found is None:
            found = order.drawn(self._epoch, dtype=torch.int32)
            if self.keeps:
                self._kept[id(order)] = found
        return found
