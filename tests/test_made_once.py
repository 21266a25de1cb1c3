"""What workers of one test run share."""

import multiprocessing
import time
from pathlib import Path

import pytest

from tests.made_once import made_once


class Factory:
    """Stands for the factory of a worker."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def getbasetemp(self) -> Path:
        return self.base


def fill(folder: Path) -> None:
    folder.mkdir()
    time.sleep(0.3)
    with (folder.parent / "made.txt").open("a") as file:
        file.write("made\n")


def ask(base: str) -> None:
    folder = made_once(Factory(Path(base)), "shared", fill)
    assert (folder.parent / "made.txt").read_text() == "made\n"


def test_workers_that_ask_at_the_same_time_share_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    context = multiprocessing.get_context("fork")
    workers = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        workers.append(context.Process(target=ask, args=(str(tmp_path / str(number)),)))
        workers[-1].start()
    for one in workers:
        one.join(60)
        assert one.exitcode == 0


def test_a_folder_that_failed_is_made_by_the_next_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    factory = Factory(tmp_path)
    with pytest.raises(ZeroDivisionError):
        made_once(factory, "shared", lambda _: 1 / 0)
    assert made_once(factory, "shared", fill) == tmp_path / "shared"
    assert made_once(factory, "shared", lambda _: 1 / 0) == tmp_path / "shared"
