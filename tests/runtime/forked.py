"""Real process groups in a test: forks of this process that meet by gloo."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_fin.runtime.rank_info import RankInfo, process_group


def in_group_of(count: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)` returns or raises in each of `count` processes that train together."""
    context = multiprocessing.get_context("fork")  # what is imported need not be imported again
    processes = [context.Process(target=_rank, args=(k, count, work, folder)) for k in range(count)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
        assert not one.is_alive(), "a rank hangs"
    return [pickle.loads((folder / f"found_{rank}").read_bytes()) for rank in range(count)]


def _rank(rank: int, count: int, work: Callable[[int], Any], folder: Path) -> None:
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", OMP_NUM_THREADS="1")
    place = RankInfo(rank, count, rank, f"file://{folder / 'store'}", "a test")
    found: Any
    try:
        with process_group(place, accelerator="cpu"):
            found = work(rank)
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        error.add_note(traceback.format_exc())
        found = error
    (folder / f"found_{rank}").write_bytes(pickle.dumps(found))
    os._exit(0)
