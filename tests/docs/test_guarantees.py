"""Tests that the tests cited in the README and docs/guarantees.md exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.docs

_TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)(?:::(?P<name>\w+))?`")


def cited_tests(page: str) -> list[tuple[str, str]]:
    text = Path(ROOT, page).read_text(encoding="utf-8")
    return [(found["file"], found["name"] or "") for found in _TEST.finditer(text)]


def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["README.md", "docs/guarantees.md"])
def test_every_cited_test_exists(page: str) -> None:
    absent = [
        (file, name)
        for file, name in cited_tests(page)
        if not (ROOT / file).is_file() or (name and name not in functions_of(file))
    ]
    assert absent == []


def test_every_guarantee_cites_a_test() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    guarantees = re.split(r"^- ", text, flags=re.MULTILINE)[1:]
    assert len(guarantees) >= 20
    assert [one for one in guarantees if not re.search(r"\n    - `tests/", one)] == []
    law = ("tests/laws/test_features.py", "test_future_bars_do_not_change_features")
    assert law in cited_tests("docs/guarantees.md")
