"""Checkpoint files: sealed, read without running code, and checked before a resume."""

import hashlib
import io
import logging
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from robust_fin.bundle.folder import provenance, read_flat_config, read_provenance
from robust_fin.errors import ConfigError, ResumeError
from robust_fin.market.schema import BarSummary
from robust_fin.runtime.atomic_files import remove_partial_files, write_atomic
from robust_fin.training.lightning_loop import epochs_done

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


class DamagedCheckpointError(ResumeError):
    """A checkpoint that is not what was written."""


class AtomicCheckpointIO(CheckpointIO):
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
        write_atomic(path, checkpoint_bytes(checkpoint), previous=previous)

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


def checkpoint_bytes(checkpoint: dict[str, Any]) -> bytes:
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
        DamagedCheckpointError: the file is missing, cut short or changed.
        ResumeError: the file asks for code to be run, or is another program's.
    """
    if not path.is_file():
        raise DamagedCheckpointError(f"{path} is missing")
    content = path.read_bytes()
    if content[:2] in _PICKLES:
        raise _code_in(path, "it is a pickle")
    if not _is_whole(content):
        raise DamagedCheckpointError(f"{path} is damaged: it is not what was written")
    found = _loaded(path, content)
    if not isinstance(found, dict) or not found.keys() >= _NEEDED:
        raise ResumeError(f"{path} is no checkpoint of a training run")
    return found


def checkpoint_checksum(path: Path) -> str:
    """What tells a checkpoint from every other one."""
    return path.read_bytes()[-_SEAL_BYTES:].decode("ascii", "replace")


def restore_last_checkpoint(folder: Path) -> None:
    """Make last.ckpt the newest whole checkpoint of a folder, saying so where it was not.

    Raises:
        ResumeError: there are checkpoints and none is whole, or one holds code.
    """
    remove_partial_files(folder)
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.exists() and not previous.exists():
        return
    try:
        read_checkpoint(last)
    except DamagedCheckpointError as damage:
        try:
            step = read_checkpoint(previous)["global_step"]
        except DamagedCheckpointError as both:
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


CHECKPOINTS, REFIT = "checkpoints", "refit"
_LONGER = "trainer.max_"  # what a run that goes on may change
_BARS = ("data_sha256", "data", "rows_in", "first_bar", "last_bar")
_SHOWN = 5  # differences in a message


def run_origin(run: Path, stage: Path) -> dict[str, Any]:
    """What a checkpoint keeps of the run that writes it.

    Args:
        run: the run folder; empty of a bundle where a fit stands alone.
        stage: folder of the checkpoint; one of a refit keeps which choice it follows.
    """
    choice = stage.parent / LAST
    if not (run / "bundle").is_dir():
        return {"config": {}, "provenance": {}, "choice": None}
    return {
        "config": read_flat_config(run),
        "provenance": read_provenance(run),
        "choice": checkpoint_checksum(choice) if choice.is_file() else None,
    }


def prepare_resume(run: Path, *, max_epochs: int | None) -> None:
    """Make the checkpoints of a run ready to go on from.

    Args:
        run: the run folder.
        max_epochs: that it is asked to go on to; None or -1 for no limit.

    Raises:
        ResumeError: no checkpoint is whole, one holds code, or the config is not the one that the
            run was started with.
        ConfigError: the run is already past max_epochs.
    """
    folder = run / CHECKPOINTS
    for stage in (folder, folder / REFIT):
        restore_last_checkpoint(stage)
    if not (folder / LAST).is_file():
        log.warning("%s has no checkpoint yet; the run starts anew", run)
        return
    kept = read_checkpoint(folder / LAST)
    _require_same(
        _but_longer(kept["lineage"]["config"]),
        _but_longer(read_flat_config(run)),
        what=f"{run / 'bundle' / 'config.yaml'} is not the config that the run was started with",
        remedy="Put it back, or start another run with other settings",
    )
    done = epochs_done(kept)
    if max_epochs is not None and -1 < max_epochs < done:
        raise ConfigError(
            f"trainer.max_epochs={max_epochs} is fewer than the {done} epochs that the run has had"
        )


def remove_checkpoints(run: Path) -> None:
    """Remove those of an earlier run in the same folder, which the new one must not go on from."""
    folder = run / CHECKPOINTS
    for stage in (folder, folder / REFIT):
        for name in (LAST, PREVIOUS, BEST):
            (stage / name).unlink(missing_ok=True)


def check_same_bars(run: Path, bars: BarSummary) -> None:
    """Refuse to go on with other bars; warn of other versions of what computes.

    Raises:
        ResumeError: names what differs.
    """
    now, last = provenance(bars), run / CHECKPOINTS / LAST
    before = [read_provenance(run)]
    if last.is_file():
        before.append(read_checkpoint(last)["lineage"]["provenance"])
    for one in before:
        if one and one["data_sha256"] != now["data_sha256"]:
            _require_same(
                {key: one[key] for key in _BARS},
                {key: now[key] for key in _BARS},
                what="the bars are not those that the run was started with",
                remedy="Put the file back, or start another run",
            )
    _warn_of_versions(before[0].get("versions", {}), now["versions"])


def can_resume_refit(run: Path) -> bool:
    """Whether the refit's checkpoint follows the choice as it is now, and was to go as far."""
    folder = run / CHECKPOINTS
    if not (folder / REFIT / LAST).is_file() or not (folder / LAST).is_file():
        return False
    kept = read_checkpoint(folder / REFIT / LAST)["lineage"]
    return kept["choice"] == checkpoint_checksum(folder / LAST) and kept[
        "config"
    ] == read_flat_config(run)


def _but_longer(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(_LONGER)}


def _require_same(
    before: Mapping[str, Any], now: Mapping[str, Any], *, what: str, remedy: str
) -> None:
    absent = "not there"
    differ = [
        f"{key} is {now.get(key, absent)}, was {before.get(key, absent)}"
        for key in {**before, **now}
        if now.get(key, absent) != before.get(key, absent)
    ]
    if differ:
        more = f"; and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise ResumeError(f"{what}: {'; '.join(differ[:_SHOWN])}{more}. {remedy}")


def _warn_of_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differ = [f"{name} {now.get(name)} (was {old})" for name, old in before.items()
              if now.get(name) != old]  # fmt: skip
    if differ:
        log.warning(
            "the run was started with other versions, and may go on with other numbers in the last "
            "digits: %s",
            ", ".join(differ),
        )
