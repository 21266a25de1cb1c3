"""Whether the processes of a machine can add up their tensors: what every DDP step does."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from robust_fin.hardware.ending import RankError, end_in, end_with_starter
from robust_fin.hardware.environment import GPU
from robust_fin.hardware.group import joined
from robust_fin.hardware.launch import WORD, launch, launched_place, launched_task
from robust_fin.hardware.place import Place

_NUMBERS = 100_003  # of a tensor; no multiple of any block size


def check_all_reduce(accelerator: str, *, processes: int) -> float:
    """Add up known numbers over new processes, one a device.

    Args:
        accelerator: `cpu` or `gpu`.
        processes: at least 2.

    Returns:
        Seconds, mostly the start of the processes.

    Raises:
        RankError: a process was lost, or holds a wrong sum.
        RuntimeError: the devices cannot talk.
    """
    began = time.perf_counter()
    launch(
        "robust_fin.hardware.all_reduce",
        {"accelerator": accelerator},
        processes=processes,
        environment={},
        advice="Devices that cannot reach each other train one by one",
    )
    return time.perf_counter() - began


def add_up(place: Place, accelerator: str) -> None:
    """One rank's part.

    Raises:
        RankError: the sum is wrong.
    """
    device = torch.device("cuda", place.local_rank) if accelerator == GPU else torch.device("cpu")
    with joined(place, accelerator=accelerator):
        numbers = torch.arange(_NUMBERS, dtype=torch.float32, device=device)
        total = numbers * (place.rank + 1)
        dist.all_reduce(total)
        wrong = int((total != numbers * (place.world * (place.world + 1) // 2)).sum())
        if wrong:
            raise RankError(
                f"{wrong:,} of {_NUMBERS:,} sums over {place.world} processes are wrong on "
                f"{device} of rank {place.rank}"
            )


def main(argv: Sequence[str]) -> int:
    """A rank; returns the exit code."""
    folder = Path(argv[0].removeprefix(f"{WORD}="))
    end_with_starter(folder)
    place, accelerator = launched_place(folder, os.environ), launched_task(folder)["accelerator"]
    assert place is not None
    return end_in(folder, place.rank, lambda: add_up(place, accelerator))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
