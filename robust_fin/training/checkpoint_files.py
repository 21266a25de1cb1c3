"""Checkpoints on disk: written whole, sealed, and read without running code.

```
last.ckpt      the state to go on from
previous.ckpt  the one before it, for when last.ckpt is damaged
best.ckpt      the weights with the best figure of the val span
```

A checkpoint is what torch.save writes, a zip archive; its comment, which torch.load passes over, is
the SHA-256 of all bytes before it. torch.load itself looks at no checksum.
"""

import hashlib
import io
import logging
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from robust_fin.bundle.whole_files import remove_unfinished, write_whole
from robust_fin.errors import ResumeError

log = logging.getLogger(__name__)

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
_SEAL = b"sha256:"
_SEAL_BYTES = len(_SEAL) + 64
_NO_COMMENT = b"\0\0"
_NEEDED = {"global_step", "state_dict", "loops", "session", "lineage"}
_PICKLES = [pickle.PROTO + bytes([protocol]) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
_UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
    *(EOFError, RuntimeError, ValueError, LookupError),
)


class DamagedError(ResumeError):
    """A checkpoint that is not what was written."""


class WholeCheckpoints(CheckpointIO):
    """How the Trainer reads and writes checkpoints, last.ckpt and best.ckpt alike."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: object = None,  # noqa: ARG002
    ) -> None:
        """Write in one piece; last.ckpt keeps the one before it as previous.ckpt."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        previous = path.with_name(PREVIOUS) if path.name == LAST else None
        write_whole(path, sealed(checkpoint), previous=previous)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: object = None,  # noqa: ARG002
        weights_only: bool | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read onto the CPU, tensors and plain values alone, whatever is asked for."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file."""
        Path(path).unlink(missing_ok=True)


def sealed(checkpoint: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint, with their checksum as the comment of the archive."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getvalue()
    assert content.endswith(_NO_COMMENT), "the length of its comment ends a zip archive"
    content = content[: -len(_NO_COMMENT)] + _SEAL_BYTES.to_bytes(2, "little")
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, without running any code that it holds.

    Raises:
        DamagedError: the file is missing, cut short or changed.
        ResumeError: the file asks for code to be run, or is another program's.
    """
    if not path.is_file():
        raise DamagedError(f"{path} is missing")
    content = path.read_bytes()
    if content[:2] in _PICKLES:
        raise _code_in(path, "it is a pickle")
    if not _is_whole(content):
        raise DamagedError(f"{path} is damaged: it is not what was written")
    found = _loaded(path, content)
    if not isinstance(found, dict) or not found.keys() >= _NEEDED:
        raise ResumeError(f"{path} is no checkpoint of a training run")
    return found


def seal(path: Path) -> str:
    """What tells a checkpoint from every other one."""
    return path.read_bytes()[-_SEAL_BYTES:].decode("ascii", "replace")


def mend(folder: Path) -> None:
    """Make last.ckpt the newest whole checkpoint of a folder, saying so where it was not.

    Raises:
        ResumeError: there are checkpoints and none is whole, or one holds code.
    """
    remove_unfinished(folder)
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.exists() and not previous.exists():
        return
    try:
        read_checkpoint(last)
    except DamagedError as damage:
        try:
            step = read_checkpoint(previous)["global_step"]
        except DamagedError as both:
            raise ResumeError(
                f"{damage}, and {both}: there is nothing to go on from. Remove {folder} and resume "
                "again: the run then starts anew, with the same config"
            ) from None
        log.warning("%s; going on from %s, which is of step %d", damage, PREVIOUS, step)
        previous.replace(last)


def _is_whole(content: bytes) -> bool:
    """Whether the seal fits; without one, whether the checksums inside the archive do."""
    body, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    if seal == _SEAL + hashlib.sha256(body).hexdigest().encode():
        return True
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return content.endswith(_NO_COMMENT) and archive.testzip() is None
    except _UNREADABLE:
        return False


def _loaded(path: Path, content: bytes) -> object:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
        if not names:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ResumeError(f"{path} is no checkpoint of ours; it was not loaded") from error
    raise _code_in(path, f"it names {', '.join(names)}")


def _code_in(path: Path, found: str) -> ResumeError:
    return ResumeError(
        f"{path} holds code, which no checkpoint of ours does ({found}); it was not loaded. Find "
        "out who wrote it, and remove it"
    )
