"""Tests of the README and docs/: link targets exist, and every page is in the menu."""

import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml

from tests.conftest import ROOT
from tests.docs.blocks import PAGES

pytestmark = pytest.mark.docs

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^]]*\]\((?P<to>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (?P<words>.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub and MkDocs create them."""
    words = (found["words"] for found in _HEADING.finditer(prose(page)))
    plain = (re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", one).strip().lower() for one in words)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", one)) for one in plain}


def broken_links(page: Path) -> list[str]:
    """Return the links of a page without a target."""
    return [
        found["to"] for found in _LINK.finditer(prose(page)) if not has_target(page, found["to"])
    ]


def has_target(page: Path, to: str) -> bool:
    """Return True if a link leads to a file, an anchor or a well-formed address."""
    if "//" in to:
        address = urlparse(to)
        return address.scheme == "https" and "." in address.netloc
    path, _, anchor = to.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_target_exists(page: str) -> None:
    assert broken_links(ROOT / page) == []


def test_check_detects_broken_links(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Two words\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#two-words) [c](#none) [d](there.md#three) [e](gone.md)\n"
        "![f](gone.png) [g](https://example.org/x) [h](http://nowhere)\n```\n[i](shown.md)\n```\n"
    )
    assert broken_links(page) == [
        "#none",
        "there.md#three",
        "gone.md",
        "gone.png",
        "http://nowhere",
    ]


def test_every_page_is_in_the_menu_exactly_once() -> None:
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]

    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(menu)) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_docs_have_no_links_outside_docs() -> None:
    outside = [
        (page, found["to"])
        for page in PAGES
        if page != "README.md"
        for found in _LINK.finditer(prose(ROOT / page))
        if found["to"].startswith("../")
    ]
    assert outside == []
