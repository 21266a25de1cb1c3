from pathlib import Path

import pytest

from robust_fin.runtime import rank_info as group
from robust_fin.runtime.process_state import RankError
from tests.runtime.forked import in_group_of


def test_alone_everything_is_this_process() -> None:
    assert group.is_first()
    assert not group.is_distributed()
    assert group.world_size() == 1
    assert group.broadcast_from_first("mine") == "mine"
    assert group.all_gather(3) == [3]
    assert group.all_reduce_max([3, -1]) == [3, -1]
    assert group.any_rank(True)
    assert not group.any_rank(False)
    group.require_equal_on_ranks("a", what="values")


def test_processes_share_gather_and_take_the_greatest(tmp_path: Path) -> None:
    def work(rank: int) -> tuple[object, ...]:
        return (
            group.is_first(),
            group.world_size(),
            group.broadcast_from_first(f"of {rank}"),
            group.all_gather(rank * 10),
            group.all_reduce_max([rank, -rank]),
            group.any_rank(rank == 1),
            group.any_rank(False),
        )

    common = (3, "of 0", [0, 10, 20], [2, 0], True, False)
    assert in_group_of(3, work, tmp_path) == [(True, *common), (False, *common), (False, *common)]


def test_those_who_disagree_are_named_in_every_process(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        group.require_equal_on_ranks("ab12", what="the settings")
        group.require_equal_on_ranks("cd34" if rank == 1 else "ab12", what="the weights")

    found = in_group_of(3, work, tmp_path)
    assert [type(one) for one in found] == [RankError] * 3
    assert {str(one) for one in found} == {
        "the weights differ between the ranks: ranks 0, 2 have ab12; rank 1 has cd34. The run stops"
    }


def test_the_first_on_a_machine_is_through_before_the_others_begin(tmp_path: Path) -> None:
    def work(rank: int) -> bool:
        cache = tmp_path / "cache"
        with group.first_local_rank_first():
            was_there = cache.exists()
            if rank == 0:
                cache.touch()
        return was_there

    assert in_group_of(3, work, tmp_path) == [False, True, True]


def test_a_process_that_is_lost_ends_the_wait_of_the_others(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            raise RankError("lost")
        group.all_gather(rank)

    first, second = in_group_of(2, work, tmp_path)
    assert str(second) == "lost"
    assert isinstance(first, RuntimeError)


def test_the_cpu_talks_by_gloo(tmp_path: Path) -> None:
    import torch.distributed as dist

    assert in_group_of(2, lambda _: dist.get_backend(), tmp_path) == ["gloo", "gloo"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_group_ends_with_its_work(count: int, tmp_path: Path) -> None:
    assert in_group_of(count, lambda _: group.is_distributed(), tmp_path) == [True] * count
    assert not group.is_distributed()
