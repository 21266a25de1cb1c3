"""HTML building blocks of the report: tables, sections and pictures."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True, slots=True)
class PlainTable:
    """A table of text.

    Attributes:
        caption: what it says.
        columns: their headings; the first column heads the rows.
        rows: one cell a column.
        numbers: whether the cells are numbers, which are set to the right.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


def render_table(table: PlainTable, *, anchor: str) -> str:
    """The table in a box of its own that scrolls where the screen is too narrow.

    Args:
        table: to be set.
        anchor: its id on the page.
    """
    heads = "".join(f'<th scope="col">{escape(one)}</th>' for one in table.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in table.rows
    )
    kind = "numbers" if table.numbers else "words"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{anchor}">'
        f'<table class="{kind}"><caption id="{anchor}">{escape(table.caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def render_paragraphs(words: Sequence[str]) -> str:
    """A paragraph each."""
    return "".join(f"<p>{escape(one)}</p>\n" for one in words)


def folded_html(heading: str, inside: str, *, unfolded: bool = False) -> str:
    """What is there on demand.

    Args:
        heading: what is inside.
        inside: as HTML.
        unfolded: whether it is shown from the start.
    """
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{escape(heading)}</summary>\n{inside}</details>\n"


def section_html(anchor: str, heading: str, inside: str) -> str:
    """A section with its heading, which names it to a screen reader."""
    return (
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(heading)}</h2>\n'
        f"{inside}</section>\n"
    )


def page_html(
    *,
    title: str,
    header: str,
    kind: str,
    contents: Sequence[tuple[str, str]],
    main: str,
    footer: str,
) -> str:
    """The whole file: nothing in it is fetched from anywhere, and nothing runs.

    Args:
        title: of the window.
        header: as HTML.
        kind: class of the header.
        contents: anchor and heading of each section.
        main: the sections, as HTML.
        footer: as HTML.
    """
    links = "".join(f'<li><a href="#{one}">{escape(name)}</a></li>' for one, name in contents)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n"
        f'</head>\n<body>\n<a class="skip" href="#main">To the results</a>\n'
        f'<header class="{kind}">\n{header}</header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
        f'<main id="main">\n{main}</main>\n<footer>\n{footer}</footer>\n</body>\n</html>\n'
    )


Figure = Any  # matplotlib's, which may not be installed

WIDTH, HEIGHT = 4.2, 2.7  # inches; letters stay readable on a phone
DPI = 160
# what the SVG says of a colour is replaced by the page's own, which differs by day and by night
INK, LINE = "#1b1f24", "#d3d8df"
COLOURS = {
    "blue": "#1b66b0",
    "orange": "#b04a08",
    "green": "#14724a",
    "purple": "#7b3fa0",
    "grey": "#5b626b",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """Something to look at, and the same in words.

    Attributes:
        name: of its ids on the page, and of its tag in TensorBoard.
        title: what it is.
        reading: how to read it.
        seen: what is seen, in numbers.
        numbers: behind it.
        draw: draws it onto an empty figure.
    """

    name: str
    title: str
    reading: str
    seen: str
    numbers: PlainTable
    draw: Callable[[Figure], None]


@dataclass(frozen=True, slots=True)
class RenderedPlot:
    """A picture as it is written.

    Attributes:
        svg: an element for the page.
        png: the file.
        width: of the PNG, in pixels.
        height: likewise.
    """

    svg: str
    png: bytes
    width: int
    height: int


def has_matplotlib() -> bool:
    """Whether matplotlib is installed; robust-fin[report] brings it."""
    return find_spec("matplotlib") is not None


def render_plot(picture: Plot) -> RenderedPlot:
    """The picture as SVG and PNG; the same data give the same bytes."""
    # here, because it may not be installed, and training is not to wait for it
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    svg, png = io.BytesIO(), io.BytesIO()
    with rc_context({**_STYLE, "svg.hashsalt": picture.name}):
        figure = Canvas(figsize=(WIDTH, HEIGHT))
        picture.draw(figure)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", facecolor="white", dpi=DPI, metadata={"Software": None})
        width, height = (round(DPI * side) for side in figure.get_size_inches())
    return RenderedPlot(for_page(svg.getvalue().decode(), picture), png.getvalue(), width, height)


def for_page(svg: str, picture: Plot) -> str:
    """The SVG as one element among others: ids of its own, the page's colours, named in words.

    Args:
        svg: as matplotlib writes it.
        picture: what it shows.
    """
    inside = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', inside)
    assert box is not None
    inside = inside[inside.index(">") + 1 :]
    inside = re.sub(r"<metadata>.*?</metadata>", "", inside, flags=re.DOTALL)
    inside = re.sub(r'\bid="', f'id="{picture.name}-', inside)
    inside = re.sub(r'(?:xlink:)?href="#', f'href="#{picture.name}-', inside)
    inside = inside.replace("url(#", f"url(#{picture.name}-")
    inside = re.sub(r"(font(?:-family)?:[^;\"]*?)'?DejaVu Sans'?[^;\"]*", r"\1sans-serif", inside)
    inside = inside.replace(INK, "currentColor").replace(LINE, "var(--line)")
    for name, colour in COLOURS.items():
        inside = inside.replace(colour, f"var(--{name})")
    title, seen = f"{picture.name}-title", f"{picture.name}-seen"
    return (
        f'<svg role="img" aria-labelledby="{title}" aria-describedby="{seen}" {box.group()}>'
        f'<title id="{title}">{escape(picture.title)}</title>'
        f'<desc id="{seen}">{escape(picture.seen)}</desc>{inside}'
    )


@dataclass(frozen=True, slots=True)
class Section:
    """One subject of a report.

    Attributes:
        name: its anchor.
        heading: what it is about.
        words: paragraphs that come first.
        tables: that are always shown.
        pictures: drawn where they can be; their numbers are folded away where they are.
        folded: text by its heading, set as it is.
    """

    name: str
    heading: str
    words: tuple[str, ...] = ()
    tables: tuple[PlainTable, ...] = ()
    pictures: tuple[Plot, ...] = ()
    folded: Mapping[str, str] = field(default_factory=dict)

    def html(self, drawings: Mapping[str, RenderedPlot]) -> str:
        """The section, with those of its pictures that were drawn.

        Args:
            drawings: by the name of the picture.
        """
        parts = [render_paragraphs(self.words)]
        parts += [
            render_table(table, anchor=f"{self.name}-table-{place}")
            for place, table in enumerate(self.tables)
        ]
        parts += [_picture(one, drawings.get(one.name)) for one in self.pictures]
        for heading, text in self.folded.items():
            inside = f'<pre tabindex="0">{escape(text)}</pre>\n'
            parts.append(folded_html(heading, inside))
        return section_html(self.name, self.heading, "".join(parts))


def _picture(picture: Plot, render_plot: RenderedPlot | None) -> str:
    numbers = render_table(picture.numbers, anchor=f"{picture.name}-numbers")
    if render_plot is None:
        return numbers
    caption = f"<figcaption><strong>{escape(picture.title)}.</strong> {escape(picture.reading)}"
    folded = folded_html(f"{picture.title}: the numbers", numbers)
    return f"<figure>\n{caption}</figcaption>\n{render_plot.svg}\n</figure>\n{folded}"
