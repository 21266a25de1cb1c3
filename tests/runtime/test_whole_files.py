import errno
import os
from pathlib import Path

import pytest

from robust_fin.errors import DiskFullError
from robust_fin.runtime.atomic_files import (
    explain_full_disk,
    null_for_nan,
    remove_partial_files,
    write_atomic,
)
from tests.full_disk import FullAfter


def test_a_file_takes_the_name_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_the_one_before_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for content in (b"one", b"two", b"three"):
        write_atomic(path, content, previous=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"three", b"two")
    assert sorted(tmp_path.iterdir()) == [path, previous]


@pytest.mark.parametrize("room", [0, 1, 5, 9])
def test_a_full_disk_leaves_both_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for content in (b"one", b"two"):
        write_atomic(path, content, previous=previous)
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: FullAfter(opened(self, mode), room))
    with pytest.raises(OSError, match="No space left on device") as found:
        write_atomic(path, b"0123456789", previous=previous)
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(path))
    assert (path.read_bytes(), previous.read_bytes()) == (b"two", b"one")
    assert sorted(tmp_path.iterdir()) == [path, previous]


def test_a_disk_that_turns_out_full_when_the_bytes_reach_it_does_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:  # noqa: ARG001
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "last.ckpt"
    write_atomic(path, b"one")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_on_the_disk_before_they_take_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    synced, replaced = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append("sync") or synced(fd))

    def replace(self: Path, other: Path) -> Path:
        events.append(f"{self.name} > {other.name}")
        return replaced(self, other)

    monkeypatch.setattr(Path, "replace", replace)
    path = tmp_path / "last.ckpt"
    write_atomic(path, b"one")
    write_atomic(path, b"two", previous=tmp_path / "previous.ckpt")
    first = ["sync", "last.ckpt.part > last.ckpt", "sync"]
    then = ["sync", "last.ckpt > previous.ckpt", "last.ckpt.part > last.ckpt", "sync"]
    assert events == [*first, *then]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("last.ckpt", "last.ckpt.part", "best.ckpt.part"):
        (tmp_path / name).write_bytes(b"x")
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    remove_partial_files(tmp_path / "gone")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path, number: int) -> None:
    told = r"the disk is full: last\.ckpt could not be written .* resume="
    with pytest.raises(DiskFullError, match=told), explain_full_disk(tmp_path):
        raise OSError(number, os.strerror(number), "last.ckpt")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_null_replaces_nonfinite_floats_at_any_depth() -> None:
    value = {"a": [float("nan"), 1.0], "b": ({"c": float("inf")},), "d": 2, "e": None}
    assert null_for_nan(value) == {"a": [None, 1.0], "b": [{"c": None}], "d": 2, "e": None}
