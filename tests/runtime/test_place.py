import pytest

from robust_fin.errors import ConfigError
from robust_fin.runtime.rank_info import RankInfo, external_rank, external_rank_info, local_rank

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


def set_all(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            monkeypatch.delenv(name, raising=False)


def test_alone() -> None:
    assert external_rank_info({}) is None
    assert external_rank({}) == 0
    assert local_rank({}) == 0


def test_torchrun_gives_the_place() -> None:
    assert external_rank_info(TORCHRUN) == RankInfo(3, 4, 1, "env://", "torchrun")
    assert external_rank(TORCHRUN) == 3
    assert local_rank(TORCHRUN) == 1


def test_srun_gives_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SRUN)
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
def test_one_task_or_a_shell_is_no_place(environ: dict[str, str]) -> None:
    assert external_rank_info(environ) is None


def test_a_batch_script_without_srun_is_told_so() -> None:
    alone = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    with pytest.raises(ConfigError, match=r"4 tasks, .* not started by srun.* Put srun"):
        external_rank_info(alone)


def test_tasks_that_are_not_counted_by_node_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SRUN)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ConfigError, match="--ntasks-per-node=4"):
        external_rank_info(SRUN)


def test_the_world_is_what_the_trainer_counts_on() -> None:
    place = RankInfo(0, 4, 0, "env://", "torchrun")
    place.check_world(devices=2, nodes=2)
    with pytest.raises(ConfigError) as caught:
        place.check_world(devices=2, nodes=1)
    assert "torchrun started 4 processes, but trainer.devices=2 times" in str(caught.value)
    assert "trainer.num_nodes=1 is 2" in str(caught.value)
