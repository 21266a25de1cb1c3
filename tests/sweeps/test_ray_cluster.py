"""Jobs on Ray, with a Ray on this machine that lasts as long as the test."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from robust_fin.errors import ConfigError
from robust_fin.sweeps import hydra_sweeper
from robust_fin.sweeps.executors import RayExecutor, RayNodeJob
from tests.bars import config, instantiate
from tests.sweeps.fake_process_job import MODULE
from tests.sweeps.submissions import code, processes_of, submit, sweep, until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="tested on Linux"),
]


def executor(*words: str) -> RayExecutor:
    made = instantiate(config("executor=ray", *words).executor)
    assert isinstance(made, RayExecutor)
    return made


@pytest.fixture
def ray() -> Iterator[RayExecutor]:
    cluster = executor()
    yield cluster
    cluster.close()


def test_a_sweep_with_a_failing_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hydra_sweeper, "show_summary", lambda _, complete: None)  # noqa: ARG005
    before = signal.getsignal(signal.SIGTERM)
    exit_code, table = sweep("ray", tmp_path, "seed=7,13", "sweep.workers=2")
    assert exit_code == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert table["state"].tolist() == ["finished", "failed"]
    assert table.loc[1, "reason"] == "the loss is nan at step 3"
    assert table.loc[0, "val/skill"] == 0.01
    assert (tmp_path / "0/output.log").read_text().startswith(f"resume False, cwd {Path.cwd()},")
    output = capfd.readouterr()
    assert all(line.startswith(("job 0", "job 1")) for line in output.out.splitlines())
    assert output.err.splitlines()[0].startswith("error: job 1 failed: the loss is nan at step 3.")
    assert len(output.err.splitlines()) == 1
    until(lambda: not processes_of(Path("robust_fin_ray_")))


def test_a_node_without_the_folder_raises(tmp_path: Path) -> None:
    log = tmp_path / "nosuch/output.log"
    with pytest.raises(ConfigError, match=f"cannot see the folder {tmp_path / 'nosuch'}. Use"):
        RayNodeJob().run(("-c", ""), {}, {}, log, str(tmp_path))


@pytest.mark.slow
def test_jobs_are_stopped_killed_and_cancelled(ray: RayExecutor, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a", "b")]
    jobs = [submit(ray, run, seed=0) for run in runs]
    for run in runs:
        until((run / "held").exists, seconds=60)
    waiting = [
        submit(ray, tmp_path / f"c{number}", seed=0) for number in range(os.cpu_count() or 1)
    ]
    waiting[-1].stop()
    assert code(waiting[-1]) == 130
    jobs[0].stop()
    jobs[1].kill()
    assert [code(one) for one in jobs] == [130, 1]
    assert (runs[0] / "checkpoints/last.ckpt").read_text() == "asked 1 times"
    assert not (runs[1] / "checkpoints").exists()
    until(lambda: not processes_of(runs[1]))
    ray.close()
    until(lambda: not processes_of(tmp_path))


@pytest.mark.slow
def test_no_process_outlives_a_killed_sweep(tmp_path: Path) -> None:
    words = ["-m", "robust_fin.train", "+experiment=smoke", f"hydra.sweep.dir={tmp_path}"]
    words += [f"hydra.sweeper.verb={MODULE}", "executor=ray", "seed=1,2", "-m"]
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL) as process:
        until((tmp_path / "0/held").exists, seconds=90)
        process.kill()
    until(lambda: not processes_of(tmp_path), seconds=30)
    until(lambda: not processes_of(Path("robust_fin_ray_")), seconds=30)


@pytest.mark.slow
def test_missing_resources_and_clusters_raise(tmp_path: Path) -> None:
    for words, message in (
        (("executor.num_gpus=64",), "a job needs 64 GPU, but this machine has 0"),
        (("executor.address=auto",), "executor.address=auto leads to no Ray cluster"),
    ):
        cluster = executor(*words)
        with pytest.raises(ConfigError, match=message):
            submit(cluster, tmp_path / "a", seed=7)
        cluster.close()
