"""A page by hand: escaped text, tables with captions and scopes, sections in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

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


def table_html(table: PlainTable, *, anchor: str) -> str:
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


def words_html(words: Sequence[str]) -> str:
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
