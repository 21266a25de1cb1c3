"""Prepared arrays kept on disk under a cache key: a hash of files, settings, code and versions.

Everything that could change an array is part of its key; what has no fingerprint is not kept.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.lib import format as npy

from robust_fin.errors import ConfigError
from robust_fin.features.registry import FeatureSet, get_feature
from robust_fin.market.sources import BarSource
from robust_fin.runtime.files import (
    claim_cache_folder,
    remove_written_files,
    trim_cache,
    write_atomic,
)

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent.parent
_CODE = ("market", "features", "data", "metrics.py", "errors.py")
_LIBRARIES = ("numpy", "pandas", "pyarrow", "scipy", "pandas_market_calendars", "tzdata")
_SOURCE_FILES = ("path", "vix_path", "calendar_overrides")
_WITHOUT_EFFECT = ("block_rows",)  # settings that change how the bars are read, not the result

_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
_SUFFIXES = {".npy", ".json", ".column", ".part"}  # of the files in entries and scratch folders
_ENTRY = re.compile(r"[0-9a-f]{32}")
_OURS = re.compile(rf"{_ENTRY.pattern}|{re.escape(_UNFINISHED)}.*")
_ABANDONED_AFTER = 86_400.0  # seconds after which an unfinished folder is removed


class NotCacheableError(Exception):
    """A value or the running code without a fingerprint, so that its arrays cannot be kept."""


class DamagedEntryError(Exception):
    """A cache entry that is incomplete or differs from its checksums."""


def cache_key(content: Mapping[str, Any]) -> str:
    """Hash fingerprints to 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def fingerprint(value: object) -> Any:
    """Return JSON data that differs for any two different values.

    Args:
        value: plain data, a frozen dataclass or function of this package, or a partial of one.

    Raises:
        NotCacheableError: the value holds code of another package.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, BarSource):
        return _source_fingerprint(value)
    if isinstance(value, FeatureSet):
        return [[name, _qualified_name(get_feature(name).fn)] for name in value.names]
    if isinstance(value, partial):
        return [fingerprint(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, Mapping):
        return {str(name): fingerprint(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [fingerprint(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_qualified_name(type(value)), _field_fingerprints(value)]
    return _qualified_name(value)


def environment_fingerprint() -> dict[str, Any]:
    """Return the hash of our code, the library versions and the time zone tables.

    Raises:
        NotCacheableError: a source file is newer than this process.
    """
    parts = [PACKAGE / name for name in _CODE]
    files = sorted(p for part in parts for p in [part, *part.rglob("*.py")] if p.is_file())
    started = process_start()
    for path in files:
        if path.stat().st_mtime > started:
            raise NotCacheableError(f"{path.name} was changed after this process started")
    zones = [Path(folder, name) for folder in zoneinfo.TZPATH for name in ("tzdata.zi", "+VERSION")]
    return {
        "code": _sha256(*files),
        "libraries": {name: library_version(name) for name in _LIBRARIES},
        "zones": _sha256(*(path for path in zones if path.is_file())),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def process_start() -> float:
    """Return the time, in seconds since 1970, at which logging was imported: before our code."""
    record = logging.makeLogRecord({})
    return record.created - record.relativeCreated / 1000


def library_version(name: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _source_fingerprint(source: BarSource) -> Any:
    unused = ["synthetic"] if source.path is not None else []
    fields = _field_fingerprints(source, without=(*_SOURCE_FILES, *_WITHOUT_EFFECT, *unused))
    for name in _SOURCE_FILES:
        fields[name] = path = getattr(source, name)
        file = None if path is None else Path(path).expanduser()
        if file is not None and file.exists():
            parts = sorted(p for p in (file, *file.rglob("*")) if p.is_file())
            fields[name] = [file.name, *(str(p.relative_to(file)) for p in parts), _sha256(*parts)]
    return fields


def _field_fingerprints(value: Any, *, without: Sequence[str] = ()) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value) if field.name not in without]
    return {name: fingerprint(getattr(value, name)) for name in names}


def _qualified_name(code: object) -> str:
    owner = getattr(code, "__self__", None)
    parts = [owner] if isinstance(owner, type) else []
    name = ".".join([getattr(part, "__qualname__", "<none>") for part in [*parts, code]])
    name = f"{getattr(owner if parts else code, '__module__', None) or '<none>'}.{name}"
    rooms = tuple(f"robust_fin.{room}." for room in ("market", "features", "data"))
    if not name.startswith(rooms) or "<" in name:
        raise NotCacheableError(f"{name} is not code of this package")
    return name


@runtime_checkable
class ArraySink(Protocol):
    """Destination of arrays that are produced a block of rows at a time."""

    def append(self, name: str, values: np.ndarray) -> None:
        """Append rows to an array; the first call creates it."""
        ...

    def patch(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Overwrite rows that were appended before."""
        ...


class MemorySink:
    """Sink that keeps the arrays in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}
        self._patches: list[tuple[str, np.ndarray, np.ndarray]] = []

    def append(self, name: str, values: np.ndarray) -> None:
        """See `ArraySink`."""
        self._parts.setdefault(name, []).append(values)

    def patch(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """See `ArraySink`."""
        self._patches.append((name, rows, values))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the complete arrays and forget the parts."""
        arrays = {}
        for name in list(self._parts):
            parts = self._parts.pop(name)  # frees each array's parts before the next is joined
            arrays[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
        for name, rows, values in self._patches:
            arrays[name][rows] = values
        return arrays


class FolderSink:
    """Sink that writes `NAME.npy` files, which are complete once `finish` wrote the manifest.

    The folder must be empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._patches: list[tuple[str, np.ndarray, np.ndarray]] = []

    def append(self, name: str, values: np.ndarray) -> None:
        """See `ArraySink`."""
        if name not in self._shapes:
            self._shapes[name], self._dtypes[name] = (0, *values.shape[1:]), values.dtype
            self._write_header(name, mode="wb")
        rows, *rest = self._shapes[name]
        assert (tuple(rest), self._dtypes[name]) == (values.shape[1:], values.dtype), name
        with self._path(name).open("ab") as file:
            file.write(np.ascontiguousarray(values).view(np.uint8).data)
        self._shapes[name] = (rows + len(values), *rest)

    def patch(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """See `ArraySink`; written by `finish`."""
        self._patches.append((name, rows, values))

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Complete the files and write the manifest with their checksums.

        Args:
            metadata: JSON data to keep with the arrays.
        """
        for name in self._shapes:
            self._write_header(name, mode="r+b")
        for name, rows, values in self._patches:
            np.load(self._path(name), mmap_mode="r+")[rows] = values
        files = {name: _crc32(self._path(name)) for name in self._shapes}
        content = {"files": files, "metadata": dict(metadata)}
        manifest = {"content": content, "crc32": _crc32_of_json(content)}
        write_atomic(self._folder / _MANIFEST, json.dumps(manifest, indent=1).encode())

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _write_header(self, name: str, *, mode: str) -> None:
        """Write the header; numpy pads it, so its length does not depend on the row count."""
        descr = npy.dtype_to_descr(self._dtypes[name])
        header = {"descr": descr, "fortran_order": False, "shape": self._shapes[name]}
        with self._path(name).open(mode) as file:
            npy.write_array_header_1_0(file, header)


class CacheEntry(NamedTuple):
    """Arrays by name, memory-mapped if they are on disk, and the JSON data kept with them."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


def read_entry(folder: Path) -> CacheEntry:
    """Memory-map the arrays of a finished folder; writing to one changes a copy in memory.

    Raises:
        DamagedEntryError: a file is missing or differs from its checksum.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        content = manifest["content"]
        if _crc32_of_json(content) != manifest["crc32"]:
            raise DamagedEntryError(f"{_MANIFEST} differs from its checksum")
        for name, crc in content["files"].items():
            if _crc32(folder / f"{name}.npy") != crc:
                raise DamagedEntryError(f"{name}.npy differs from its checksum")
        arrays = {name: _memory_map(folder / f"{name}.npy") for name in content["files"]}
        return CacheEntry(arrays, content["metadata"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedEntryError(f"it cannot be read: {error}") from error


def _memory_map(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        npy.read_magic(file)
        shape, _, _ = npy.read_array_header_1_0(file)
    empty = 0 in shape  # an empty array cannot be mapped
    return np.asarray(np.load(path, mmap_mode=None if empty else "c", allow_pickle=False))


def _crc32(path: Path) -> int:
    return zlib.crc32(np.memmap(path, np.uint8, mode="r").data)


def _crc32_of_json(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


Build = Callable[[ArraySink, Path], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Cache:
    """Folder of prepared arrays.

    Attributes:
        folder: holds one folder per entry; None keeps nothing on disk.
        max_gb: size in gigabytes beyond which the least recently used entries are removed.
    """

    folder: str | None
    max_gb: float

    def __post_init__(self) -> None:
        if not self.max_gb > 0:
            raise ConfigError(
                f"cache.max_gb={self.max_gb} must be > 0; use cache.folder=null to keep nothing"
            )

    def get_or_build(self, content: Mapping[str, Any] | None, build: Build) -> CacheEntry:
        """Return the entry of some fingerprints, from disk or newly built.

        Args:
            content: fingerprints of everything the arrays depend on; None builds in memory.
            build: writes the arrays to a sink, may use an empty scratch folder, and returns the
                metadata.
        """
        if self.folder is None or content is None:
            return _build_in_memory(build)
        folder = Path(self.folder).expanduser()
        path = folder / cache_key(content)
        entry = _open_entry(path)
        if entry is not None:
            return entry
        try:
            claim_cache_folder(folder, setting="cache.folder", is_entry=_OURS.fullmatch)
            entry = _build_on_disk(folder, path, build)
        except OSError as error:
            log.warning("cannot write to cache.folder=%s (%s); using memory", folder, error)
            return _build_in_memory(build)
        _remove_old_entries(folder, max_bytes=self.max_gb * 1e9, newest=path)
        return entry


NO_CACHE = Cache(None, 1.0)


def _build_in_memory(build: Build) -> CacheEntry:
    sink = MemorySink()
    with tempfile.TemporaryDirectory(prefix="robust_fin-") as scratch:
        metadata = build(sink, Path(scratch))
    return CacheEntry(sink.arrays(), dict(metadata))


def _open_entry(path: Path) -> CacheEntry | None:
    if not path.is_dir() or path.is_symlink():
        return None
    try:
        entry = read_entry(path)
        os.utime(path)  # the modification time orders entries by their last use
    except (DamagedEntryError, OSError) as error:
        log.warning("cache entry %s is damaged (%s); removing and rebuilding it", path, error)
        remove_written_files(path, suffixes=_SUFFIXES)
        return None
    log.info("using prepared arrays from %s", path)
    return entry


def _build_on_disk(folder: Path, path: Path, build: Build) -> CacheEntry:
    """Build in a temporary folder and rename it when complete."""
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as scratch:
            sink = FolderSink(unfinished)
            metadata = build(sink, Path(scratch))
        sink.finish(metadata)
        try:
            unfinished.rename(path)
        except OSError:
            if not path.is_dir() or path.is_symlink():
                raise  # otherwise another process has built the same entry
        return read_entry(path)
    except DamagedEntryError as error:
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_old_entries(folder: Path, *, max_bytes: float, newest: Path) -> None:
    """Remove abandoned builds, and the least recently used entries beyond `max_bytes`."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                log.warning("removing %s, which was never finished", path)
                remove_written_files(path, suffixes=_SUFFIXES)
    kept = [path for path in folder.iterdir() if _ENTRY.fullmatch(path.name) and path != newest]
    max_bytes -= sum(file.stat().st_size for file in newest.iterdir())
    trim_cache(kept, manifest=_MANIFEST, suffixes=_SUFFIXES, max_bytes=max_bytes)
