"""What the members of a population train on: data sets, and windows of optimizer steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor

from robust_fin.data.batches import CallPlan, EpochOrder, ScoredBatch
from robust_fin.data.datamodule import BarDataModule
from robust_fin.data.target_scale import Scores


@dataclass(frozen=True, slots=True)
class MemberSet:
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
    def of(cls, data: BarDataModule) -> "MemberSet":
        """A fold as a data set."""
        target = data.fitted.target
        spans = (*data.train_tensors(), data.val_tensors())
        return cls(*spans, target.median, target.mean, data.to_rank)

    @property
    def size(self) -> int:
        """Rows trained on."""
        return len(self.target) if self.rows is None else len(self.rows)


class Window(NamedTuple):
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


class EpochPlace:
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

    def go_on_at(self, step: int) -> None:
        """Where a checkpoint left the epoch."""
        self._resume_at = step


class TrainWindows:
    """The windows of an epoch, one a call.

    Args:
        plan: where calls begin.
    """

    def __init__(self, plan: CallPlan) -> None:
        """Start before the first window."""
        self.plan, self.order = plan, EpochPlace()

    @property
    def sampler(self) -> EpochPlace:
        """Where Lightning looks for `set_epoch`."""
        return self.order

    def __len__(self) -> int:
        """Windows an epoch."""
        return len(self.plan.borders()) - 1

    def __iter__(self) -> Iterator[Window]:
        """Windows of this epoch; the first one is shorter where a checkpoint lies inside it."""
        first = self.order.begin()
        for stop in self.plan.borders()[self.plan.calls_done(first) + 1 :]:
            self.order.next_step = stop
            yield Window(self.order.epoch, first, stop)
            first = stop

    def give_back(self, steps: int) -> None:
        """The last call stopped so many steps before its end."""
        self.order.next_step -= steps

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch, in steps."""
        return {"next_batch": self.order.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place; one at the end of an epoch is the start of the next."""
        self.order.go_on_at(state["next_batch"] % max(1, self.plan.steps))


class PopulationData(L.LightningDataModule):
    """Windows to train in, and the numbers of the data sets to validate on.

    Args:
        sets: of the members.
        plan: how an epoch is cut into windows.
    """

    def __init__(self, sets: Sequence[MemberSet], plan: CallPlan) -> None:
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
