import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from robust_fin.sweeps.local import LocalExecutor, LocalJob

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
    one = LocalExecutor()
    yield one
    one.close()


def started(local: LocalExecutor, log: Path, text: str, **environment: str) -> LocalJob:
    return local.start(("-c", text), environment=environment, log=log, name="job")


def code(job: LocalJob) -> int:
    deadline = time.monotonic() + 30
    while (found := job.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def wait_for_text(log: Path) -> None:
    deadline = time.monotonic() + 30
    while not log.exists() or "ready" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_writes_both_streams_into_its_log(local: LocalExecutor, tmp_path: Path) -> None:
    text = "import os, sys; print(os.environ['TOLD']); sys.exit(os.environ['TOLD'])"
    (tmp_path / "log").write_text("before\n")
    assert code(started(local, tmp_path / "log", text, TOLD="seven")) == 1
    assert (tmp_path / "log").read_text() == "before\nseven\nseven\n"
    assert "TOLD" not in os.environ


def test_a_job_is_asked_and_killed(local: LocalExecutor, tmp_path: Path) -> None:
    jobs = [started(local, tmp_path / name, LISTEN) for name in ("a", "b")]
    for name in ("a", "b"):
        wait_for_text(tmp_path / name)
    assert [job.poll() for job in jobs] == [None, None]
    jobs[0].stop()
    jobs[1].kill()
    assert [code(job) for job in jobs] == [130, -signal.SIGKILL]
    jobs[0].stop()
    jobs[0].kill()


def test_none_outlives_the_executor(tmp_path: Path) -> None:
    local = LocalExecutor()
    job = started(local, tmp_path / "log", LISTEN)
    local.close()
    assert job.poll() == -signal.SIGKILL
