"""Batches, calls and step windows cut from tensors, without collation or worker processes."""

from abc import ABC
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BATCHES_PER_GATHER = 256  # larger ones leave the CPU cache, smaller ones cost more calls


class Batch(NamedTuple):
    """Batch of a training step."""

    x: Float[Tensor, "batch features"]
    target: Float[Tensor, " batch"]


class ScoredBatch(NamedTuple):
    """Batch of a validation step."""

    x: Float[Tensor, "batch features"]
    target: Float[Tensor, " batch"]
    outcome: Float[Tensor, " batch"]


class Call(NamedTuple):
    """Several steps for one call of the compiled engine, by the numbers of their rows."""

    x: Float[Tensor, "rows features"]
    target: Float[Tensor, " rows"]
    rows: Int[Tensor, "steps batch"]


class StepWindow(NamedTuple):
    """Steps of one epoch that every member of a population takes before the next call.

    A member with fewer steps per epoch takes its share of them, so that epochs end together.

    Attributes:
        epoch: counted from 0.
        start: first step, on the scale of the largest data set.
        stop: step after the last.
    """

    epoch: int
    start: int
    stop: int


class EpochPosition:
    """Position in an epoch, in steps; part of a checkpoint, so that a run resumes mid-epoch.

    Args:
        steps: per epoch.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.epoch, self.next_step, self._resume_at = 0, 0, 0

    def start_epoch(self) -> int:
        """Return the first step to take: 0, or the position of the loaded checkpoint."""
        self.next_step, self._resume_at = self._resume_at, 0
        return self.next_step

    def set_epoch(self, epoch: int) -> None:
        """Select the next epoch; Lightning calls it."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"next_batch": self.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a position; the end of an epoch is the start of the next."""
        self._resume_at = state["next_batch"] % max(1, self.steps)


class EpochOrder(EpochPosition):
    """Rows of each step of an epoch, shuffled by (seed, epoch) only.

    Args:
        rows: number of training rows.
        batch_size: rows per batch and process; the incomplete batch of an epoch is left out.
        seed: of the order.
        rank: of this process.
        world_size: number of processes; each takes its part of every global batch.
    """

    def __init__(
        self, rows: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(rows // (batch_size * world_size))
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def permutation(
        self, epoch: int | None = None, *, dtype: torch.dtype = torch.int64
    ) -> Int[Tensor, " rows"]:
        """Return the shuffled row numbers of an epoch; None is the current one."""
        epoch = self.epoch if epoch is None else epoch
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.rows, generator=generator, dtype=dtype)

    def begin(self) -> tuple[int, Int[Tensor, "steps batch"]]:
        """Return the first step to take, and the row numbers of every step of this epoch."""
        used = self.permutation()[: self.steps * self.world_size * self.batch_size]
        steps = used.view(self.steps, self.world_size, self.batch_size)[:, self.rank]
        return self.start_epoch(), steps


class StepLoader(ABC):
    """Base of the training loaders, whose position counts steps.

    Attributes:
        order: position in the epoch.
    """

    order: EpochPosition

    @property
    def sampler(self) -> EpochPosition:
        """Object on which Lightning calls `set_epoch`."""
        return self.order

    def rewind(self, steps: int) -> None:
        """Go back by the steps that the last call did not take."""
        self.order.next_step -= steps

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a position."""
        self.order.load_state_dict(state)


class TrainBatches(StepLoader):
    """Shuffled full batches.

    Args:
        x: on the training device.
        target: likewise.
        order: rows of each step.
    """

    order: EpochOrder

    def __init__(
        self,
        x: Float[Tensor, "rows features"],
        target: Float[Tensor, " rows"],
        *,
        order: EpochOrder,
    ) -> None:
        self.x, self.target, self.order = x, target, order

    def __len__(self) -> int:
        return self.order.steps

    def __iter__(self) -> Iterator[Batch]:
        first, steps = self.order.begin()
        steps = steps.to(self.target.device)
        for start in range(first, len(self), _BATCHES_PER_GATHER):
            rows = steps[start : start + _BATCHES_PER_GATHER]
            for x, target in zip(self.x[rows], self.target[rows], strict=True):
                self.order.next_step += 1
                yield Batch(x, target)


class CallPlan(NamedTuple):
    """Partition of an epoch into calls.

    Attributes:
        steps_per_call: most optimizer steps in a call.
        steps: optimizer steps per epoch.
        val_every: steps between two validations; a call ends at each.
    """

    steps_per_call: int
    steps: int
    val_every: int

    def boundaries(self) -> list[int]:
        """Return the first step of every call, and the number of steps at the end."""
        calls, blocks = self.calls_per_validation, self.steps // self.val_every
        rest = range(blocks * self.val_every, self.steps, self.steps_per_call)
        if calls > -(-self.val_every // self.steps_per_call):
            starts = [self.val_every * call // calls for call in range(calls)]
        else:
            starts = list(range(0, self.val_every, self.steps_per_call))
        full = [block * self.val_every + start for block in range(blocks) for start in starts]
        return [*full, *rest, self.steps]

    def completed_calls(self, steps: int) -> int:
        """Return the number of complete calls in the first `steps` steps of an epoch."""
        return bisect_right(self.boundaries(), steps) - 1

    @property
    def calls_per_validation(self) -> int:
        """Calls between two validations.

        More than in the rest of an epoch, or else Lightning would validate at its end.
        """
        rest = -(-(self.steps % self.val_every) // self.steps_per_call)
        return max(-(-self.val_every // self.steps_per_call), rest + 1 if rest else 1)

    def calls_from(self, step: int) -> Iterator[tuple[int, int]]:
        """Yield first step and end of each call from a step on, which may lie inside a call."""
        for stop in self.boundaries()[self.completed_calls(step) + 1 :]:
            yield step, stop
            step = stop


class TrainCalls(StepLoader):
    """The steps of `TrainBatches` in the same order, many per call.

    Args:
        x: on the training device.
        target: likewise.
        order: rows of each step.
        plan: where calls begin.
    """

    order: EpochOrder

    def __init__(
        self,
        x: Float[Tensor, "rows features"],
        target: Float[Tensor, " rows"],
        *,
        order: EpochOrder,
        plan: CallPlan,
    ) -> None:
        self.x, self.target, self.order, self.plan = x, target, order, plan

    def __len__(self) -> int:
        return len(self.plan.boundaries()) - 1

    def __iter__(self) -> Iterator[Call]:
        first, steps = self.order.begin()
        for start, stop in self.plan.calls_from(first):
            self.order.next_step = stop
            yield Call(self.x, self.target, steps[start:stop])


class TrainWindows(StepLoader):
    """Step windows of an epoch, one per call, for members that look up their own rows.

    Args:
        plan: where calls begin.
    """

    def __init__(self, plan: CallPlan) -> None:
        self.plan, self.order = plan, EpochPosition(plan.steps)

    def __len__(self) -> int:
        return len(self.plan.boundaries()) - 1

    def __iter__(self) -> Iterator[StepWindow]:
        for start, stop in self.plan.calls_from(self.order.start_epoch()):
            self.order.next_step = stop
            yield StepWindow(self.order.epoch, start, stop)


class ScoreBatches:
    """A span in time order, each row exactly once over all processes."""

    def __init__(
        self, span: ScoredBatch, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        size = len(span.target)
        first, last = size * rank // world_size, size * (rank + 1) // world_size
        self.span = ScoredBatch(*(column[first:last] for column in span))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.span.target) // self.batch_size)

    def __iter__(self) -> Iterator[ScoredBatch]:
        for start in range(0, len(self.span.target), self.batch_size):
            yield ScoredBatch(*(column[start : start + self.batch_size] for column in self.span))


class MemberOrders:
    """Rows of each member's steps, from the same permutations as in a run of its own.

    The permutations are kept for the epoch if all of them fit in `limit`; otherwise they are drawn
    again for every window, so that memory does not grow with the number of members.

    Args:
        orders: one per member; members with the same object share its permutation.
        limit: bytes.
    """

    def __init__(self, orders: Sequence[EpochOrder], *, limit: int = 1 << 30) -> None:
        self._orders = orders
        distinct = {id(order): order.rows for order in orders}
        self.keeps = 4 * sum(distinct.values()) <= limit
        self._kept: dict[int, Int[Tensor, " rows"]] = {}
        self._epoch = -1

    def enter(self, epoch: int) -> None:
        """Select the epoch, before any thread asks for its rows."""
        if epoch != self._epoch:
            self._kept, self._epoch = {}, epoch

    def rows(self, member: int, start: int, stop: int) -> Int[Tensor, "steps batch"]:
        """Return the row numbers of the steps [start, stop) of the member's epoch, int64."""
        order = self._orders[member]
        batch = order.batch_size
        return self._permutation(order)[start * batch : stop * batch].long().view(-1, batch)

    def _permutation(self, order: EpochOrder) -> Int[Tensor, " rows"]:
        rows = self._kept.get(id(order))
        if rows is None:
            rows = order.permutation(self._epoch, dtype=torch.int32)
            if self.keeps:
                self._kept[id(order)] = rows
        return rows
