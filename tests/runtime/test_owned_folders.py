"""A cache folder is marked, and only what was written there is removed."""

from pathlib import Path

from robust_fin.runtime.owned_folders import CACHE_TAG, claim_cache_folder, remove_written_files


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
