"""Jobs through Ray, on a Ray of one machine that lasts as long as a test."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from robust_fin import train
from robust_fin.errors import ConfigError
from robust_fin.sweeps import hydra_sweeper as plugin
from robust_fin.sweeps.local import Executor
from robust_fin.sweeps.ray_cluster import NodeJob, RayExecutor
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
    one = executor()
    yield one
    one.close()


def test_the_protocol_is_held() -> None:
    assert isinstance(executor(), Executor)


def test_a_sweep_of_which_one_job_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugin, "tell", lambda _, over: None)  # noqa: ARG005
    before = signal.getsignal(signal.SIGTERM)
    result, found = sweep("ray", tmp_path, "seed=7,13", "sweep.workers=2")
    assert result == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert found["state"].tolist() == ["finished", "failed"]
    assert found.loc[1, "reason"] == "the loss is nan at step 3"
    assert found.loc[0, "val/skill"] == 0.01
    assert (tmp_path / "0/output.log").read_text().startswith(f"resume False, cwd {Path.cwd()},")
    said = capfd.readouterr()
    assert all(line.startswith(("job 0", "job 1")) for line in said.out.splitlines())
    assert said.err.splitlines()[0].startswith("error: the loss is nan at step 3. So ended job 1")
    assert len(said.err.splitlines()) == 1
    until(lambda: not processes_of(Path("robust_fin_ray_")))


def test_a_missing_package_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["+experiment=smoke", f"hydra.sweep.dir={tmp_path}", "executor=ray", "seed=1,2", "-m"]
    assert train.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: executor=ray needs Ray (")
    assert 'pip install -c constraints.txt -e ".[ray]"' in said


def test_a_node_without_the_folder_says_so(tmp_path: Path) -> None:
    log = tmp_path / "nosuch/output.log"
    with pytest.raises(ConfigError, match=f"cannot see the folder {tmp_path / 'nosuch'}. Put it"):
        NodeJob().run(("-c", ""), {}, {}, log, str(tmp_path))


@pytest.mark.slow
def test_a_job_is_asked_to_stop_once_another_is_killed_and_one_waits(
    ray: RayExecutor, tmp_path: Path
) -> None:
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
def test_nothing_outlives_a_sweep_that_is_killed(tmp_path: Path) -> None:
    words = ["-m", "robust_fin.train", "+experiment=smoke", f"hydra.sweep.dir={tmp_path}"]
    words += [f"hydra.sweeper.verb={MODULE}", "executor=ray", "seed=1,2", "-m"]
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL) as process:
        until((tmp_path / "0/held").exists, seconds=90)
        process.kill()
    until(lambda: not processes_of(tmp_path), seconds=30)
    until(lambda: not processes_of(Path("robust_fin_ray_")), seconds=30)


@pytest.mark.slow
def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    for words, message in (
        (("executor.num_gpus=64",), "a job needs 64 GPU, and Ray found 0 on this machine"),
        (("executor.address=auto",), "executor.address=auto leads to no Ray cluster"),
    ):
        one = executor(*words)
        with pytest.raises(ConfigError, match=message):
            submit(one, tmp_path / "a", seed=7)
        one.close()
