from pathlib import Path

import pytest

from robust_fin.errors import ConfigError
from robust_fin.runtime import rank_info
from robust_fin.runtime.process_state import RankError
from robust_fin.runtime.rank_info import RankInfo, external_rank, external_rank_info, local_rank
from tests.runtime.forked_ranks import run_forked_ranks

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "417",
    "SLURM_NODELIST": "node[3-4]",
}


def set_environment(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            monkeypatch.delenv(name, raising=False)


def test_single_process_has_rank_0() -> None:
    assert external_rank_info({}) is None
    assert external_rank({}) == 0
    assert local_rank({}) == 0


def test_torchrun_variables_give_the_rank() -> None:
    assert external_rank_info(TORCHRUN) == RankInfo(3, 4, 1, "env://", "torchrun")
    assert external_rank(TORCHRUN) == 3
    assert local_rank(TORCHRUN) == 1


def test_srun_variables_give_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SRUN)
    assert external_rank_info(SRUN) == RankInfo(2, 4, 0, "tcp://node3:15417", "srun")
    assert external_rank(SRUN) == 2
    assert local_rank(SRUN) == 0


@pytest.mark.parametrize(
    "environ",
    [
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {**SRUN, "SLURM_NTASKS": "1"},
        {**SRUN, "SLURM_JOB_NAME": "interactive"},
        {"RANK": "1", "WORLD_SIZE": "2"},
    ],
)
def test_single_task_or_interactive_shell_has_no_external_rank(environ: dict[str, str]) -> None:
    assert external_rank_info(environ) is None


def test_batch_script_without_srun_raises() -> None:
    without_srun = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    with pytest.raises(ConfigError, match=r"4 tasks, .* not started by srun.* Put srun"):
        external_rank_info(without_srun)


def test_missing_ntasks_per_node_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SRUN)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ConfigError, match="--ntasks-per-node=4"):
        external_rank_info(SRUN)


def test_world_size_must_match_the_trainer() -> None:
    info = RankInfo(0, 4, 0, "env://", "torchrun")
    info.check_world(devices=2, nodes=2)
    with pytest.raises(ConfigError) as caught:
        info.check_world(devices=2, nodes=1)
    assert "torchrun started 4 processes, but trainer.devices=2 times" in str(caught.value)
    assert "trainer.num_nodes=1 is 2" in str(caught.value)


def test_collectives_of_a_single_process() -> None:
    assert rank_info.is_first()
    assert not rank_info.is_distributed()
    assert rank_info.world_size() == 1
    assert rank_info.broadcast_from_first("mine") == "mine"
    assert rank_info.all_gather(3) == [3]
    assert rank_info.all_reduce_max([3, -1]) == [3, -1]
    assert rank_info.any_rank(True)
    assert not rank_info.any_rank(False)
    rank_info.require_equal_on_ranks("a", what="values")


def test_ranks_broadcast_gather_and_reduce(tmp_path: Path) -> None:
    def work(rank: int) -> tuple[object, ...]:
        return (
            rank_info.is_first(),
            rank_info.world_size(),
            rank_info.broadcast_from_first(f"of {rank}"),
            rank_info.all_gather(rank * 10),
            rank_info.all_reduce_max([rank, -rank]),
            rank_info.any_rank(rank == 1),
            rank_info.any_rank(False),
        )

    common = (3, "of 0", [0, 10, 20], [2, 0], True, False)
    assert run_forked_ranks(3, work, tmp_path) == [
        (True, *common),
        (False, *common),
        (False, *common),
    ]


def test_differing_ranks_are_named_on_every_rank(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        rank_info.require_equal_on_ranks("ab12", what="the settings")
        rank_info.require_equal_on_ranks("cd34" if rank == 1 else "ab12", what="the weights")

    errors = run_forked_ranks(3, work, tmp_path)
    assert [type(error) for error in errors] == [RankError] * 3
    assert {str(error) for error in errors} == {
        "the weights differ between the ranks: ranks 0, 2 have ab12; rank 1 has cd34. The run stops"
    }


def test_first_local_rank_runs_before_the_others(tmp_path: Path) -> None:
    def work(rank: int) -> bool:
        cache = tmp_path / "cache"
        with rank_info.first_local_rank_first():
            was_there = cache.exists()
            if rank == 0:
                cache.touch()
        return was_there

    assert run_forked_ranks(3, work, tmp_path) == [False, True, True]


def test_lost_rank_ends_the_wait_of_the_others(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            raise RankError("rank 1 failed")
        rank_info.all_gather(rank)

    first, second = run_forked_ranks(2, work, tmp_path)
    assert str(second) == "rank 1 failed"
    assert isinstance(first, RuntimeError)


def test_cpu_uses_gloo(tmp_path: Path) -> None:
    import torch.distributed as dist

    assert run_forked_ranks(2, lambda _: dist.get_backend(), tmp_path) == ["gloo", "gloo"]


@pytest.mark.parametrize("count", [1, 2])
def test_process_group_is_destroyed_on_exit(count: int, tmp_path: Path) -> None:
    assert run_forked_ranks(count, lambda _: rank_info.is_distributed(), tmp_path) == [True] * count
    assert not rank_info.is_distributed()
