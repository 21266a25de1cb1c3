"""Starting a job in this process or in several ranks."""

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from robust_fin.errors import ConfigError
from robust_fin.runs import job as jobs_module
from robust_fin.runs.job import Job, is_launched_rank, rank_overrides, run_rank, start_job
from robust_fin.runtime.process_state import RankError, RankExit
from robust_fin.runtime.rank_info import RankInfo
from tests.bars import config
from tests.runtime.forked_ranks import run_forked_ranks
from tests.runtime.test_rank_info import TORCHRUN

AMBIGUOUS = (  # values that YAML might read back as another type
    "optimizer.lr=1e-05",
    "name='1e3'",
    "source.timezone='null'",
    "source.time_format='%d.%m.%Y %H:%M'",
    "model.hidden=[16,8]",
    "seed=7",
)


@pytest.fixture(scope="module")
def settings() -> DictConfig:
    return config("trainer=ddp", *AMBIGUOUS)


def test_a_job_of_one_rank_runs_in_this_process(tmp_path: Path) -> None:
    jobs: list[Job] = []
    job = Job(config(), tmp_path, resume=False)
    start_job(job, jobs.append, module="none")
    assert jobs == [job]


def test_launched_ranks_get_exactly_the_same_settings(
    tmp_path: Path, settings: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def launched(module: str, task: dict[str, Any], **more: Any) -> None:
        given.update(module=module, task=task, **more)

    monkeypatch.setattr(jobs_module, "launch", launched)
    start_job(Job(settings, tmp_path, resume=True), lambda _: pytest.fail("here"), module="verb")
    assert (given["module"], given["processes"], given["environment"]) == ("verb", 2, {})
    assert given["advice"].startswith(f"python -m robust_fin.train resume={tmp_path}")

    jobs: list[Job] = []
    folder = tmp_path / "launch"
    folder.mkdir()
    monkeypatch.setattr(jobs_module, "read_task", lambda _: given["task"])
    monkeypatch.setattr(jobs_module, "exit_with_parent", lambda _: None)
    assert run_rank([f"launched={folder}"], jobs.append) == 0
    (job,) = jobs
    expected = OmegaConf.to_container(settings, resolve=True)
    assert OmegaConf.to_container(job.config) == expected
    assert (job.run, job.resume) == (tmp_path, True)
    assert job.config.name == "1e3"
    assert job.config.source.timezone == "null"


def test_a_failed_rank_records_its_message_and_prints_nothing(
    tmp_path: Path,
    settings: DictConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    task = {"config": OmegaConf.to_yaml(settings), "run": "r", "resume": False, "logging": None}
    monkeypatch.setattr(jobs_module, "read_task", lambda _: task)
    monkeypatch.setattr(jobs_module, "exit_with_parent", lambda _: None)

    def refuse(_: Job) -> None:
        raise ConfigError("seed=7 is not allowed")

    assert run_rank([f"launched={tmp_path}"], refuse) == 1
    rank_exit = RankExit.read(tmp_path, 0)
    assert rank_exit is not None
    assert (rank_exit.code, rank_exit.message) == (1, "seed=7 is not allowed")
    assert "in refuse" in rank_exit.trace
    assert capfd.readouterr() == ("", "")


def test_only_the_launched_key_marks_a_rank() -> None:
    assert is_launched_rank(["launched=/tmp/x"])
    assert not is_launched_rank(["+experiment=smoke", "name=launched=1"])


def test_only_rank_0_of_torchrun_lets_hydra_write_files() -> None:
    assert rank_overrides({}) == []
    assert rank_overrides({**TORCHRUN, "RANK": "0"}) == []
    other = rank_overrides(TORCHRUN)
    assert "hydra.output_subdir=null" in other
    assert "hydra.run.dir=." in other


def test_all_ranks_use_the_run_folder_of_rank_0(tmp_path: Path) -> None:
    settings = OmegaConf.create({"seed": 1})

    def work(rank: int) -> tuple[str, int]:
        folder = tmp_path if rank == 0 else tmp_path / "other"
        job = jobs_module._agree_on_job(Job(settings, folder, resume=False))
        return str(job.run), job.config.seed

    assert run_forked_ranks(2, work, tmp_path) == [(str(tmp_path), 1)] * 2


def test_settings_that_differ_between_ranks_stop_all_ranks(tmp_path: Path) -> None:
    def work(rank: int) -> Job:
        return jobs_module._agree_on_job(
            Job(OmegaConf.create({"seed": rank // 2}), tmp_path, resume=False)
        )

    results = run_forked_ranks(3, work, tmp_path)
    assert [type(error) for error in results] == [RankError] * 3
    assert str(results[0]).startswith("the hashes of the settings differ between the ranks: ")
    assert "ranks 0, 1 have " in str(results[2])
    assert "; rank 2 has " in str(results[2])


def test_a_run_folder_that_a_rank_cannot_see_is_an_error(tmp_path: Path) -> None:
    def work(_: int) -> Job:
        return jobs_module._agree_on_job(
            Job(OmegaConf.create({}), tmp_path / "elsewhere", resume=False)
        )

    results = run_forked_ranks(2, work, tmp_path)
    assert str(results[1]).startswith(f"rank 0, 1 cannot see the run folder {tmp_path}/elsewhere")
    assert "hydra.run.dir=FOLDER" in str(results[1])


def test_a_sweep_under_torchrun_is_an_error(
    tmp_path: Path, settings: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jobs_module, "_is_sweep", lambda: True)
    with pytest.raises(ConfigError, match="a sweep cannot be run under torchrun or srun"):
        start_job(Job(settings, tmp_path, resume=False), lambda _: None, module="none")
    assert os.environ["RANK"] == "3"


def test_a_process_started_for_a_job_starts_its_ranks_in_a_clean_environment(
    tmp_path: Path, settings: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {
        "config": OmegaConf.to_yaml(settings),
        "run": "r",
        "resume": True,
        "logging": {"root": None},
    }
    monkeypatch.setattr(jobs_module, "read_task", lambda _: {**task, "module": "verb"})
    monkeypatch.setattr(jobs_module, "exit_with_parent", lambda _: None)
    for name in ("ROBUST_FIN_RANK", "ROBUST_FIN_WORLD", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    given: dict[str, Any] = {}

    def started(job: Job, work: Any, **more: Any) -> None:  # noqa: ARG001
        given.update(run=job.run, resume=job.resume, **more)

    monkeypatch.setattr(jobs_module, "start_job", started)
    assert run_rank([f"launched={tmp_path}"], lambda _: None) == 0
    assert given == {"run": Path("r"), "resume": True, "module": "verb", "logging": {"root": None}}
    assert not {"ROBUST_FIN_RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(os.environ)


def test_a_rank_fails_if_the_world_size_differs_from_the_settings(
    tmp_path: Path, settings: DictConfig
) -> None:
    job = Job(settings, tmp_path, resume=False)
    alone = RankInfo(0, 3, 0, f"file://{tmp_path / 'store'}", "this run")
    with pytest.raises(ConfigError, match=r"this run started 3 processes, but trainer.devices=2"):
        jobs_module._run_as_rank(job, lambda _: pytest.fail("trained"), alone)
