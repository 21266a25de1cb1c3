"""Tests of the built pages: link targets exist, nothing is fetched, and the search works."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from tests.browser.chromium import FLAGS, find_browser
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
FETCHES = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """Collects the links, fetched files and anchors of an HTML page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if FETCHES.get(tag) in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(given[FETCHES[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder ROBUST_FIN_SITE, built by make docs, or build the site."""
    if "ROBUST_FIN_SITE" in os.environ:
        return ROOT / os.environ["ROBUST_FIN_SITE"]
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}


def is_external(link: str) -> bool:
    return bool(urlparse(link).scheme or urlparse(link).netloc)


def internal_links(pages: dict[Path, Page]) -> Iterator[tuple[Path, str]]:
    for path, page in pages.items():
        if path.name != "404.html":  # its links start at the site's root
            for link in page.links + page.fetched:
                if not is_external(link):
                    yield path, link


def test_every_docs_page_is_built(pages: dict[Path, Page]) -> None:
    written = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert {path.name for path in pages} == written | {"404.html"}


def test_every_link_and_anchor_exists(pages: dict[Path, Page]) -> None:
    broken = []
    for path, link in internal_links(pages):
        target = urlparse(link)
        file = (path.parent / unquote(target.path)).resolve() if target.path else path
        known = pages[file].anchors if file in pages else {target.fragment}
        if not file.exists() or (target.fragment and unquote(target.fragment) not in known):
            broken.append((path.name, link))
    assert broken == []


def test_pages_fetch_nothing_from_other_hosts(site: Path, pages: dict[Path, Page]) -> None:
    fetched = {link for page in pages.values() for link in page.fetched if is_external(link)}
    assert {link for link in fetched if not link.startswith("data:")} == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert "url(http" not in styles
    assert "@import" not in styles


def test_external_links_are_complete_https_addresses(pages: dict[Path, Page]) -> None:
    found = {link for page in pages.values() for link in page.links if is_external(link)}
    assert {link for link in found if urlparse(link).scheme != "https"} == set()
    assert all("." in urlparse(link).netloc for link in found)


def test_search_index_has_every_page(site: Path, pages: dict[Path, Page]) -> None:
    text = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("var __index = "))
    known = {one["location"].partition("#")[0] or "index.html" for one in index["docs"]}
    assert known == {path.name for path in pages} - {"404.html"}


def test_search_works_on_a_page_opened_as_a_file(site: Path, tmp_path: Path) -> None:
    address = f"{(site / 'index.html').resolve().as_uri()}?q=lookback"
    asked = ["--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", address]
    done = subprocess.run(
        [find_browser(), *FLAGS, *asked], capture_output=True, text=True, timeout=300, check=False
    )
    assert "matching documents" in done.stdout
    assert 'own_feature.html?h=lookback"' in done.stdout
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
