import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from robust_fin.errors import ConfigError, DiskFullError
from robust_fin.runtime.files import (
    CACHE_TAG,
    claim_cache_folder,
    create_folder,
    explain_full_disk,
    lock_folder,
    null_for_nan,
    remove_partial_files,
    remove_written_files,
    replacing,
    write_atomic,
)
from tests.full_disk import FullAfter
from tests.small_runs import locked_by_another


def test_write_replaces_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_write_keeps_the_previous_file_on_request(tmp_path: Path) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for content in (b"one", b"two", b"three"):
        write_atomic(path, content, previous=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"three", b"two")
    assert sorted(tmp_path.iterdir()) == [path, previous]


@pytest.mark.parametrize("room", [0, 1, 5, 9])
def test_full_disk_leaves_both_files_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for content in (b"one", b"two"):
        write_atomic(path, content, previous=previous)
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: FullAfter(opened(self, mode), room))
    with pytest.raises(OSError, match="No space left on device") as error:
        write_atomic(path, b"0123456789", previous=previous)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert (path.read_bytes(), previous.read_bytes()) == (b"two", b"one")
    assert sorted(tmp_path.iterdir()) == [path, previous]


def test_failing_fsync_leaves_the_file_unchanged(
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


def test_bytes_are_synced_before_the_rename(
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


def test_only_partial_files_are_removed(tmp_path: Path) -> None:
    for name in ("last.ckpt", "last.ckpt.part", "best.ckpt.part"):
        (tmp_path / name).write_bytes(b"x")
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    remove_partial_files(tmp_path / "gone")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_error_says_what_to_do(tmp_path: Path, number: int) -> None:
    message = r"the disk is full: last\.ckpt could not be written .* resume="
    with pytest.raises(DiskFullError, match=message), explain_full_disk(tmp_path):
        raise OSError(number, os.strerror(number), "last.ckpt")


def test_other_errors_are_not_changed(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_null_replaces_nonfinite_floats_at_any_depth() -> None:
    value = {"a": [float("nan"), 1.0], "b": ({"c": float("inf")},), "d": 2, "e": None}
    assert null_for_nan(value) == {"a": [None, 1.0], "b": [{"c": None}], "d": 2, "e": None}


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    path.write_bytes(b"previous")

    def fail_halfway() -> None:
        with replacing(path) as part:
            part.write_bytes(b"half of the")
            raise ValueError("no such column")

    with pytest.raises(ValueError, match="no such column"):
        fail_halfway()
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_of_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    path, foreign = tmp_path / "last.ckpt", tmp_path / "foreign.txt"
    foreign.write_bytes(b"of somebody else")
    path.with_name("last.ckpt.part").symlink_to(foreign)
    write_atomic(path, b"one")
    assert (path.read_bytes(), foreign.read_bytes()) == (b"one", b"of somebody else")


def is_entry(name: str) -> bool:
    return name.startswith("entry")


def test_an_empty_folder_is_marked_by_the_standard_tag(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cache"
    claim_cache_folder(folder, setting="cache.folder", is_entry=is_entry)
    text = (folder / CACHE_TAG).read_text()
    assert text.startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_a_folder_of_entries_without_a_tag_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "entry_1").mkdir()
    claim_cache_folder(tmp_path, setting="cache.folder", is_entry=is_entry)
    (tmp_path / "other.txt").write_text("")  # after the mark the folder stays accepted
    claim_cache_folder(tmp_path, setting="cache.folder", is_entry=is_entry)
    assert (tmp_path / CACHE_TAG).is_file()


def test_only_files_with_known_suffixes_are_removed(tmp_path: Path) -> None:
    entry, outside = tmp_path / "entry", tmp_path / "outside.npy"
    entry.mkdir()
    outside.write_bytes(b"outside")
    (entry / "a.npy").write_bytes(b"a")
    (entry / "notes.txt").write_text("mine")
    (entry / "link.npy").symlink_to(outside)
    assert not remove_written_files(entry, suffixes={".npy"})
    assert sorted(path.name for path in entry.iterdir()) == ["link.npy", "notes.txt"]
    assert outside.read_bytes() == b"outside"
    for path in entry.iterdir():
        path.unlink()
    assert remove_written_files(entry, suffixes={".npy"})
    assert not entry.exists()


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "a.npy").write_bytes(b"a")
    link.symlink_to(real)
    assert not remove_written_files(link, suffixes={".npy"})
    assert (real / "a.npy").exists()


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with locked_by_another(tmp_path), pytest.raises(ConfigError, match="another command is work"):
        lock.__enter__()
    with lock_folder(tmp_path):
        with lock_folder(tmp_path / "." / ""):  # nested: the same thread holds it
            pass
        with pytest.raises(BlockingIOError), locked_by_another(tmp_path):
            pass
        with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError, match=str(tmp_path)):
            pool.submit(lock_folder(tmp_path).__enter__).result()
    with locked_by_another(tmp_path):
        pass


def test_a_read_only_folder_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with lock_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_never_is_one_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "10-00-00"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create_folder, [path] * 8))
    assert {folder.name for folder in made} == {
        "10-00-00", *(f"10-00-00-{number}" for number in range(2, 9))
    }  # fmt: skip
