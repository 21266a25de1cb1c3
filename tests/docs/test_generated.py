"""Tests that the generated parts of the docs agree with the code and with each other."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import robust_fin
from tests.conftest import ROOT

pytestmark = pytest.mark.docs


@pytest.fixture
def api_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import api_page

    yield api_page
    sys.modules.pop("api_page", None)


def test_api_page_lists_the_public_names(api_page: ModuleType) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert api_page.names_text() in page, "run python benchmarks/api_page.py"
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert headings == robust_fin.__all__


def test_api_page_shows_parameter_types(api_page: ModuleType) -> None:
    assert "bars: DataFrame | Path | str" in api_page.entry("predict")
    assert "**named" not in api_page.names_text()


def test_writing_the_api_page_keeps_the_surrounding_text(
    api_page: ModuleType, tmp_path: Path
) -> None:
    page = tmp_path / "api.md"
    page.write_text(
        f"before\n{api_page.BEGIN}\noutdated text\n{api_page.END}\nafter\n", encoding="utf-8"
    )
    api_page.main(page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{api_page.BEGIN}\n\n### {robust_fin.__all__[0]}\n")
    assert text.endswith(f"{api_page.END}\nafter\n")
    assert "outdated text" not in text


def table_of(page: str) -> list[list[str]]:
    """Return the cells of the result table of a page, without the header."""
    text = (ROOT / page).read_text(encoding="utf-8")
    part = text.partition("<!-- results:")[2].partition("<!-- end of results -->")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def word_for(difference: str) -> str:
    """Return the README's word for a paired skill difference of docs/results.md."""
    if not difference:
        return "not trained"
    low, high = re.search(r"\[([^],]+), ([^]]+)\]", difference).groups()
    if float(low) > 0:
        return "better"
    return "worse" if float(high) < 0 else "no clear difference"


def test_readme_table_agrees_with_the_full_results() -> None:
    short, full = table_of("README.md"), table_of("docs/results.md")
    expected = [
        [name, data, skill.replace(" %", ""), ic, word_for(ridge), word_for(boosted)]
        for name, data, _, skill, ic, ridge, boosted, *_ in full
    ]
    assert short == expected
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(full) >= 5
    assert all(row[-1] in readme for row in full)  # the commit


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
