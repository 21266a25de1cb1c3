"""Prepared arrays kept on disk under the hash of all they depend on."""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_fin.data.arrays import (
    DamagedError,
    FolderArrays,
    MemoryArrays,
    Sink,
    open_arrays,
    remove,
    size_of,
)
from robust_fin.data.identity import key_of
from robust_fin.errors import ConfigError

log = logging.getLogger(__name__)

_UNFINISHED = ".unfinished-"
_SECONDS_ABANDONED = 86_400.0  # a build of a day ago will not go on


class Prepared(NamedTuple):
    """Arrays, and what else was found out with them.

    Attributes:
        arrays: by name; mapped into memory where they are kept on disk.
        described: as JSON holds it.
    """

    arrays: dict[str, np.ndarray]
    described: dict[str, Any]


Build = Callable[[Sink, Path], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of prepared arrays.

    Attributes:
        folder: where they lie, one folder an entry; None keeps nothing on disk.
        max_gb: the entries used longest ago are removed beyond so many gigabytes.
    """

    folder: str | None
    max_gb: float

    def __post_init__(self) -> None:
        """Refuse a size that keeps nothing."""
        if not self.max_gb > 0:
            raise ConfigError(
                f"cache.max_gb={self.max_gb} must be above 0; cache.folder=null keeps nothing"
            )

    def prepared(self, identity: Mapping[str, Any] | None, build: Build) -> Prepared:
        """The arrays of that identity, from disk or built.

        Args:
            identity: all that the arrays depend on; None where that cannot be told.
            build: writes the arrays into a sink, with an empty folder to scratch in, and returns
                what else there is to say of them.
        """
        if self.folder is None or identity is None:
            return _in_memory(build)
        folder = Path(self.folder).expanduser()
        entry = folder / key_of(identity)
        found = _opened(entry)
        if found is not None:
            return found
        try:
            folder.mkdir(parents=True, exist_ok=True)
            built = _built(folder, entry, build)
        except OSError as error:
            log.warning(
                "prepared arrays cannot be kept in cache.folder=%s (%s); they are made in memory",
                folder,
                error,
            )
            return _in_memory(build)
        _trim(folder, room=self.max_gb * 1e9, newest=entry)
        return built


NO_CACHE = Cache(None, 1.0)


def _in_memory(build: Build) -> Prepared:
    sink = MemoryArrays()
    with tempfile.TemporaryDirectory(prefix="robust_fin-") as scratch:
        described = build(sink, Path(scratch))
    return Prepared(sink.arrays(), dict(described))


def _opened(entry: Path) -> Prepared | None:
    if not entry.is_dir():
        return None
    try:
        found = Prepared(*open_arrays(entry))
        os.utime(entry)  # what is removed first is what was used longest ago
    except (DamagedError, OSError) as error:
        log.warning("cache entry %s is damaged (%s); it is removed and made anew", entry, error)
        remove(entry)
        return None
    log.info("prepared arrays from %s", entry)
    return found


def _built(folder: Path, entry: Path, build: Build) -> Prepared:
    """Write into a folder of its own and give it its name at the end, so that no half is seen."""
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as scratch:
            sink = FolderArrays(unfinished)
            described = build(sink, Path(scratch))
        sink.finish(described)
        try:
            unfinished.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster with the same arrays
                raise
        return Prepared(*open_arrays(entry))
    except DamagedError as error:
        raise OSError(str(error)) from error
    finally:
        remove(unfinished)


def _trim(folder: Path, *, room: float, newest: Path) -> None:
    """Other processes may be removing the same entries, so a missing one is passed over."""
    entries = []
    for one in folder.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            used, size = one.stat().st_mtime, size_of(one)
            if not one.name.startswith(_UNFINISHED):
                entries.append((used, size, one))
            elif time.time() - used > _SECONDS_ABANDONED:
                log.warning("%s was never finished; it is removed", one)
                remove(one)
    total = 0
    for _, size, one in sorted(entries, reverse=True):
        total += size
        if total > room and one != newest:
            log.info("%s is removed: cache.max_gb is reached", one)
            remove(one)
