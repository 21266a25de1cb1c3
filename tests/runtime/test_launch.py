import json
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


def ranks(folder: Path, *words: str, **environment: str) -> None:
    launch(
        "tests.runtime.rank_job",
        {"out": str(folder), "words": words},
        processes=len(words),
        environment=environment,
        advice=ADVICE,
    )


def reports(folder: Path, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 30
    paths = [folder / f"rank_{number}.json" for number in range(count)]
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [json.loads(path.read_text()) for path in paths]


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def gone(pid: int) -> bool:
    """Whether a process has ended, be it unreaped."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_every_rank_starts_with_its_place_and_the_environment(tmp_path: Path) -> None:
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


def test_one_process_is_no_rank(tmp_path: Path) -> None:
    ranks(tmp_path, "end", PYTORCH_ROCM_ARCH="gfx1100")
    (found,) = reports(tmp_path, 1)
    assert found["environ"]["PYTORCH_ROCM_ARCH"] == "gfx1100"
    assert not {"LOCAL_RANK", "ROBUST_FIN_RANK", "WORLD_SIZE"} & set(found["environ"])


def test_what_another_starter_left_does_not_reach_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    ranks(tmp_path, "end", "end")
    for one in reports(tmp_path, 2):
        assert not {"SLURM_NTASKS", "TORCHELASTIC_RUN_ID"} & set(one["environ"])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    monkeypatch.setattr("robust_fin.runtime.launcher._GRACE_SECONDS_KILLED", 0.2)
    killed: dict[str, Any] = {}

    def kill() -> None:
        killed["ranks"] = [one["pid"] for one in reports(tmp_path, 3)]
        killed["at"] = time.monotonic()
        os.kill(killed["ranks"][victim], signal.SIGKILL)

    thread = meanwhile(kill)
    with pytest.raises(RankError) as caught:
        ranks(tmp_path, "wait", "wait", "wait")
    seconds = time.monotonic() - killed["at"]
    thread.join()
    pid = killed["ranks"][victim]
    assert str(caught.value) == (
        f"rank {victim} of 3 (process {pid}) was killed by SIGKILL (the kernel does this when "
        "memory runs out); the other ranks were stopped. Start again"
    )
    assert seconds < 20
    assert all(gone(one) for one in killed["ranks"])


def test_what_all_ranks_refuse_is_said_once_and_without_a_prefix(tmp_path: Path) -> None:
    with pytest.raises(RankError) as caught:
        ranks(tmp_path, "refuse", "refuse")
    assert str(caught.value) == "rank 0 refuses"
    assert "ConfigError: rank 0 refuses" in caught.value.__notes__[0]


def test_a_message_comes_before_the_traceback_that_follows_from_it(tmp_path: Path) -> None:
    with pytest.raises(RankError) as caught:
        ranks(tmp_path, "crash", "refuse")
    assert str(caught.value) == "rank 1 refuses"


def test_an_unforeseen_error_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed \(exit code 1\)") as caught:
        ranks(tmp_path, "end", "crash")
    assert "ZeroDivisionError: rank 1 divides by nothing" in caught.value.__notes__[0]


def test_a_rank_that_leaves_without_a_word_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed \(exit code 3\)") as caught:
        ranks(tmp_path, "end", "exit")
    assert caught.value.__notes__ == ["the last words"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_answered_by_all(tmp_path: Path, number: signal.Signals) -> None:
    def ask() -> None:
        reports(tmp_path, 2)
        os.kill(os.getpid(), number)

    thread = meanwhile(ask)
    before = signal.getsignal(number)
    # SIGTERM ends a rank that has no handler of its own
    told = "stopped after step 7" if number == signal.SIGINT else "stopped"
    with pytest.raises(Interrupted, match=rf"^{told}$"):
        ranks(tmp_path, "listen", "listen")
    thread.join()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("grace", [0.2, 1e9])
def test_a_rank_that_does_not_answer_ends_with_the_others_or_at_the_second_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    monkeypatch.setattr("robust_fin.runtime.launcher._GRACE_SECONDS_ASKED", grace)

    def ask() -> None:
        pids = [one["pid"] for one in reports(tmp_path, 2)]
        os.kill(os.getpid(), signal.SIGINT)
        while not gone(pids[0]):
            time.sleep(0.02)
        if grace > 1:
            os.kill(os.getpid(), signal.SIGINT)

    thread = meanwhile(ask)
    with pytest.raises(Interrupted, match=r"^stopped after step 7$"):
        ranks(tmp_path, "listen", "deaf")
    thread.join()


def test_ranks_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    task = {"out": str(tmp_path), "words": ["wait", "wait"]}
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
    deadline = time.monotonic() + 20
    while not all(gone(one) for one in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not folder.exists()
