"""Rank and world size of this process, and collective operations between the ranks of one run."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist

from robust_fin.errors import ConfigError
from robust_fin.runtime.devices import GPU
from robust_fin.runtime.process_state import RankError


@dataclass(frozen=True, slots=True)
class RankInfo:
    """One of the processes (ranks) that train together.

    Attributes:
        rank: over all machines; rank 0 writes.
        world: number of ranks.
        local_rank: on this machine.
        address: `tcp://` of rank 0, or `file://` on one machine, where the ranks meet.
        starter: what started them, for messages.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    starter: str

    def check_world(self, *, devices: int, nodes: int) -> None:
        """Refuse ranks that the trainer does not count on.

        Raises:
            ConfigError: their number is not trainer.devices times trainer.num_nodes.
        """
        if devices * nodes != self.world:
            raise ConfigError(
                f"{self.starter} started {self.world} processes, and trainer.devices={devices} "
                f"times trainer.num_nodes={nodes} makes {devices * nodes}. Make them equal; "
                "trainer.devices is the number on each machine"
            )


def external_rank_info(environ: Mapping[str, str]) -> RankInfo | None:
    """The place that torchrun or srun gave this process; None where it was started alone.

    Raises:
        ConfigError: a part of what torchrun or srun sets is there and another is not.
    """
    if "TORCHELASTIC_RUN_ID" in environ and int(environ["WORLD_SIZE"]) > 1:
        rank, world = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        return RankInfo(rank, world, int(environ["LOCAL_RANK"]), "env://", "torchrun")
    tasks = int(environ.get("SLURM_NTASKS", "1"))
    interactive = environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" not in environ or tasks == 1 or interactive:
        return None
    if "SLURM_STEP_ID" not in environ:
        raise ConfigError(
            f"SLURM gave this job {tasks} tasks, and this process was started without srun: the "
            "others would be waited for in vain. Put srun before python, or ask for one task"
        )
    from lightning.fabric.plugins.environments import SLURMEnvironment

    try:
        slurm = SLURMEnvironment()
    except RuntimeError as error:
        raise ConfigError(str(error)) from error
    address = f"tcp://{slurm.main_address}:{slurm.main_port}"
    return RankInfo(slurm.global_rank(), slurm.world_size(), slurm.local_rank(), address, "srun")


def local_rank(environ: Mapping[str, str]) -> int:
    """The rank on this machine; 0 where this process is alone."""
    return int(environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0")))


def external_rank(environ: Mapping[str, str]) -> int:
    """The rank that torchrun or srun gave this process, unchecked; 0 where neither did."""
    name = "RANK" if "TORCHELASTIC_RUN_ID" in environ else "SLURM_PROCID"
    return int(environ.get(name, "0"))


# long, because the others wait while rank 0 reads a file; a lost rank is noticed at once all the
# same, by its closed connections
TIMEOUT = timedelta(minutes=30)
_MESSAGES = torch.device("cpu")  # what ranks tell each other goes by the CPU


def is_first() -> bool:
    """Whether this process writes: rank 0, or the only one there is."""
    return not is_distributed() or dist.get_rank() == 0


def is_distributed() -> bool:
    """Whether other processes train along."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if is_distributed() else 1


def global_rank() -> int:
    """Number of this process among those that train together."""
    return dist.get_rank() if is_distributed() else 0


@contextmanager
def process_group(place: RankInfo, *, accelerator: str) -> Iterator[None]:
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
    broadcast_from_first("done")
    dist.destroy_process_group()


def broadcast_from_first(value: Any) -> Any:
    """Rank 0's value, in every rank."""
    if not is_distributed():
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0, device=_MESSAGES)
    return found[0]


def all_gather(value: Any) -> list[Any]:
    """The values of all ranks, in every rank."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def all_reduce_max(values: list[int]) -> list[int]:
    """The greatest of each number over the ranks."""
    if not is_distributed():
        return values
    held = torch.tensor(values, device=_MESSAGES)
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return held.tolist()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any rank; all must ask at the same place."""
    return bool(all_reduce_max([int(flag)])[0])


def require_equal_on_ranks(value: str, *, what: str) -> None:
    """Stop every rank when one of them has another value.

    Args:
        value: of this rank.
        what: plural, for the message.

    Raises:
        RankError: names the ranks and their values.
    """
    values = all_gather(value)
    if len(set(values)) == 1:
        return
    ordered = sorted(range(len(values)), key=lambda rank: (values[rank] != values[0], values[rank]))
    parts = [
        f"{_ranks(list(some))} {value}" for value, some in groupby(ordered, key=values.__getitem__)
    ]
    raise RankError(f"{what} differ between the processes: {'; '.join(parts)}. The run stops")


@contextmanager
def first_local_rank_first() -> Iterator[None]:
    """Let the first rank of each machine fill a cache that the others then read."""
    waits = is_distributed() and local_rank(os.environ) > 0
    if waits:
        all_reduce_max([0])
    yield
    if is_distributed() and not waits:
        all_reduce_max([0])


def _ranks(ranks: list[int]) -> str:
    few = len(ranks) == 1
    return f"rank{'' if few else 's'} {', '.join(map(str, ranks))} ha{'s' if few else 've'}"
