"""A section of a report, and how it becomes HTML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from robust_fin.evaluation.markup import (
    PlainTable,
    folded_html,
    section_html,
    table_html,
    words_html,
)
from robust_fin.evaluation.pictures import Drawn, Picture


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
    pictures: tuple[Picture, ...] = ()
    folded: Mapping[str, str] = field(default_factory=dict)

    def html(self, drawings: Mapping[str, Drawn]) -> str:
        """The section, with those of its pictures that were drawn.

        Args:
            drawings: by the name of the picture.
        """
        parts = [words_html(self.words)]
        parts += [
            table_html(table, anchor=f"{self.name}-table-{place}")
            for place, table in enumerate(self.tables)
        ]
        parts += [_picture(one, drawings.get(one.name)) for one in self.pictures]
        for heading, text in self.folded.items():
            inside = f'<pre tabindex="0">{escape(text)}</pre>\n'
            parts.append(folded_html(heading, inside))
        return section_html(self.name, self.heading, "".join(parts))


def _picture(picture: Picture, drawn: Drawn | None) -> str:
    numbers = table_html(picture.numbers, anchor=f"{picture.name}-numbers")
    if drawn is None:
        return numbers
    caption = f"<figcaption><strong>{escape(picture.title)}.</strong> {escape(picture.reading)}"
    folded = folded_html(f"{picture.title}: the numbers", numbers)
    return f"<figure>\n{caption}</figcaption>\n{drawn.svg}\n</figure>\n{folded}"
