"""Files written whole or not at all, folders with one writer, and cache folders with our mark."""

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from robust_fin.errors import ConfigError, DiskFullError
from robust_fin.runtime.terminal import command_hint

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

UNFINISHED, LOCK = ".part", ".lock"
LOCK_SECONDS, _POLL_SECONDS = 30.0, 0.05
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_locked = set[tuple[Path, int]]()  # folders locked by this process, with the thread's number


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


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Be the only writer of a folder until the context or the process ends.

    A nested lock of the same thread is part of the first. A read-only folder is not locked: nobody
    can write to it. On Windows no folder is locked.

    Raises:
        ConfigError: another command or thread holds the lock.
    """
    owner = (folder.resolve(), threading.get_ident())
    if owner in _locked:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((folder / LOCK).open("ab"))
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        else:
            if not _try_lock(file.fileno(), shared=False):
                raise ConfigError(
                    f"another command is working in {folder}. Wait until it ends, or stop it with "
                    "Ctrl-C"
                )
        _locked.add(owner)
        stack.callback(_locked.discard, owner)
        yield


@contextlib.contextmanager
def open_locked(path: Path, flags: int) -> Iterator[int]:
    """Open a file that several commands write, with a lock: shared unless `flags` appends.

    Raises:
        ConfigError: another command has held the lock for LOCK_SECONDS.
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, flags, 0o644)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor, shared=not flags & os.O_APPEND):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another command has held the lock of {path} for {LOCK_SECONDS:g} s. Find the "
                    "process that has the file open (lsof), and continue or stop it"
                )
            time.sleep(_POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)  # releases the lock


def _try_lock(descriptor: int, *, shared: bool) -> bool:
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def create_folder(path: Path) -> Path:
    """Create a new folder and return it; a taken name gets the suffix -2, -3, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("the numbers do not end")


def _sync_folder(folder: Path) -> None:
    """Sync the folder's entries where the operating system supports it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


CACHE_TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
_TAG_TEXT = f"{_SIGNATURE}\n# A cache of robust_fin; it can be deleted at any time.\n"


def claim_cache_folder(folder: Path, *, setting: str, is_entry: Callable[[str], object]) -> None:
    """Create a folder for a cache and mark it with CACHEDIR.TAG.

    A folder without the mark is accepted if it is empty or holds nothing but cache entries.

    Args:
        folder: of the cache.
        setting: key that names the folder, for the message.
        is_entry: is true for the name of an entry of this cache.

    Raises:
        ConfigError: the folder holds other files and is not marked.
        OSError: the folder cannot be written.

    Source: the Cache Directory Tagging Specification, version 0.5 (bford.info/cachedir).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tag = folder / CACHE_TAG
    if tag.is_file() and tag.read_text(encoding="utf-8", errors="replace").startswith(_SIGNATURE):
        return
    other = sorted(x.name for x in folder.iterdir() if x.name != CACHE_TAG and not is_entry(x.name))
    if other:
        raise ConfigError(
            f"{setting}={folder} holds files that are no cache ({len(other)}, such as {other[0]}); "
            "a cache deletes old entries, so give it a new or empty folder of its own"
        )
    with contextlib.suppress(FileExistsError), tag.open("x", encoding="utf-8") as file:
        file.write(_TAG_TEXT)  # another process may mark the folder at the same time


def remove_written_files(folder: Path, *, suffixes: Collection[str]) -> bool:
    """Remove a folder of files, if it holds nothing else; return whether it is gone.

    Symbolic links are neither followed nor removed, and files with other suffixes stay.

    Args:
        folder: holds files only.
        suffixes: of the files that were written there, such as {".npy"}.
    """
    if folder.is_symlink() or not folder.is_dir():
        return False
    for path in folder.iterdir():
        if path.suffix in suffixes and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:  # something else is in it
        return False
    return True


def trim_cache(
    entries: Iterable[Path], *, manifest: str, suffixes: Collection[str], max_bytes: float
) -> None:
    """Remove the least recently used entries of a cache beyond its size.

    Other processes may remove the same entries meanwhile.

    Args:
        entries: folders; those without a manifest, and symbolic links, are left alone.
        manifest: name of the file that a finished entry holds.
        suffixes: of the files of an entry.
        max_bytes: size of the entries to keep.
    """
    sizes = []
    for path in entries:
        if path.is_symlink() or not (path / manifest).is_file():
            continue
        with contextlib.suppress(FileNotFoundError):
            size = sum(file.lstat().st_size for file in path.iterdir())
            sizes.append((path.stat().st_mtime, size, path))
    total = 0
    for _, size, path in sorted(sizes, reverse=True):
        total += size
        if total > max_bytes:
            log.info("removing %s: the cache has reached its size", path)
            remove_written_files(path, suffixes=suffixes)
