"""Jobs as child processes: output, stop and kill."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from robust_fin.sweeps.executors import LocalExecutor, LocalJob

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
LISTEN = """
import sys, time
print("ready", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def local() -> Iterator[LocalExecutor]:
    executor = LocalExecutor()
    yield executor
    executor.close()


def start(local: LocalExecutor, log: Path, text: str, **environment: str) -> LocalJob:
    return local.start(("-c", text), environment=environment, log=log, name="job")


def wait_for_exit(job: LocalJob) -> int:
    deadline = time.monotonic() + 30
    while (code := job.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


def wait_for_text(log: Path) -> None:
    deadline = time.monotonic() + 30
    while not log.exists() or "ready" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_both_output_streams_are_appended_to_the_log(local: LocalExecutor, tmp_path: Path) -> None:
    text = "import os, sys; print(os.environ['GREETING']); sys.exit(os.environ['GREETING'])"
    (tmp_path / "log").write_text("before\n")
    assert wait_for_exit(start(local, tmp_path / "log", text, GREETING="seven")) == 1
    assert (tmp_path / "log").read_text() == "before\nseven\nseven\n"
    assert "GREETING" not in os.environ


def test_jobs_are_stopped_and_killed(local: LocalExecutor, tmp_path: Path) -> None:
    jobs = [start(local, tmp_path / name, LISTEN) for name in ("a", "b")]
    for name in ("a", "b"):
        wait_for_text(tmp_path / name)
    assert [job.poll() for job in jobs] == [None, None]
    jobs[0].stop()
    jobs[1].kill()
    assert [wait_for_exit(job) for job in jobs] == [130, -signal.SIGKILL]
    jobs[0].stop()
    jobs[0].kill()


def test_no_job_outlives_the_executor(tmp_path: Path) -> None:
    local = LocalExecutor()
    job = start(local, tmp_path / "log", LISTEN)
    local.close()
    assert job.poll() == -signal.SIGKILL
