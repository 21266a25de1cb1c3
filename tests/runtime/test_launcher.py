import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robust_fin.errors import Interrupted
from robust_fin.runtime.launcher import launch
from robust_fin.runtime.process_state import RankError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ranks are started on POSIX systems")
ADVICE = "Start again"
PATIENCE = 120.0  # seconds; a shared machine can be slow


def ranks(folder: Path, *actions: str, rank_timeout: float = math.inf, **environment: str) -> None:
    launch(
        "tests.runtime.rank_job",
        {"out": str(folder), "actions": actions},
        processes=len(actions),
        environment=environment,
        advice=ADVICE,
        rank_timeout=rank_timeout,
    )


def reports(folder: Path, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + PATIENCE
    paths = [folder / f"rank_{number}.json" for number in range(count)]
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [json.loads(path.read_text()) for path in paths]


def in_thread(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def has_ended(pid: int) -> bool:
    """Return True if the process has ended, even if it is a zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_every_rank_gets_its_rank_and_environment(tmp_path: Path) -> None:
    ranks(tmp_path, "end", "end", "end", HIP_VISIBLE_DEVICES="0,1")
    found = [one["environ"] for one in reports(tmp_path, 3)]
    assert [one["ROBUST_FIN_RANK"] for one in found] == ["0", "1", "2"]
    assert [one["LOCAL_RANK"] for one in found] == ["0", "1", "2"]
    assert {one["ROBUST_FIN_WORLD"] for one in found} == {"3"}
    assert {one["WORLD_SIZE"] for one in found} == {"3"}
    assert {one["HIP_VISIBLE_DEVICES"] for one in found} == {"0,1"}
    assert "HIP_VISIBLE_DEVICES" not in os.environ
    folders = {one["argv"][1] for one in reports(tmp_path, 3)}
    assert len(folders) == 1
    assert not Path(folders.pop().partition("=")[2]).exists()


def test_single_process_gets_no_rank_variables(tmp_path: Path) -> None:
    ranks(tmp_path, "end", PYTORCH_ROCM_ARCH="gfx1100")
    (found,) = reports(tmp_path, 1)
    assert found["environ"]["PYTORCH_ROCM_ARCH"] == "gfx1100"
    assert not {"LOCAL_RANK", "ROBUST_FIN_RANK", "WORLD_SIZE"} & set(found["environ"])


def test_ranks_do_not_inherit_variables_of_another_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    ranks(tmp_path, "end", "end")
    for one in reports(tmp_path, 2):
        assert not {"SLURM_NTASKS", "TORCHELASTIC_RUN_ID"} & set(one["environ"])


@pytest.mark.parametrize("killed_rank", [0, 1])
def test_killed_rank_stops_all_ranks_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_rank: int
) -> None:
    monkeypatch.setattr("robust_fin.runtime.launcher._GRACE_SECONDS_KILLED", 0.2)
    killed: dict[str, Any] = {}

    def kill() -> None:
        killed["pids"] = [one["pid"] for one in reports(tmp_path, 3)]
        killed["at"] = time.monotonic()
        os.kill(killed["pids"][killed_rank], signal.SIGKILL)

    thread = in_thread(kill)
    with pytest.raises(RankError) as caught:
        ranks(tmp_path, "wait", "wait", "wait")
    seconds = time.monotonic() - killed["at"]
    thread.join()
    pid = killed["pids"][killed_rank]
    assert str(caught.value) == (
        f"rank {killed_rank} of 3 (process {pid}) was killed by SIGKILL (the kernel does this when "
        "memory runs out); the other ranks were stopped. Start again"
    )
    assert seconds < 20
    assert all(has_ended(one) for one in killed["pids"])


def test_error_on_all_ranks_is_reported_once_without_prefix(tmp_path: Path) -> None:
    with pytest.raises(RankError) as caught:
        ranks(tmp_path, "config_error", "config_error")
    assert str(caught.value) == "rank 0 has a wrong setting"
    assert "ConfigError: rank 0 has a wrong setting" in caught.value.__notes__[0]


def test_user_error_takes_precedence_over_a_crash(tmp_path: Path) -> None:
    with pytest.raises(RankError) as caught:
        ranks(tmp_path, "crash", "config_error")
    assert str(caught.value) == "rank 1 has a wrong setting"


def test_unexpected_error_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed \(exit code 1\)") as caught:
        ranks(tmp_path, "end", "crash")
    assert "ZeroDivisionError: rank 1 divides by zero" in caught.value.__notes__[0]


def test_rank_that_exits_without_a_record_is_reported_with_its_last_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed \(exit code 3\)") as caught:
        ranks(tmp_path, "end", "exit")
    assert caught.value.__notes__ == ["last output"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_forwarded_to_all_ranks(tmp_path: Path, number: signal.Signals) -> None:
    def interrupt() -> None:
        reports(tmp_path, 2)
        os.kill(os.getpid(), number)

    thread = in_thread(interrupt)
    before = signal.getsignal(number)
    # a rank without its own SIGTERM handler is ended by the signal
    message = "stopped after step 7" if number == signal.SIGINT else "stopped"
    with pytest.raises(Interrupted, match=rf"^{message}$"):
        ranks(tmp_path, "listen", "listen")
    thread.join()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("grace", [0.2, 1e9])
def test_unresponsive_rank_is_killed_after_the_grace_period_or_second_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    monkeypatch.setattr("robust_fin.runtime.launcher._GRACE_SECONDS_ASKED", grace)

    def interrupt() -> None:
        pids = [one["pid"] for one in reports(tmp_path, 2)]
        os.kill(os.getpid(), signal.SIGINT)
        while not has_ended(pids[0]):
            time.sleep(0.02)
        if grace > 1:
            os.kill(os.getpid(), signal.SIGINT)

    thread = in_thread(interrupt)
    with pytest.raises(Interrupted, match=r"^stopped after step 7$"):
        ranks(tmp_path, "listen", "ignore_sigint")
    thread.join()


def test_ranks_exit_with_their_parent(tmp_path: Path) -> None:
    task = {"out": str(tmp_path), "actions": ["wait", "wait"]}
    script = (
        "from robust_fin.runtime.launcher import launch;"
        f"launch('tests.runtime.rank_job', {task}, processes=2, environment={{}}, advice='')"
    )
    starter = subprocess.Popen([sys.executable, "-c", script])
    found = reports(tmp_path, 2)
    pids, folder = [one["pid"] for one in found], Path(found[0]["argv"][1].partition("=")[2])
    assert folder.is_dir()
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + PATIENCE
    while not all(has_ended(one) for one in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not folder.exists()


def test_stopped_rank_is_named_and_ends_the_others(tmp_path: Path) -> None:
    def stop() -> None:
        os.kill(reports(tmp_path, 2)[1]["pid"], signal.SIGSTOP)

    thread = in_thread(stop)
    with pytest.raises(RankError, match=r"rank 1 of 2 \(process \d+\) gave no sign of .*Start"):
        ranks(tmp_path, "wait", "wait", rank_timeout=4.0)
    thread.join()
    assert all(has_ended(one["pid"]) for one in reports(tmp_path, 2))
