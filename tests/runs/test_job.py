import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from robust_fin.errors import ConfigError
from robust_fin.runs import job as processes
from robust_fin.runs.job import Job, is_launched, run_rank, start, words_of_rank
from robust_fin.runtime.process_state import RankError, RankExit
from robust_fin.runtime.rank_info import RankInfo
from tests.bars import config
from tests.runtime.forked import in_group_of
from tests.runtime.test_place import TORCHRUN

ODD = (  # values that a text might come back from as something else
    "optimizer.lr=1e-05",
    "name='1e3'",
    "source.timezone='null'",
    "source.time_format='%d.%m.%Y %H:%M'",
    "model.hidden=[16,8]",
    "seed=7",
)


@pytest.fixture(scope="module")
def settings() -> DictConfig:
    return config("trainer=ddp", *ODD)


def test_one_process_works_here(tmp_path: Path) -> None:
    jobs: list[Job] = []
    job = Job(config(), tmp_path, resume=False)
    start(job, jobs.append, module="none")
    assert jobs == [job]


def test_two_processes_are_given_the_same_settings_to_the_last_digit(
    tmp_path: Path, settings: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def launched(module: str, task: dict[str, Any], **more: Any) -> None:
        given.update(module=module, task=task, **more)

    monkeypatch.setattr(processes, "launch", launched)
    start(Job(settings, tmp_path, resume=True), lambda _: pytest.fail("here"), module="verb")
    assert (given["module"], given["processes"], given["environment"]) == ("verb", 2, {})
    assert given["advice"].startswith(f"python -m robust_fin.train resume={tmp_path}")

    jobs: list[Job] = []
    folder = tmp_path / "launch"
    folder.mkdir()
    monkeypatch.setattr(processes, "read_task", lambda _: given["task"])
    monkeypatch.setattr(processes, "exit_with_parent", lambda _: None)
    assert run_rank([f"launched={folder}"], jobs.append) == 0
    (job,) = jobs
    wanted = OmegaConf.to_container(settings, resolve=True)
    assert OmegaConf.to_container(job.config) == wanted
    assert (job.run, job.resume) == (tmp_path, True)
    assert job.config.name == "1e3"
    assert job.config.source.timezone == "null"


def test_a_rank_leaves_its_message_and_prints_nothing(
    tmp_path: Path,
    settings: DictConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    task = {"config": OmegaConf.to_yaml(settings), "run": "r", "resume": False, "logging": None}
    monkeypatch.setattr(processes, "read_task", lambda _: task)
    monkeypatch.setattr(processes, "exit_with_parent", lambda _: None)

    def refuse(_: Job) -> None:
        raise ConfigError("seed=7 is no good")

    assert run_rank([f"launched={tmp_path}"], refuse) == 1
    ending = RankExit.read(tmp_path, 0)
    assert ending is not None
    assert (ending.code, ending.message) == (1, "seed=7 is no good")
    assert "in refuse" in ending.trace
    assert capfd.readouterr() == ("", "")


def test_only_the_word_of_a_launch_makes_a_rank() -> None:
    assert is_launched(["launched=/tmp/x"])
    assert not is_launched(["+experiment=smoke", "name=launched=1"])


def test_the_first_process_of_torchrun_keeps_its_folder_and_the_others_have_none() -> None:
    assert words_of_rank({}) == []
    assert words_of_rank({**TORCHRUN, "RANK": "0"}) == []
    other = words_of_rank(TORCHRUN)
    assert "hydra.output_subdir=null" in other
    assert "hydra.run.dir=." in other


def test_every_process_takes_the_folder_of_the_first(tmp_path: Path) -> None:
    settings = OmegaConf.create({"seed": 1})

    def work(rank: int) -> tuple[str, int]:
        own = tmp_path if rank == 0 else tmp_path / "of_its_own"
        job = processes._agreed(Job(settings, own, resume=False))
        return str(job.run), job.config.seed

    assert in_group_of(2, work, tmp_path) == [(str(tmp_path), 1)] * 2


def test_settings_that_differ_stop_all(tmp_path: Path) -> None:
    def work(rank: int) -> Job:
        return processes._agreed(Job(OmegaConf.create({"seed": rank // 2}), tmp_path, resume=False))

    found = in_group_of(3, work, tmp_path)
    assert [type(one) for one in found] == [RankError] * 3
    assert str(found[0]).startswith("the hashes of the settings differ between the ranks: ")
    assert "ranks 0, 1 have " in str(found[2])
    assert "; rank 2 has " in str(found[2])


def test_a_folder_that_another_machine_cannot_see_is_refused(tmp_path: Path) -> None:
    def work(_: int) -> Job:
        return processes._agreed(Job(OmegaConf.create({}), tmp_path / "elsewhere", resume=False))

    found = in_group_of(2, work, tmp_path)
    assert str(found[1]).startswith(f"rank 0, 1 cannot see the run folder {tmp_path}/elsewhere")
    assert "hydra.run.dir=FOLDER" in str(found[1])


def test_a_sweep_under_torchrun_is_refused(
    tmp_path: Path, settings: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_is_sweep", lambda: True)
    with pytest.raises(ConfigError, match="a sweep cannot be run under torchrun or srun"):
        start(Job(settings, tmp_path, resume=False), lambda _: None, module="none")
    assert os.environ["RANK"] == "3"


def test_a_process_of_a_whole_job_starts_its_ranks_and_knows_no_other(
    tmp_path: Path, settings: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {
        "config": OmegaConf.to_yaml(settings),
        "run": "r",
        "resume": True,
        "logging": {"root": None},
    }
    monkeypatch.setattr(processes, "read_task", lambda _: {**task, "module": "verb"})
    monkeypatch.setattr(processes, "exit_with_parent", lambda _: None)
    for name in ("ROBUST_FIN_RANK", "ROBUST_FIN_WORLD", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    given: dict[str, Any] = {}

    def started(job: Job, work: Any, **more: Any) -> None:  # noqa: ARG001
        given.update(run=job.run, resume=job.resume, **more)

    monkeypatch.setattr(processes, "start", started)
    assert run_rank([f"launched={tmp_path}"], lambda _: None) == 0
    assert given == {"run": Path("r"), "resume": True, "module": "verb", "logging": {"root": None}}
    assert not {"ROBUST_FIN_RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(os.environ)


def test_a_rank_that_finds_another_world_than_its_settings_ask_for_ends(
    tmp_path: Path, settings: DictConfig
) -> None:
    job = Job(settings, tmp_path, resume=False)
    alone = RankInfo(0, 3, 0, f"file://{tmp_path / 'store'}", "this run")
    with pytest.raises(ConfigError, match=r"this run started 3 processes, but trainer.devices=2"):
        processes._take_part(job, lambda _: pytest.fail("trained"), alone)
