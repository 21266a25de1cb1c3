"""Cache folders: marked as ours, and trimmed without touching a file of anybody else."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from robust_fin.errors import ConfigError

log = logging.getLogger(__name__)

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
