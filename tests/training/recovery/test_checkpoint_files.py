import hashlib
import io
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from robust_fin.errors import ResumeError
from robust_fin.training.recovery.checkpoint_files import (
    LAST,
    PREVIOUS,
    AtomicCheckpointIO,
    DamagedCheckpointError,
    checkpoint_bytes,
    checkpoint_checksum,
    read_checkpoint,
    restore_last_checkpoint,
)


def checkpoint(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(20, generator=generator)
    parts: dict[str, Any] = {"loops": {"a": [1, 2]}, "session": {}, "lineage": {"seed": 0}}
    return {"global_step": step, "state_dict": {"w": weights}, **parts}


def two_checkpoints(folder: Path) -> tuple[Path, Path]:
    """last.ckpt of step 2 and previous.ckpt of step 1."""
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(step), folder / LAST)
    return folder / LAST, folder / PREVIOUS


class Payload:
    """Creates a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def poisoned(kind: str, marker: Path) -> bytes:
    """A checkpoint that would create the marker when it is unpickled."""
    content = {**checkpoint(3), "extra": Payload(marker)}
    if kind == "pickle":
        return pickle.dumps(content)
    if kind == "sealed":
        return checkpoint_bytes(content)
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=kind == "archive")
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own format deprecated
        torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)), buffer)
    return buffer.getvalue()


def test_checkpoint_round_trip_and_torch_load(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(checkpoint(5), tmp_path / "new" / LAST)
    path = tmp_path / "new" / LAST
    for found in (
        read_checkpoint(path),
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False),
        torch.load(path, weights_only=True),
    ):
        assert torch.equal(found["state_dict"]["w"], checkpoint(5)["state_dict"]["w"])
        assert found["global_step"] == 5


def test_saving_last_keeps_the_previous_file(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        for name in ("last.ckpt", "best.ckpt"):
            AtomicCheckpointIO().save_checkpoint(checkpoint(step), tmp_path / name)
    steps = {path.name: read_checkpoint(path)["global_step"] for path in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 3}


def test_checksum_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / LAST)
    content = (tmp_path / LAST).read_bytes()
    wanted = "sha256:" + hashlib.sha256(content[:-71]).hexdigest()
    assert checkpoint_checksum(tmp_path / LAST) == content[-71:].decode() == wanted


def test_archive_without_checksum_is_verified_by_its_members(tmp_path: Path) -> None:
    torch.save(checkpoint(4), tmp_path / LAST)
    assert read_checkpoint(tmp_path / LAST)["global_step"] == 4
    content = bytearray((tmp_path / LAST).read_bytes())
    place = content.index(checkpoint(4)["state_dict"]["w"].numpy().tobytes())
    content[place] ^= 1
    (tmp_path / LAST).write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="its checksum does not match"):
        read_checkpoint(tmp_path / LAST)


def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    content, path = checkpoint_bytes(checkpoint(1)), tmp_path / LAST
    bits = random.Random(0).sample(range(16, 8 * len(content)), 600)
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path)


def test_every_truncation_is_detected(tmp_path: Path) -> None:
    content, path = checkpoint_bytes(checkpoint(1)), tmp_path / LAST
    for length in (0, 1, 2, 30, *range(40, len(content), 37), len(content) - 71, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path)


@pytest.mark.parametrize("kind", ["pickle", "legacy", "archive", "sealed"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "created", tmp_path / LAST
    path.write_bytes(poisoned(kind, marker))
    with pytest.raises(ResumeError, match=r"last\.ckpt contains code .* it was not loaded"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not marker.exists()
    if kind != "pickle":  # the payload is live: torch would run it
        torch.load(path, weights_only=False)["extra"].close()
        assert marker.exists()


def test_error_names_the_code_in_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / LAST).write_bytes(poisoned("archive", tmp_path / "created"))
    with pytest.raises(ResumeError, match=r"\(it names io\.open\)"):
        read_checkpoint(tmp_path / LAST)


def test_torchscript_archive_is_rejected(tmp_path: Path) -> None:
    (tmp_path / LAST).write_bytes(torchscript())
    with pytest.raises(ResumeError, match="is not a checkpoint; it was not loaded"):
        read_checkpoint(tmp_path / LAST)


def test_tensors_that_are_not_a_checkpoint_are_rejected(tmp_path: Path) -> None:
    (tmp_path / LAST).write_bytes(checkpoint_bytes({"weights": torch.zeros(3)}))
    with pytest.raises(ResumeError, match="is not a checkpoint of a training run"):
        read_checkpoint(tmp_path / LAST)


def test_restore_only_removes_partial_files_from_an_intact_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = two_checkpoints(tmp_path)
    before = [path.read_bytes() for path in paths]
    (tmp_path / "last.ckpt.part").write_bytes(b"half")
    restore_last_checkpoint(tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert caplog.text == ""


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "empty"])
def test_damaged_last_is_replaced_by_previous_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    last, previous = two_checkpoints(tmp_path)
    content = last.read_bytes()
    last.write_bytes({"cut": content[:-100], "changed": content[::-1]}.get(damage, b""))
    if damage == "missing":
        last.unlink()
    restore_last_checkpoint(tmp_path)
    assert read_checkpoint(last)["global_step"] == 1
    assert not previous.exists()
    (record,) = caplog.records
    what = "missing" if damage == "missing" else "damaged: its checksum does not match"
    told = f"{last} is {what}; resuming from previous.ckpt of step 1"
    assert record.getMessage() == told


def test_two_damaged_checkpoints_raise_with_a_remedy(tmp_path: Path) -> None:
    last, previous = two_checkpoints(tmp_path)
    last.write_bytes(last.read_bytes()[:-1])
    previous.write_bytes(b"")
    with pytest.raises(ResumeError, match=r"last\.ckpt is damaged.*previous\.ckpt is damaged") as e:
        restore_last_checkpoint(tmp_path)
    assert f"Remove {tmp_path} and resume again: the run then starts over" in str(e.value)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", [LAST, PREVIOUS])
def test_restore_raises_for_code_in_either_checkpoint(tmp_path: Path, name: str) -> None:
    last, _ = two_checkpoints(tmp_path)
    if name == PREVIOUS:
        last.unlink()
    (tmp_path / name).write_bytes(poisoned("archive", tmp_path / "created"))
    with pytest.raises(ResumeError, match=f"{name} contains code"):
        restore_last_checkpoint(tmp_path)
    assert not (tmp_path / "created").exists()


def test_restore_accepts_an_empty_folder(tmp_path: Path) -> None:
    restore_last_checkpoint(tmp_path)
    restore_last_checkpoint(tmp_path / "gone")
