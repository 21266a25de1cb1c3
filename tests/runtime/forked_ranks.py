"""Real process groups for tests: ranks forked from this process, connected by gloo."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_fin.runtime.rank_info import RankInfo, process_group


def run_forked_ranks(count: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Call `work(rank)` on each of `count` ranks; return its result or its exception, by rank."""
    context = multiprocessing.get_context("fork")  # keeps the imports of this process
    processes = [context.Process(target=_rank, args=(k, count, work, folder)) for k in range(count)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
        assert not one.is_alive(), "a rank hangs"
    return [pickle.loads((folder / f"result_{rank}").read_bytes()) for rank in range(count)]


def _rank(rank: int, count: int, work: Callable[[int], Any], folder: Path) -> None:
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", OMP_NUM_THREADS="1")
    info = RankInfo(rank, count, rank, f"file://{folder / 'store'}", "a test")
    result: Any
    try:
        with process_group(info, accelerator="cpu"):
            result = work(rank)
    except BaseException as error:  # noqa: BLE001 - returned to the test
        error.add_note(traceback.format_exc())
        result = error
    (folder / f"result_{rank}").write_bytes(pickle.dumps(result))
    os._exit(0)
