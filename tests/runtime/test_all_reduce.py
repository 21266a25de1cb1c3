import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from robust_fin.runtime import machine_checks as all_reduce
from robust_fin.runtime.machine_checks import check_all_reduce, check_sums
from robust_fin.runtime.rank_info import RankInfo


def codes(count: int, folder: Path) -> list[int]:
    """Exit codes of `check_sums` in forks of this process: 0, or 1 with a traceback."""
    context = multiprocessing.get_context("fork")
    places = [RankInfo(k, count, k, f"file://{folder / 'store'}", "a test") for k in range(count)]
    ranks = [context.Process(target=check_sums, args=(place, "cpu")) for place in places]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(60)
    return [int(one.exitcode or 0) for one in ranks]


def test_processes_that_add_up_end_well(tmp_path: Path) -> None:
    assert codes(3, tmp_path) == [0, 0, 0]


def test_a_sum_that_is_off_in_one_number_is_seen_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def off(total: torch.Tensor) -> None:
        dist.all_gather([torch.empty_like(total) for _ in range(2)], total)
        total.mul_(3 / (dist.get_rank() + 1))[4711] += 1

    class Off:
        all_reduce = staticmethod(off)

    monkeypatch.setattr(all_reduce, "dist", Off)
    assert codes(2, tmp_path) == [1, 1]
    assert "1 of 100,003 sums over 2 processes are wrong on cpu of rank 1" in capfd.readouterr().err


@pytest.mark.slow
def test_new_processes_add_up() -> None:
    assert check_all_reduce("cpu", processes=2) > 0
