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

# The other ranks wait this long while rank 0 reads a file. A lost rank is noticed at once, by its
# closed connections.
TIMEOUT = timedelta(minutes=30)
_CPU = torch.device("cpu")  # messages between ranks use the CPU backend


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Rank of this process and how to reach the others.

    Attributes:
        rank: global rank; rank 0 writes.
        world: world size.
        local_rank: rank on this machine.
        address: rendezvous address: `tcp://` of rank 0, or `file://` on a single machine.
        starter: name of the launcher, for messages.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    starter: str

    def check_world(self, *, devices: int, nodes: int) -> None:
        """Raise ConfigError unless the world size is devices x nodes."""
        if devices * nodes != self.world:
            raise ConfigError(
                f"{self.starter} started {self.world} processes, but trainer.devices={devices} "
                f"times trainer.num_nodes={nodes} is {devices * nodes}. Make them equal; "
                "trainer.devices counts the devices of each machine"
            )


def external_rank_info(environ: Mapping[str, str]) -> RankInfo | None:
    """Read the rank that torchrun or srun assigned; None where this process was started alone.

    Raises:
        ConfigError: the environment variables are incomplete.
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
            f"SLURM allocated {tasks} tasks, but this process was not started by srun, so the "
            "other ranks would never start. Put srun before python, or request one task"
        )
    from lightning.fabric.plugins.environments import SLURMEnvironment

    try:
        slurm = SLURMEnvironment()
    except RuntimeError as error:
        raise ConfigError(str(error)) from error
    address = f"tcp://{slurm.main_address}:{slurm.main_port}"
    return RankInfo(slurm.global_rank(), slurm.world_size(), slurm.local_rank(), address, "srun")


def local_rank(environ: Mapping[str, str]) -> int:
    """Return the rank on this machine; 0 for a single process."""
    return int(environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0")))


def external_rank(environ: Mapping[str, str]) -> int:
    """Return the rank that torchrun or srun assigned, unchecked; 0 where neither did."""
    name = "RANK" if "TORCHELASTIC_RUN_ID" in environ else "SLURM_PROCID"
    return int(environ.get(name, "0"))


def is_first() -> bool:
    """Return whether this is rank 0, or the only process."""
    return global_rank() == 0


def is_distributed() -> bool:
    """Return whether a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def global_rank() -> int:
    """Return the global rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


@contextmanager
def process_group(info: RankInfo, *, accelerator: str) -> Iterator[None]:
    """Initialize the process group, and destroy it when all ranks are done.

    The ranks leave together, so that the exit of rank 0, which writes last, is the exit of all.

    Args:
        info: of this process.
        accelerator: `gpu` adds NCCL (RCCL on AMD) for device tensors; CPU tensors use gloo.
    """
    backend = "cpu:gloo,cuda:nccl" if accelerator == GPU else "gloo"
    device = torch.device("cuda", info.local_rank) if accelerator == GPU else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        info.address,
        rank=info.rank,
        world_size=info.world,
        timeout=TIMEOUT,
        device_id=device,
    )
    yield
    broadcast_from_first("done")
    dist.destroy_process_group()


def broadcast_from_first(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=_CPU)
    return values[0]


def all_gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_max(values: list[int]) -> list[int]:
    """Return the elementwise maximum over the ranks."""
    if not is_distributed():
        return values
    tensor = torch.tensor(values, device=_CPU)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank; a collective call."""
    return bool(all_reduce_max([int(flag)])[0])


def require_equal_on_ranks(value: str, *, what: str) -> None:
    """Raise RankError on every rank unless all ranks hold the same value.

    Args:
        value: of this rank.
        what: plural noun for the message.
    """
    values = all_gather(value)
    if len(set(values)) == 1:
        return
    ordered = sorted(range(len(values)), key=lambda rank: (values[rank] != values[0], values[rank]))
    parts = [
        f"{_format_ranks(list(ranks))} {value}"
        for value, ranks in groupby(ordered, key=values.__getitem__)
    ]
    raise RankError(f"{what} differ between the ranks: {'; '.join(parts)}. The run stops")


@contextmanager
def first_local_rank_first() -> Iterator[None]:
    """Run the body on the first rank of each machine, then on the others.

    The first one fills a cache that the others then read.
    """
    waits = is_distributed() and local_rank(os.environ) > 0
    if waits:
        all_reduce_max([0])
    yield
    if is_distributed() and not waits:
        all_reduce_max([0])


def _format_ranks(ranks: list[int]) -> str:
    names = ", ".join(map(str, ranks))
    return f"rank {names} has" if len(ranks) == 1 else f"ranks {names} have"
