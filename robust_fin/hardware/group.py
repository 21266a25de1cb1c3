"""The ranks of one run, talking: where they meet, what they must agree on, who is first."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist

from robust_fin.hardware.ending import RankError
from robust_fin.hardware.environment import GPU
from robust_fin.hardware.place import Place, local_rank

# long, because the others wait while rank 0 reads a file; a lost rank is noticed at once all the
# same, by its closed connections
TIMEOUT = timedelta(minutes=30)
_MESSAGES = torch.device("cpu")  # what ranks tell each other goes by the CPU


def is_first() -> bool:
    """Whether this process writes: rank 0, or the only one there is."""
    return not in_group() or dist.get_rank() == 0


def in_group() -> bool:
    """Whether other processes train along."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if in_group() else 1


def group_rank() -> int:
    """Number of this process among those that train together."""
    return dist.get_rank() if in_group() else 0


@contextmanager
def joined(place: Place, *, accelerator: str) -> Iterator[None]:
    """Meet the other ranks; leave when all are done.

    They leave together, so that the end of rank 0, which writes last, is the end of all.

    Args:
        place: this process's.
        accelerator: `gpu` adds NCCL (RCCL on AMD) for what lies on devices; the CPU talks by gloo.
    """
    backend = "cpu:gloo,cuda:nccl" if accelerator == GPU else "gloo"
    device = torch.device("cuda", place.local_rank) if accelerator == GPU else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        place.address,
        rank=place.rank,
        world_size=place.world,
        timeout=TIMEOUT,
        device_id=device,
    )
    yield
    share_first("done")
    dist.destroy_process_group()


def share_first(value: Any) -> Any:
    """Rank 0's value, in every rank."""
    if not in_group():
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0, device=_MESSAGES)
    return found[0]


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in every rank."""
    if not in_group():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def greatest(values: list[int]) -> list[int]:
    """The greatest of each number over the ranks."""
    if not in_group():
        return values
    held = torch.tensor(values, device=_MESSAGES)
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return held.tolist()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any rank; all must ask at the same place."""
    return bool(greatest([int(flag)])[0])


def require_agreement(value: str, *, what: str) -> None:
    """Stop every rank when one of them has another value.

    Args:
        value: of this rank.
        what: plural, for the message.

    Raises:
        RankError: names the ranks and their values.
    """
    values = gathered(value)
    if len(set(values)) == 1:
        return
    ordered = sorted(range(len(values)), key=lambda rank: (values[rank] != values[0], values[rank]))
    parts = [
        f"{_ranks(list(some))} {value}" for value, some in groupby(ordered, key=values.__getitem__)
    ]
    raise RankError(f"{what} differ between the processes: {'; '.join(parts)}. The run stops")


@contextmanager
def first_on_machine_first() -> Iterator[None]:
    """Let the first rank of each machine fill a cache that the others then read."""
    waits = in_group() and local_rank(os.environ) > 0
    if waits:
        greatest([0])
    yield
    if in_group() and not waits:
        greatest([0])


def _ranks(ranks: list[int]) -> str:
    few = len(ranks) == 1
    return f"rank{'' if few else 's'} {', '.join(map(str, ranks))} ha{'s' if few else 've'}"
