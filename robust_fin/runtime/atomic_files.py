"""Files that are written whole or not at all, whatever fails meanwhile."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robust_fin.errors import DiskFullError

UNFINISHED = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, content: bytes | memoryview, *, previous: Path | None = None) -> None:
    """Write a file of that name in place of the one before.

    The content goes to a file beside it and to the disk before that takes the name, so that at no
    moment a part of it bears the name.

    Args:
        path: in a folder that exists.
        content: of the file.
        previous: name that the file before is kept under; None drops it.

    Raises:
        OSError: it could not be written; the file before is as it was.
    """
    part = path.with_name(path.name + UNFINISHED)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    _sync_names(path.parent)


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process did not finish writing."""
    for part in folder.glob(f"*{UNFINISHED}"):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_full_disk(run: Path) -> Iterator[None]:
    """Turn the operating system's word for a full disk into an error that says what to do.

    Raises:
        DiskFullError: no space is left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            f"the disk is full: {error.filename or 'a file of the run'} could not be written "
            f"({error.strerror}). What was written before it is whole; free some space, then "
            f"python -m robust_fin.train resume={run} goes on"
        ) from error


def null_for_nan(metrics: Mapping[str, float | int | None]) -> dict[str, float | int | None]:
    """What metrics.json holds: what could not be computed is null, never 0 and never NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write at once or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _sync_names(folder: Path) -> None:
    """Bring the new names to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
