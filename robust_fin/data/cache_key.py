"""What prepared arrays depend on, as one hash: files, settings, code and versions.

A cache is only as good as this: whatever could change an array must change its key, and where that
cannot be told nothing is kept.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import platform
import zoneinfo
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robust_fin.features.registry import FeatureSet, get_feature
from robust_fin.market.sources import BarSource

PACKAGE = Path(__file__).parent.parent
_CODE = ("market", "features", "data", "metrics.py", "errors.py")
_LIBRARIES = ("numpy", "pandas", "pyarrow", "scipy", "pandas_market_calendars", "tzdata")
_FILES = ("path", "vix_path", "calendar_overrides")
_UNSEEN = ("block_rows",)  # how the result is reached, not what it is


class NotCacheableError(Exception):
    """Something whose change could not be told from its name and arguments."""


def cache_key(content: Mapping[str, Any]) -> str:
    """The hash of a description, as 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def describe(value: object) -> Any:
    """A value as JSON that tells it from every other value.

    Args:
        value: plain data, a frozen dataclass or function of this package, or a partial of one.

    Raises:
        NotCacheableError: it holds code of another package.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, BarSource):
        return _source(value)
    if isinstance(value, FeatureSet):
        return [[name, _named(get_feature(name).fn)] for name in value.names]
    if isinstance(value, partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, Mapping):
        return {str(name): describe(one) for name, one in value.items()}
    if isinstance(value, Sequence):
        return [describe(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_named(type(value)), _fields(value)]
    return _named(value)


def surroundings() -> dict[str, Any]:
    """Code and versions that the arrays depend on.

    Raises:
        NotCacheableError: the code on disk is no longer the code that runs.
    """
    files = sorted(path for part in _CODE for path in _python_files(PACKAGE / part))
    loaded = process_start()
    for path in files:
        if path.stat().st_mtime > loaded:
            raise NotCacheableError(f"{path.name} was changed after this process began")
    return {
        "code": digest_of(*files),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "zones": digest_of(*_zone_tables()),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def process_start() -> float:
    """Seconds since 1970 when logging was loaded, which is before any code of ours runs."""
    record = logging.makeLogRecord({})
    return record.created - record.relativeCreated / 1000


def digest_of(*paths: Path) -> str:
    """SHA-256 over the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _source(source: BarSource) -> Any:
    unused = ["synthetic"] if source.path is not None else []
    fields = _fields(source, without=(*_FILES, *_UNSEEN, *unused))
    for name in _FILES:
        path = getattr(source, name)
        file = None if path is None else Path(path).expanduser()
        there = file is not None and file.is_file()  # a missing file has its own message later
        fields[name] = [file.name, digest_of(file)] if file is not None and there else path
    return fields


def _fields(value: Any, *, without: Sequence[str] = ()) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value) if field.name not in without]
    return {name: describe(getattr(value, name)) for name in names}


def _named(code: object) -> str:
    owner = getattr(code, "__self__", None)
    parts = [owner] if isinstance(owner, type) else []
    name = ".".join([getattr(one, "__qualname__", "<none>") for one in [*parts, code]])
    module = getattr(owner if parts else code, "__module__", None) or "<none>"
    whole = f"{module}.{name}"
    ours = any(whole.startswith(f"robust_fin.{room}.") for room in ("market", "features", "data"))
    if not ours or "<" in whole:
        raise NotCacheableError(f"{whole} is no code of this package")
    return whole


def _python_files(part: Path) -> list[Path]:
    return [part] if part.is_file() else list(part.rglob("*.py"))


def _zone_tables() -> list[Path]:
    """The file that tells the version of the system's time zones, where there is one."""
    named = [
        Path(folder) / name for folder in zoneinfo.TZPATH for name in ("tzdata.zi", "+VERSION")
    ]
    return [path for path in named if path.is_file()]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
