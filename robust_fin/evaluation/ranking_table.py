"""A ranking of candidates as it is shown."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from robust_fin.evaluation.bootstrap import Interval
from robust_fin.evaluation.ranking import Candidate, Ranking

COLUMNS = ("candidate", "#", "loss", "with its group", "places", "nats", "sign")
NOTES = (
    "#: collinear group, the most important first; * is proposed. loss: rank IC in thousandths "
    "that the learner loses where the column is moved to other dates, and with all of its group; "
    "columns of a group share their worth, so the group's counts. places: best and worst by loss "
    "over the parts, 1 the best",
    "nats: thousandths, that the column alone has in common with the rank target; also where only "
    "the spread depends on it, or where a tick tells the price. sign: with the direction alone",
)


def ranking_table(ranking: Ranking, *, proposed: Sequence[str], title: str) -> Table:
    """A row a candidate, the best first; those proposed have a star."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for one in ranking.candidates:
        table.add_row(*cells(one, proposed=proposed))
    return table


def cells(one: Candidate, *, proposed: Sequence[str]) -> list[str]:
    """Of one candidate."""
    return [
        one.name,
        f"{one.group} *" if one.name in proposed else f"{one.group}  ",
        f"{1e3 * one.importance.rank_ic.estimate:.1f}",
        interval_text(one.together.rank_ic, scale=1e3, digits=1),
        places_text(one.places["importance"]),
        f"{1e3 * one.information:.1f}",
        f"{1e3 * one.direction:.2f}",
    ]


def places_text(places: Sequence[int]) -> str:
    """Such as `1..4`."""
    return f"{min(places)}..{max(places)}"


def interval_text(interval: Interval, *, scale: float, digits: int) -> str:
    """Such as `1.2 [0.8, 1.6]`."""
    parts = (interval.estimate, interval.low, interval.high)
    middle, low, high = (f"{scale * one:.{digits}f}" for one in parts)
    return f"{middle} [{low}, {high}]"
