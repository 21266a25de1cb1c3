"""Jobs through submitit: with its local executor, and with scripts in place of SLURM's commands."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException

from robust_fin import train
from robust_fin.errors import ConfigError
from robust_fin.sweeps import hydra_sweeper
from robust_fin.sweeps.slurm import SlurmExecutor
from tests.bars import config, instantiate
from tests.sweeps.fake_slurm import FakeSlurm
from tests.sweeps.submissions import code, processes_of, submit, sweep, until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="SLURM runs on Linux"),
]


def executor(*words: str) -> SlurmExecutor:
    made = instantiate(config("executor=submitit", *words).executor)
    assert isinstance(made, SlurmExecutor)
    return made


@pytest.fixture
def local() -> Iterator[SlurmExecutor]:
    submitit = executor("executor.cluster=local")
    yield submitit
    submitit.close()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def submitted(slurm: FakeSlurm) -> Iterator[SlurmExecutor]:  # noqa: ARG001
    submitit = executor()
    yield submitit
    submitit.close()


def log(run: Path) -> str:
    return (run / "output.log").read_text()


@pytest.mark.parametrize("words", [("executor.cluster=local",), ()], ids=["local", "slurm"])
def test_a_sweep_with_a_failing_job(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(hydra_sweeper, "show_summary", lambda _, complete: None)  # noqa: ARG005
    exit_code, table = sweep("submitit", tmp_path / "sweep", "seed=7,13", "sweep.workers=2", *words)
    assert exit_code == 1
    assert table["state"].tolist() == ["finished", "failed"]
    assert table.loc[1, "reason"] == "the loss is nan at step 3"
    assert table.loc[0, "val/skill"] == 0.01
    assert log(tmp_path / "sweep/0").startswith(f"resume False, cwd {Path.cwd()}, None\n")
    assert "tasks None" in log(tmp_path / "sweep/0")
    assert not list((tmp_path / "sweep").rglob("*.pkl"))
    assert (slurm.folder / "calls").exists() == (not words)


def test_local_jobs_are_stopped_and_killed(local: SlurmExecutor, tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    jobs = [submit(local, run, seed=0) for run in runs]
    for run in runs:
        until((run / "held").exists)
    jobs[0].stop()
    jobs[1].kill()
    assert code(jobs[0]) == 130
    assert code(jobs[1]) in (1, -signal.SIGKILL)  # depends on when submitit sees it
    assert (runs[0] / "checkpoints/last.ckpt").read_text() == "asked 1 times"
    assert not (runs[1] / "checkpoints").exists()
    until(lambda: not processes_of(tmp_path))
    jobs[0].stop()
    jobs[1].kill()


def test_stop_signals_running_jobs_and_cancels_pending_jobs(
    submitted: SlurmExecutor, slurm: FakeSlurm, tmp_path: Path
) -> None:
    first = submit(submitted, tmp_path / "a", seed=0)
    until((tmp_path / "a/held").exists)
    (slurm.folder / "full").touch()
    second = submit(submitted, tmp_path / "b", seed=0)
    assert [first.poll(), second.poll()] == [None, None]
    first.stop()
    second.stop()
    assert code(first) == 130
    assert (tmp_path / "a/checkpoints/last.ckpt").read_text() == "asked 1 times"
    assert slurm.state(102) == "CANCELLED by 0"
    assert "scancel --signal=USR1 101" in slurm.calls("scancel")


def test_a_job_that_ended_without_a_result_is_reported_in_its_log(
    submitted: SlurmExecutor, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_fin.sweeps.slurm._RESULT_SECONDS", 0.0)
    (slurm.folder / "full").touch()
    job = submit(submitted, tmp_path / "a", seed=7)
    (slurm.folder / "101.state").write_text("OUT_OF_MEMORY")
    job.job.watcher.clear()  # type: ignore[attr-defined]
    assert code(job) == 1
    assert log(tmp_path / "a").startswith("SLURM reports that job 101 ended (OUT_OF_MEMORY), but")


def test_a_job_at_its_time_limit_is_requeued_and_resumes(
    submitted: SlurmExecutor, slurm: FakeSlurm, tmp_path: Path
) -> None:
    job = submit(submitted, tmp_path / "a", seed=0)
    until((tmp_path / "a/held").exists)
    slurm.signal(101, signal.SIGUSR2)
    assert code(job) == 0
    assert slurm.calls("scontrol") == ["scontrol requeue 101"]
    lines = [line for line in log(tmp_path / "a").splitlines() if line.startswith("resume")]
    assert lines == [f"resume {one}, cwd {Path.cwd()}, seven" for one in (False, True)]
    assert (tmp_path / "a/checkpoints/last.ckpt").read_text() == "asked 1 times"


@pytest.mark.slow
def test_a_job_without_requeues_left_ends_with_its_checkpoint(
    slurm: FakeSlurm, tmp_path: Path
) -> None:
    submitit = executor("executor.requeues=0", "executor.timeout_min=1")
    job = submit(submitit, tmp_path / "a", seed=0)
    until((tmp_path / "a/held").exists)
    slurm.signal(101, signal.SIGUSR2)
    assert code(job) == 1
    assert (tmp_path / "a/checkpoints/last.ckpt").exists()
    assert "timed-out too many times" in log(tmp_path / "a")
    submitit.close()


def test_the_job_of_a_killed_sweep_is_cancelled_and_waited_for(
    submitted: SlurmExecutor, slurm: FakeSlurm, tmp_path: Path
) -> None:
    submit(submitted, tmp_path / "a", seed=0)
    until((tmp_path / "a/held").exists)
    job = submit(submitted, tmp_path / "a", seed=7)
    assert code(job) == 0
    assert "scancel 101" in slurm.calls("scancel")
    assert "#SBATCH --dependency=afterany:101" in slurm.script(102)
    slurm.wait_for_end(101)


def test_every_setting_is_in_the_script(slurm: FakeSlurm, tmp_path: Path) -> None:
    submitit = executor(
        "executor.partition=short", "executor.account=desk", "executor.qos=low",
        "executor.constraint=h200", "executor.timeout_min=90", "executor.cpus_per_task=4",
        "executor.mem_gb=7.5", "executor.gpus_per_node=2", "executor.signal_delay_s=60",
        "executor.setup=[module load cuda,ulimit -n 4096]",
        "+executor.additional_parameters={mail-type:FAIL}",
    )  # fmt: skip
    (slurm.folder / "full").touch()
    submit(submitit, tmp_path / "a", seed=7)
    submitit.close()
    lines = slurm.script(101)
    files = tmp_path / "a/.submitit/%j_0_log"
    assert [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")] == [
        "account=desk", "constraint=h200", "cpus-per-task=4", f"error={files}.err",
        "gpus-per-node=2", "job-name=fake-7", "mail-type=FAIL", "mem=7680MB", "nodes=1",
        "ntasks-per-node=1", "open-mode=append", f"output={files}.out", "partition=short",
        "qos=low", "signal=USR2@60", "time=90", "wckey=submitit",
    ]  # fmt: skip
    setup = lines.index("# setup")
    assert lines[setup + 1 : setup + 3] == ["module load cuda", "ulimit -n 4096"]


def test_null_settings_are_not_in_the_script(slurm: FakeSlurm, tmp_path: Path) -> None:
    submitit = executor("executor.mem_gb=null")
    (slurm.folder / "full").touch()
    submit(submitit, tmp_path / "a", seed=7)
    submitit.close()
    names = {line.partition("=")[0] for line in slurm.script(101) if line.startswith("#SBATCH")}
    left = ("mem", "partition", "account", "qos", "constraint", "gpus-per-node")
    assert not {f"#SBATCH --{name}" for name in left} & names


def submit_error(tmp_path: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        submit(executor(*words), tmp_path / "a", seed=7)
    return str(caught.value)


def test_a_machine_without_slurm_raises(tmp_path: Path) -> None:
    message = submit_error(tmp_path)
    assert message.startswith(
        "executor=submitit needs a machine that can submit jobs to a SLURM cluster"
    )
    assert message.endswith("To try it without SLURM, use executor.cluster=local")


def test_a_job_rejected_by_slurm_raises(tmp_path: Path, slurm: FakeSlurm) -> None:
    path = slurm.folder / "bin/sbatch"
    path.write_text('#!/bin/bash\necho "sbatch: error: invalid partition: nosuch" >&2; exit 1\n')
    message = submit_error(tmp_path, "executor.partition=nosuch")
    assert message.startswith("SLURM rejects the job: sbatch: error: invalid partition: nosuch")


def test_an_unknown_cluster_raises() -> None:
    with pytest.raises(InstantiationException, match="cluster=moon must be slurm or local"):
        executor("executor.cluster=moon")


@pytest.mark.slow
def test_real_runs_equal_those_of_the_local_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_FIN_LEDGER", str(tmp_path / "trials.jsonl"))
    words = ["+experiment=smoke", "cache.folder=null", "report.pictures=false", "seed=0,1"]
    words += ["trainer.enable_progress_bar=false"]
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder, where in zip(folders, ("local", "submitit"), strict=True):
        cluster = ["executor.cluster=local"] if where == "submitit" else []
        base = [f"hydra.sweep.dir={folder}", f"executor={where}", *cluster, "-m"]
        assert train.main([*words, *base]) == 0
    assert metrics(folders[0]) == metrics(folders[1])


def metrics(folder: Path) -> list[dict[str, Any]]:
    every = [json.loads((folder / name / "metrics.json").read_text()) for name in ("0", "1")]
    timed = ("seconds", "per_second")
    return [{k: v for k, v in one.items() if not k.endswith(timed)} for one in every]
