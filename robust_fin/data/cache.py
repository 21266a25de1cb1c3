"""Prepared arrays, kept on disk under a cache key."""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.lib import format as npy

from robust_fin.data.cache_key import cache_key
from robust_fin.errors import ConfigError

log = logging.getLogger(__name__)

_PIECE = 1 << 22  # bytes read at once for a checksum
_MANIFEST = "manifest.json"

Arrays = Mapping[str, np.ndarray]


class DamagedArraysError(Exception):
    """A folder of arrays that is not what was written; whoever opens it makes it anew."""


@runtime_checkable
class Sink(Protocol):
    """Where arrays go as they are made."""

    def append(self, name: str, values: np.ndarray) -> None:
        """Add rows to an array; the first call creates it."""
        ...

    def patch(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Give rows that were appended before other values."""
        ...


class MemoryArrays:
    """A sink that keeps the arrays in memory."""

    def __init__(self) -> None:
        """Nothing is there yet."""
        self._parts: dict[str, list[np.ndarray]] = {}
        self._patches: list[tuple[str, np.ndarray, np.ndarray]] = []

    def append(self, name: str, values: np.ndarray) -> None:
        """See `Sink`."""
        self._parts.setdefault(name, []).append(values)

    def patch(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """See `Sink`."""
        self._patches.append((name, rows, values))

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, whole."""
        whole = {}
        for name in list(self._parts):
            parts = self._parts.pop(name)  # so that no two copies of everything are held
            whole[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
        for name, rows, values in self._patches:
            whole[name][rows] = values
        return whole


class FolderArrays:
    """A sink that writes `NAME.npy` files; they count once `finish` has written the manifest.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet."""
        self._folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._patches: list[tuple[str, np.ndarray, np.ndarray]] = []

    def append(self, name: str, values: np.ndarray) -> None:
        """See `Sink`."""
        if name not in self._shapes:
            self._shapes[name], self._dtypes[name] = (0, *values.shape[1:]), values.dtype
            with self._path(name).open("wb") as file:
                npy.write_array_header_1_0(file, self._header(name))
        rows, *rest = self._shapes[name]
        assert (tuple(rest), self._dtypes[name]) == (values.shape[1:], values.dtype), name
        with self._path(name).open("ab") as file:
            file.write(np.ascontiguousarray(values).view(np.uint8).data)
        self._shapes[name] = (rows + len(values), *rest)

    def patch(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """See `Sink`; written by `finish`."""
        self._patches.append((name, rows, values))

    def finish(self, described: Mapping[str, Any]) -> None:
        """Complete the files and write the manifest.

        Args:
            described: what else belongs to the arrays, for JSON.
        """
        for name in self._shapes:
            with self._path(name).open("r+b") as file:
                npy.write_array_header_1_0(file, self._header(name))  # numpy pads it to one length
        for name in {name for name, _, _ in self._patches}:
            whole = np.load(self._path(name), mmap_mode="r+")
            for other, rows, values in self._patches:
                if other == name:
                    whole[rows] = values
            whole.flush()
        files = {name: _crc(self._path(name)) for name in self._shapes}
        content = {"files": files, "described": dict(described)}
        manifest = {"content": content, "crc32": zlib.crc32(_canonical(content))}
        (self._folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _header(self, name: str) -> dict[str, Any]:
        descr = npy.dtype_to_descr(self._dtypes[name])
        return {"descr": descr, "fortran_order": False, "shape": self._shapes[name]}


def open_arrays(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a finished folder, mapped into memory and checked, and what was described.

    A write to one changes a copy in memory, never the file.

    Raises:
        DamagedArraysError: something is missing or not as it was written.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        content = manifest["content"]
        if zlib.crc32(_canonical(content)) != manifest["crc32"]:
            raise DamagedArraysError(f"{_MANIFEST} is not as it was written")
        for name, crc in content["files"].items():
            if _crc(folder / f"{name}.npy") != crc:
                raise DamagedArraysError(f"{name}.npy is not as it was written")
        return {name: _mapped(folder / f"{name}.npy") for name in content["files"]}, content[
            "described"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArraysError(f"it cannot be read: {error}") from error


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def remove(folder: Path) -> None:
    """Delete a folder, whoever else is deleting it."""
    shutil.rmtree(folder, ignore_errors=True)


def _mapped(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        npy.read_magic(file)
        shape, _, _ = npy.read_array_header_1_0(file)
    if 0 in shape:  # no file can be mapped from its end on
        return np.load(path, allow_pickle=False)
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


def _crc(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total = zlib.crc32(piece, total)
    return total


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


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
        entry = folder / cache_key(identity)
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
    except (DamagedArraysError, OSError) as error:
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
    except DamagedArraysError as error:
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
