"""Folders that one worker of a test run makes and all workers read."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PATIENCE = 300.0  # seconds


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this test run; the first worker to ask makes it, others wait for it.

    Args:
        factory: of the session.
        name: of the folder.
        make: fills the folder that it is given; the folder is not there yet.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of the whole run: each worker has its own below it
    folder, done, lock = (base / f"{name}{ending}" for ending in ("", ".done", ".lock"))
    deadline = time.monotonic() + PATIENCE
    while not done.exists():
        assert time.monotonic() < deadline, f"another worker has not finished {folder}"
        try:
            lock.mkdir()
        except FileExistsError:
            time.sleep(0.05)
            continue
        try:
            if not done.exists():
                make(folder)
                done.touch()
        finally:
            lock.rmdir()
    return folder
