"""The tables of docs/features.md: the list of the registry is that of the code."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.bars import config
from tests.conftest import ROOT

FIGURE = {"estimate": 0.0041, "low": 0.0032, "high": 0.0052}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import feature_tables

    yield feature_tables
    sys.modules.pop("feature_tables", None)


def answer(name: str) -> dict[str, Any]:
    importance = {"rank_ic": FIGURE, "skill": FIGURE, "by_part": [0.004]}
    candidate = {
        "name": name, "group": 3, "importance": importance, "together": importance,
        "information": 0.0094, "direction": 0.004, "places": {"importance": [10, 5]},
    }  # fmt: skip
    return {"folds": [{"candidates": [candidate], "proposed": [name]}]}


def test_document_lists_the_registered_features(tables: ModuleType) -> None:
    document = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert tables.registry_table() in document, "run python benchmarks/feature_tables.py"
    lines = tables.registry_table().splitlines()
    names = [line.split("`")[1] for line in lines[2:]]
    assert names == sorted(names)
    assert set(config("features=rich_vix").features.names) < set(names)
    assert "| `price_mom_5d` | Chain-linked close over that" in tables.registry_table()
    assert lines[2 + names.index("price_mom_5d")].endswith("| 5 trading dates | fraction |")


def test_candidate_row_lists_its_feature_sets(tables: ModuleType) -> None:
    sets = {"study": ["a"], "top5": ["b"], "rich": ["a"]}
    line = tables.candidate_table(answer("a"), sets).splitlines()[-1]
    assert line == "| 3 | **`a`** | study, rich | 4.1 | 4.1 [3.2, 5.2] | 5..10 | 9.4 | 4.0 |"


def test_text_between_the_markers_is_replaced(tables: ModuleType) -> None:
    begin, end = "<!-- sets: written by benchmarks/feature_tables.py -->", "<!-- end of sets -->"
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    assert tables.replaced(text, "sets", "new") == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(SystemExit, match="has no lines <!-- answer"):
        tables.replaced(text, "answer", "new")
