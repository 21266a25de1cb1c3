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
from robust_fin.runtime.terminal import command_hint

UNFINISHED = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def replacing(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path; when the block ends without an error, it replaces `path` atomically.

    The temporary file lies beside `path` and is synced before the rename, so that no partial file
    ever has the final name. It is removed if the block fails.

    Args:
        path: the file; its folder exists.
        previous: rename the old file to this path; None discards it.

    Raises:
        OSError: writing failed; the old file is untouched.
    """
    part = path.with_name(path.name + UNFINISHED)
    part.unlink(missing_ok=True)  # a link of this name would be followed
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_atomic(path: Path, content: bytes | memoryview, *, previous: Path | None = None) -> None:
    """Replace a file atomically; see `replacing`.

    Args:
        path: the file; its folder exists.
        content: of the file.
        previous: rename the old file to this path; None discards it.

    Raises:
        OSError: writing failed; the old file is untouched.
    """
    with replacing(path, previous=previous) as part:
        part.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically; NaN is refused."""
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def null_for_nan(value: Any) -> Any:
    """Replace non-finite floats by None, in nested dicts and lists too, as JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: null_for_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_partial_files(folder: Path) -> None:
    """Delete the temporary files that a killed process left behind."""
    for part in folder.glob(f"*{UNFINISHED}"):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_full_disk(run: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" into a DiskFullError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            f"the disk is full: {error.filename or 'a file of the run'} could not be written "
            f"({error.strerror}). Files written before are complete. Free some space, then "
            f"continue with {command_hint('train', 'resume', run)}"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Sync the folder's entries where the operating system supports it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
