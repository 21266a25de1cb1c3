"""Named arrays that grow by appending: in memory, or in a folder of .npy files with a manifest."""

import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.lib import format as npy

_PIECE = 1 << 22  # bytes read at once for a checksum
_MANIFEST = "manifest.json"

Arrays = Mapping[str, np.ndarray]


class DamagedError(Exception):
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
        DamagedError: something is missing or not as it was written.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        content = manifest["content"]
        if zlib.crc32(_canonical(content)) != manifest["crc32"]:
            raise DamagedError(f"{_MANIFEST} is not as it was written")
        for name, crc in content["files"].items():
            if _crc(folder / f"{name}.npy") != crc:
                raise DamagedError(f"{name}.npy is not as it was written")
        return {name: _mapped(folder / f"{name}.npy") for name in content["files"]}, content[
            "described"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"it cannot be read: {error}") from error


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
