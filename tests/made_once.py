"""Folders made once per test run and shared by all pytest-xdist workers."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PATIENCE = 900.0  # seconds; a shared machine can be slow


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder `name` of this test run; the first caller makes it, the others wait.

    Args:
        factory: the session's factory of temporary folders.
        name: name of the folder.
        make: creates and fills the folder at the given path.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # shared by the workers; each has its own folder below it
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
