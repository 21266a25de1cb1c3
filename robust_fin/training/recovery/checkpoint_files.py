"""Checkpoint files: written atomically, read without running code, checked before a resume."""

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

from robust_fin.bundle.config import read_flat_config
from robust_fin.bundle.folder import provenance, read_provenance
from robust_fin.errors import ConfigError, ResumeError
from robust_fin.market.schema import BarSummary
from robust_fin.runtime.files import remove_partial_files, write_atomic
from robust_fin.training.lightning_loop import epochs_done

log = logging.getLogger(__name__)

CHECKPOINTS, REFIT = "checkpoints", "refit"
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
_CHECKSUM = b"sha256:"
_CHECKSUM_BYTES = len(_CHECKSUM) + 64
_NO_COMMENT = b"\0\0"
_REQUIRED_KEYS = {"global_step", "state_dict", "loops", "session", "lineage"}
_PICKLES = [pickle.PROTO + bytes([protocol]) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
_UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
    *(EOFError, RuntimeError, ValueError, LookupError),
)
_MAY_CHANGE = "trainer.max_"  # prefix of the keys that a resume may change
_BAR_KEYS = ("data_sha256", "data", "rows_in", "first_bar", "last_bar")
_SHOWN = 5  # differences in a message


class DamagedCheckpointError(ResumeError):
    """A checkpoint that is missing, incomplete or changed since it was written."""


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin that reads and writes every checkpoint of a run."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: object = None,  # noqa: ARG002
    ) -> None:
        """Write atomically; rename the old last.ckpt to previous.ckpt."""
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
        """Read onto the CPU with `weights_only=True`, whatever the arguments are."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file."""
        Path(path).unlink(missing_ok=True)


def checkpoint_bytes(checkpoint: dict[str, Any]) -> bytes:
    """Serialise a checkpoint, with its SHA-256 as the comment of the zip archive."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getvalue()
    assert content.endswith(_NO_COMMENT), "a zip archive ends with the length of its comment"
    content = content[: -len(_NO_COMMENT)] + _CHECKSUM_BYTES.to_bytes(2, "little")
    return content + _CHECKSUM + hashlib.sha256(content).hexdigest().encode()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running any code in it.

    Raises:
        DamagedCheckpointError: the file is missing, incomplete or changed.
        ResumeError: the file contains code, or is not a checkpoint of a training run.
    """
    if not path.is_file():
        raise DamagedCheckpointError(f"{path} is missing")
    content = path.read_bytes()
    if content[:2] in _PICKLES:
        raise _code_error(path, "it is a pickle")
    if not _is_intact(content):
        raise DamagedCheckpointError(f"{path} is damaged: its checksum does not match")
    checkpoint = _load_weights_only(path, content)
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _REQUIRED_KEYS:
        raise ResumeError(f"{path} is not a checkpoint of a training run")
    return checkpoint


def checkpoint_checksum(path: Path) -> str:
    """Return the checksum that identifies a checkpoint."""
    return path.read_bytes()[-_CHECKSUM_BYTES:].decode("ascii", "replace")


def restore_last_checkpoint(folder: Path) -> None:
    """Replace a damaged last.ckpt by previous.ckpt, with a warning.

    Raises:
        ResumeError: all checkpoints of the folder are damaged, or one contains code.
    """
    remove_partial_files(folder)
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.exists() and not previous.exists():
        return
    try:
        read_checkpoint(last)
    except DamagedCheckpointError as error:
        try:
            step = read_checkpoint(previous)["global_step"]
        except DamagedCheckpointError as second_error:
            raise ResumeError(
                f"{error}, and {second_error}, so the run cannot resume. Remove {folder} and "
                "resume again: the run then starts over with the same config"
            ) from None
        log.warning("%s; resuming from %s of step %d", error, PREVIOUS, step)
        previous.replace(last)


def _is_intact(content: bytes) -> bool:
    """Check the checksum in the comment or, without a comment, those of the archive's members."""
    body, comment = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if comment == _CHECKSUM + hashlib.sha256(body).hexdigest().encode():
        return True
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return content.endswith(_NO_COMMENT) and archive.testzip() is None
    except _UNREADABLE:
        return False


def _load_weights_only(path: Path, content: bytes) -> object:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
        if not names:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ResumeError(f"{path} is not a checkpoint; it was not loaded") from error
    raise _code_error(path, f"it names {', '.join(names)}")


def _code_error(path: Path, reason: str) -> ResumeError:
    return ResumeError(
        f"{path} contains code ({reason}), which checkpoints of robust_fin never do; it was not "
        "loaded. Find out who wrote it, and remove it"
    )


def run_origin(run: Path, stage: Path) -> dict[str, Any]:
    """Return the entry of a checkpoint that says which run wrote it.

    Args:
        run: run folder; without a bundle the entry is empty.
        stage: folder of the checkpoint; that of a refit stores the checksum of the chosen fit.
    """
    if not (run / "bundle").is_dir():
        return {"config": {}, "provenance": {}, "choice": None}
    choice = stage.parent / LAST
    return {
        "config": read_flat_config(run),
        "provenance": read_provenance(run),
        "choice": checkpoint_checksum(choice) if choice.is_file() else None,
    }


def prepare_resume(run: Path, *, max_epochs: int | None) -> None:
    """Restore the checkpoints of a run, and check that its config is unchanged.

    Args:
        run: run folder.
        max_epochs: of the resumed run; None or -1 for no limit.

    Raises:
        ResumeError: a checkpoint cannot be restored or contains code, or the config changed.
        ConfigError: the run has more epochs than max_epochs.
    """
    folder = run / CHECKPOINTS
    for stage in (folder, folder / REFIT):
        restore_last_checkpoint(stage)
    if not (folder / LAST).is_file():
        log.warning("%s has no checkpoint yet; the run starts over", run)
        return
    checkpoint = read_checkpoint(folder / LAST)
    _check_equal(
        _fixed_keys(checkpoint["lineage"]["config"]),
        _fixed_keys(read_flat_config(run)),
        what=f"{run / 'bundle' / 'config.yaml'} changed since the run was started",
        remedy="Restore it, or start another run with other settings",
    )
    done = epochs_done(checkpoint)
    if max_epochs is not None and -1 < max_epochs < done:
        raise ConfigError(
            f"trainer.max_epochs={max_epochs} is below the {done} epochs that the run has completed"
        )


def remove_checkpoints(run: Path) -> None:
    """Remove the checkpoints of an earlier run in the same folder."""
    folder = run / CHECKPOINTS
    for stage in (folder, folder / REFIT):
        for name in (LAST, PREVIOUS, BEST):
            (stage / name).unlink(missing_ok=True)


def check_same_bars(run: Path, bars: BarSummary) -> None:
    """Raise ResumeError if the bars changed since the run was started; warn of other versions."""
    now, last = provenance(bars), run / CHECKPOINTS / LAST
    started = read_provenance(run)
    saved = read_checkpoint(last)["lineage"]["provenance"] if last.is_file() else {}
    for before in (started, saved):
        if before and before["data_sha256"] != now["data_sha256"]:
            _check_equal(
                {key: before[key] for key in _BAR_KEYS},
                {key: now[key] for key in _BAR_KEYS},
                what="the bars changed since the run was started",
                remedy="Restore the file, or start another run",
            )
    _warn_of_versions(started.get("versions", {}), now["versions"])


def can_resume_refit(run: Path) -> bool:
    """Return True if the refit's checkpoint belongs to the current choice and config."""
    choice, refit = run / CHECKPOINTS / LAST, run / CHECKPOINTS / REFIT / LAST
    if not refit.is_file() or not choice.is_file():
        return False
    origin = read_checkpoint(refit)["lineage"]
    return (origin["choice"], origin["config"]) == (
        checkpoint_checksum(choice),
        read_flat_config(run),
    )


def _fixed_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(_MAY_CHANGE)}


def _check_equal(
    before: Mapping[str, Any], now: Mapping[str, Any], *, what: str, remedy: str
) -> None:
    absent = "absent"
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
            "the run was started with other versions, so its results may differ in the last "
            "digits: %s",
            ", ".join(differ),
        )
