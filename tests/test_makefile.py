"""Tests of the parts of make test-slow."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = ROOT / "tests"


def parts() -> dict[str, list[Path]]:
    """Return the files of each part."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for name, words in re.findall(r"^SLOW_(\w+) := (.*)$", text, re.MULTILINE):
        paths = [TESTS / word for word in words.split()]
        assert all(path.exists() for path in paths), name
        found[name] = [
            file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])
        ]
    (listed,) = re.findall(r"^PARTS := (.*)$", text, re.MULTILINE)
    assert listed.split() == list(found)
    return found


def test_every_file_with_a_slow_test_is_in_exactly_one_part() -> None:
    listed = [file for files in parts().values() for file in files]
    assert len(listed) == len(set(listed))
    slow = {
        file for file in TESTS.rglob("test_*.py") if "pytest.mark.slow" in file.read_text("utf-8")
    } - {Path(__file__)}
    assert slow <= set(listed)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_unknown_part_is_an_error_that_lists_the_parts() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "slow-nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"PART=nothing is none of: {' '.join(parts())}" in done.stderr
