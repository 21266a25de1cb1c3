"""Parse a report page into elements, text and tables."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "use", "path", "rect", "stop", "image"}


@dataclass
class Element:
    """A tag with its attributes, its text and its enclosing tags."""

    tag: str
    attributes: dict[str, str]
    inside: tuple[str, ...]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Elements of a page in document order."""

    elements: list[Element] = field(default_factory=list)
    unbalanced: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[Element] = []

    @classmethod
    def read(cls, path: Path) -> "Page":
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        page.unbalanced += [one.tag for one in page._open]
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        inside = tuple(one.tag for one in self._open)
        element = Element(tag, {key: value or "" for key, value in attrs}, inside)
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        inside = tuple(one.tag for one in self._open)
        self.elements.append(Element(tag, {k: v or "" for k, v in attrs}, inside))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self._open or self._open[-1].tag != tag:
            self.unbalanced.append(f"/{tag}")
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one.text += data

    def all(self, tag: str) -> list[Element]:
        return [one for one in self.elements if one.tag == tag]

    def ids(self) -> list[str]:
        return [one.attributes["id"] for one in self.elements if "id" in one.attributes]

    def tables(self) -> dict[str, list[list[str]]]:
        """Return caption -> rows of cells, headings first."""
        result: dict[str, list[list[str]]] = {}
        for one in self.elements:
            if one.tag == "caption":
                rows = result.setdefault(one.text, [])
            elif one.tag == "tr":
                rows.append([])
            elif one.tag in ("th", "td"):
                rows[-1].append(one.text)
        return result

    def table(self, start: str) -> dict[str, dict[str, str]]:
        """Return row -> column -> cell of the only table whose caption starts with `start`."""
        (rows,) = [rows for caption, rows in self.tables().items() if caption.startswith(start)]
        return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}
