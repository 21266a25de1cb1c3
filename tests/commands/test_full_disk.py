"""A full disk ends a run with one message and keeps the previous checkpoint."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robust_fin import train
from robust_fin.training.recovery.checkpoint_files import LAST, PREVIOUS, read_checkpoint
from tests.background_runs import SMALL, BackgroundRun, run_to_end
from tests.full_disk import FullAfter
from tests.run_comparison import assert_equal_runs

pytestmark = pytest.mark.processes

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB in memory; skips if this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no mount")
    if done.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def kept_steps(run: Path) -> list[int]:
    """Return the steps of last.ckpt and previous.ckpt, which must be intact."""
    paths = [run / "checkpoints" / name for name in (LAST, PREVIOUS)]
    return [read_checkpoint(path)["global_step"] for path in paths]


def fill(path: Path) -> None:
    """Fill the disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))


def test_run_on_a_full_disk_resumes_after_space_is_freed(
    undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    run, log = small_disk / "run", tmp_path / "run.log"
    cache = undisturbed.parent / "cache"
    process = BackgroundRun([*SMALL, f"hydra.run.dir={run}", f"cache.folder={cache}"], log=log)
    process.wait_for(run / "checkpoints/previous.ckpt")
    fill(small_disk / "filler")
    assert process.exit_code() == 1
    assert "error: the disk is full: " in process.output(), process.output()
    assert f"resume={run}" in process.output()
    assert "Traceback" not in process.output()
    assert not (run / "metrics.json").exists()
    last, previous = kept_steps(run)
    assert last - previous == 5
    (small_disk / "filler").unlink()
    run_to_end([f"resume={run}"], log=log)
    assert_equal_runs(undisturbed, run)


def test_checkpoint_without_space_keeps_the_previous_one(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """The third checkpoint fits only in part."""
    opened, written = Path.open, []

    def open_one(path: Path, *mode: Any, **more: Any) -> Any:
        file = opened(path, *mode, **more)
        if "wb" in (*mode, *more.values()):
            written.append(path.name)
        full = written.count("last.ckpt.part") == 3 and path.name == "last.ckpt.part"
        return FullAfter(file, 20_000) if full else file

    monkeypatch.setattr(Path, "open", open_one)
    run = tmp_path / "run"
    assert train.main([*SMALL, f"hydra.run.dir={run}", "cache.folder=null"]) == 1
    monkeypatch.undo()
    message = capfd.readouterr().err
    assert f"error: the disk is full: {run / 'checkpoints/last.ckpt'} could not" in message
    assert "Traceback" not in message
    assert kept_steps(run) == [10, 5]
    assert train.main([f"resume={run}"]) == 0
    assert_equal_runs(undisturbed, run)
