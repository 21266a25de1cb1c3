"""Batches straight from tensors: no per-row collate, no worker processes."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
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


class TrainBatches:
    """Shuffled full batches; the order of an epoch depends on (seed, epoch) only.

    Works as its own sampler, so Lightning's loops tell it the epoch, and keeps its place, so a
    checkpoint in the middle of an epoch goes on with the next batch.

    Args:
        x: (rows, features) on the device of training.
        target: (rows,) likewise.
        batch_size: rows a batch and process; a shorter rest of the epoch is left out.
        seed: of the order.
        rank: of this process.
        world: number of processes; each takes its own part of every global batch.
    """

    def __init__(
        self,
        x: Float[Tensor, "rows features"],
        target: Float[Tensor, " rows"],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Keep the tensors; nothing is copied."""
        self.x, self.target = x, target
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world = rank, world
        self.epoch, self._next, self._resume_at = 0, 0, 0

    @property
    def sampler(self) -> "TrainBatches":
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.target) // (self.batch_size * self.world)

    def order(self) -> Tensor:
        """Row numbers of this epoch, in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.target), generator=generator).to(self.target.device)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this epoch, from the place where a checkpoint left it."""
        first, self._resume_at = self._resume_at, 0
        self._next = first
        order = self.order()[: len(self) * self.world * self.batch_size]
        mine = order.view(len(self), self.world, self.batch_size)[:, self.rank]
        for start in range(first, len(self), _CHUNK):
            rows = mine[start : start + _CHUNK]
            for x, target in zip(self.x[rows], self.target[rows], strict=True):
                self._next += 1
                yield Batch(x, target)

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch."""
        return {"next_batch": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place; one at the end of an epoch is the start of the next."""
        self._resume_at = state["next_batch"] % max(1, len(self))


class ScoreBatches:
    """A span in the order of time, every row exactly once over all processes."""

    def __init__(
        self, span: ScoredBatch, *, batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        """Keep this process's part of the rows."""
        size = len(span.target)
        first, last = size * rank // world, size * (rank + 1) // world
        self.span = ScoredBatch(*(part[first:last] for part in span))
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches; the last may be shorter."""
        return -(-len(self.span.target) // self.batch_size)

    def __iter__(self) -> Iterator[ScoredBatch]:
        """Consecutive slices."""
        for start in range(0, len(self.span.target), self.batch_size):
            yield ScoredBatch(*(part[start : start + self.batch_size] for part in self.span))
