"""Elements of the report page, and their HTML, rendered by the Jinja templates in this folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robust_fin.evaluation.tables import PlainTable

TEMPLATES = Path(__file__).parent
STYLE = TEMPLATES / "report.css"


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot, its description in words and the numbers behind it.

    Attributes:
        name: prefix of its ids on the page, and its tag in TensorBoard.
        title: of the plot.
        how_to_read: explains lines, bars and colours.
        description: states the main numbers; read aloud by a screen reader.
        table: the numbers that are drawn.
        draw: draws onto an empty matplotlib figure.
    """

    name: str
    title: str
    how_to_read: str
    description: str
    table: PlainTable
    draw: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class RenderedPlot:
    """A plot as SVG element for the page, and as PNG file of `width` x `height` pixels."""

    svg: Markup
    png: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the report: paragraphs, then tables, plots and folded text by heading."""

    name: str
    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[PlainTable, ...] = ()
    plots: tuple[Plot, ...] = ()
    folded: Mapping[str, str] = field(default_factory=dict)


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_page(**values: object) -> str:
    """Render report.html.j2; the page loads nothing from the network and runs no script."""
    return _templates().get_template("report.html.j2").render(values)


def render_table(table: PlainTable, *, anchor: str) -> str:
    """Render a table as HTML.

    Args:
        table: to render.
        anchor: its id on the page.
    """
    return str(_macros().table(table, anchor))


def render_paragraphs(texts: Sequence[str]) -> str:
    """Render each text as an HTML paragraph."""
    return str(_macros().paragraphs(texts))


def _macros() -> Any:
    return _templates().get_template("macros.html.j2").module
