"""Tests of folders shared by the workers of a test run."""

import multiprocessing
import time
from pathlib import Path

import pytest

from tests.made_once import made_once


class Factory:
    """Stand-in for the TempPathFactory of a worker."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def getbasetemp(self) -> Path:
        return self.base


def fill(folder: Path) -> None:
    folder.mkdir()
    time.sleep(0.3)
    with (folder.parent / "made.txt").open("a") as file:
        file.write("made\n")


def make_shared(base: str) -> None:
    folder = made_once(Factory(Path(base)), "shared", fill)
    assert (folder.parent / "made.txt").read_text() == "made\n"


def test_concurrent_workers_share_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    context = multiprocessing.get_context("fork")
    workers = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        workers.append(context.Process(target=make_shared, args=(str(tmp_path / str(number)),)))
        workers[-1].start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


def test_failed_folder_is_made_by_the_next_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    factory = Factory(tmp_path)
    with pytest.raises(ZeroDivisionError):
        made_once(factory, "shared", lambda _: 1 / 0)
    assert made_once(factory, "shared", fill) == tmp_path / "shared"
    assert made_once(factory, "shared", lambda _: 1 / 0) == tmp_path / "shared"
