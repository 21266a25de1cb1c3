"""Pictures of a report: drawn once, then set as SVG into the page and as PNG into TensorBoard."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from typing import Any

from robust_fin.evaluation.markup import PlainTable

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
class Picture:
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
class Drawn:
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


def can_draw() -> bool:
    """Whether matplotlib is installed; robust-fin[report] brings it."""
    return find_spec("matplotlib") is not None


def drawn(picture: Picture) -> Drawn:
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
    return Drawn(for_page(svg.getvalue().decode(), picture), png.getvalue(), width, height)


def for_page(svg: str, picture: Picture) -> str:
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
