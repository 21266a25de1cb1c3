"""Batches straight from tensors: no per-row collate, no worker processes."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 256  # batches gathered by one index; larger ones leave the cache, smaller ones cost calls


class Batch(NamedTuple):
    """What a step of training sees."""

    x: Float[Tensor, "batch features"]
    target: Float[Tensor, " batch"]


class ScoredBatch(NamedTuple):
    """What a step of validation sees."""

    x: Float[Tensor, "batch features"]
    target: Float[Tensor, " batch"]
    outcome: Float[Tensor, " batch"]


class Call(NamedTuple):
    """What a call of the compiled engine sees: several steps, by the numbers of their rows."""

    x: Float[Tensor, "rows features"]
    target: Float[Tensor, " rows"]
    rows: Int[Tensor, "steps batch"]


class EpochOrder:
    """The rows of each step of an epoch, and the place in it.

    The order depends on (seed, epoch) only. The place is part of a checkpoint, so that one in the
    middle of an epoch goes on with the next step.

    Args:
        rows: training rows.
        batch_size: rows a batch and process; a shorter rest of the epoch is left out.
        seed: of the order.
        rank: of this process.
        world_size: number of processes; each takes its own part of every global batch.
    """

    def __init__(
        self, rows: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Start before the first step of epoch 0."""
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.next_step, self._resume_at = 0, 0, 0

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return self.rows // (self.batch_size * self.world_size)

    def permutation(self) -> Int[Tensor, " rows"]:
        """Row numbers of this epoch, in order."""
        return self.drawn(self.epoch)

    def drawn(self, epoch: int, *, dtype: torch.dtype = torch.int64) -> Int[Tensor, " rows"]:
        """Row numbers of an epoch, in order; the same whatever their dtype."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.rows, generator=generator, dtype=dtype)

    def begin(self) -> tuple[int, Int[Tensor, "steps batch"]]:
        """The step to start at, and the row numbers of every step of this epoch."""
        first, self._resume_at = self._resume_at, 0
        self.next_step = first
        used = self.permutation()[: self.steps * self.world_size * self.batch_size]
        return first, used.view(self.steps, self.world_size, self.batch_size)[:, self.rank]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch."""
        return {"next_batch": self.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place; one at the end of an epoch is the start of the next."""
        self._resume_at = state["next_batch"] % max(1, self.steps)


class TrainBatches:
    """Shuffled full batches.

    Args:
        x: (rows, features) on the device of training.
        target: (rows,) likewise.
        order: which rows, when.
    """

    def __init__(
        self,
        x: Float[Tensor, "rows features"],
        target: Float[Tensor, " rows"],
        *,
        order: EpochOrder,
    ) -> None:
        """Keep the tensors; nothing is copied."""
        self.x, self.target, self.order = x, target, order

    @property
    def sampler(self) -> EpochOrder:
        """Where Lightning looks for `set_epoch`."""
        return self.order

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.order.steps

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this epoch, from the place where a checkpoint left it."""
        first, steps = self.order.begin()
        steps = steps.to(self.target.device)
        for start in range(first, len(self), _CHUNK):
            rows = steps[start : start + _CHUNK]
            for x, target in zip(self.x[rows], self.target[rows], strict=True):
                self.order.next_step += 1
                yield Batch(x, target)

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place."""
        self.order.load_state_dict(state)


class CallPlan(NamedTuple):
    """How an epoch is cut into calls.

    Attributes:
        steps_per_call: optimizer steps a call holds at most.
        steps: optimizer steps an epoch.
        val_every: steps between two validations, so that a call ends there.
    """

    steps_per_call: int
    steps: int
    val_every: int

    def boundaries(self) -> list[int]:
        """The first step of every call, and the number of steps at the end."""
        calls, whole = self.calls_per_validation, self.steps // self.val_every
        rest = range(whole * self.val_every, self.steps, self.steps_per_call)
        if calls > -(-self.val_every // self.steps_per_call):
            places = [self.val_every * call // calls for call in range(calls)]
        else:
            places = list(range(0, self.val_every, self.steps_per_call))
        blocks = [block * self.val_every + place for block in range(whole) for place in places]
        return [*blocks, *rest, self.steps]

    def completed_calls(self, steps: int) -> int:
        """Whole calls in the first `steps` steps of an epoch."""
        return bisect_right(self.boundaries(), steps) - 1

    @property
    def calls_per_validation(self) -> int:
        """Calls between two validations.

        More than the rest of an epoch has, or Lightning would validate at its end.
        """
        rest = -(-(self.steps % self.val_every) // self.steps_per_call)
        return max(-(-self.val_every // self.steps_per_call), rest + 1 if rest else 1)


class TrainCalls:
    """The same steps as `TrainBatches` in the same order, many a call.

    Args:
        x: (rows, features).
        target: (rows,).
        order: which rows, when.
        plan: where calls begin.
    """

    def __init__(
        self,
        x: Float[Tensor, "rows features"],
        target: Float[Tensor, " rows"],
        *,
        order: EpochOrder,
        plan: CallPlan,
    ) -> None:
        """Keep the tensors; nothing is copied."""
        self.x, self.target, self.order, self.plan = x, target, order, plan

    @property
    def sampler(self) -> EpochOrder:
        """Where Lightning looks for `set_epoch`."""
        return self.order

    def __len__(self) -> int:
        """Calls an epoch."""
        return len(self.plan.boundaries()) - 1

    def __iter__(self) -> Iterator[Call]:
        """Calls of this epoch; the first one is shorter where a checkpoint lies inside a call."""
        first, steps = self.order.begin()
        for stop in self.plan.boundaries()[self.plan.completed_calls(first) + 1 :]:
            self.order.next_step = stop
            yield Call(self.x, self.target, steps[first:stop])
            first = stop

    def rewind(self, steps: int) -> None:
        """The last call stopped so many steps before its end."""
        self.order.next_step -= steps

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch, in steps."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place."""
        self.order.load_state_dict(state)


class ScoreBatches:
    """A span in the order of time, every row exactly once over all processes."""

    def __init__(
        self, span: ScoredBatch, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Keep this process's part of the rows."""
        size = len(span.target)
        first, last = size * rank // world_size, size * (rank + 1) // world_size
        self.span = ScoredBatch(*(part[first:last] for part in span))
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches; the last may be shorter."""
        return -(-len(self.span.target) // self.batch_size)

    def __iter__(self) -> Iterator[ScoredBatch]:
        """Consecutive slices."""
        for start in range(0, len(self.span.target), self.batch_size):
            yield ScoredBatch(*(part[start : start + self.batch_size] for part in self.span))
