"""Candidate features ranked by importance, with collinear groups and the stability of the order."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from robust_fin.errors import ConfigError
from robust_fin.evaluation.intervals import Interval
from robust_fin.metrics import correlation
from robust_fin.ranking.importance import Importance

ROUNDING = 1e-9  # of a correlation: equal columns reach 1 all the same

Square = Float[np.ndarray, "features features"]
Groups = tuple[tuple[int, ...], ...]


def rank_correlations(x: Float[np.ndarray, "rows features"]) -> Square:
    """Spearman correlation of every two columns.

    Args:
        x: no column of which is constant.
    """
    ranks = np.stack([rankdata(column) for column in x.T])
    return np.atleast_2d(np.corrcoef(ranks))


def collinear_groups(correlation: Square, *, least: float) -> Groups:
    """Groups in which every two columns have an absolute correlation of at least `least`.

    By complete linkage: a chain of pairs does not make a group. It looks at two columns at a time;
    one that follows from three others together is in no group with them.

    Args:
        correlation: of every two columns.
        least: the absolute correlation that makes two columns tell the same.

    Returns:
        Numbers of the columns, in the order of the first of each group.
    """
    size = len(correlation)
    if size == 1:
        return ((0,),)
    apart = np.clip(1 - np.abs(correlation), 0, 1)
    apart = (apart + apart.T) / 2
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), method="complete")
    label = fcluster(tree, 1 - least + ROUNDING, criterion="distance")
    groups = {int(one): tuple(np.flatnonzero(label == one).tolist()) for one in label}
    return tuple(sorted(groups.values()))


MEASURES = ("importance", "information", "direction")

Places = Int[np.ndarray, "parts candidates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingPlan:
    """How candidates are ranked.

    Attributes:
        k: features that are proposed.
        learner: ridge or lightgbm.
        parts: of the training span that are scored, each by a learner fitted on what is before it.
        first: share of the training rows before the first of them.
        repeats: orders that each column is permuted in.
        draws: bootstrap samples of trading dates.
        collinear: absolute rank correlation that makes two candidates tell the same.
        bins: of candidate and of target, for the mutual information.
    """

    k: int
    learner: str
    parts: int
    first: float
    repeats: int
    draws: int
    collinear: float
    bins: int

    def __post_init__(self) -> None:
        """Refuse what nothing can be ranked with."""
        least = {"k": 1, "parts": 1, "repeats": 1, "draws": 2, "bins": 2}
        for name, value in least.items():
            given = getattr(self, name)
            if not isinstance(given, int) or given < value:
                raise ConfigError(f"select.{name}={given} must be a whole number, at least {value}")
        if not 0 < self.first < 1:
            raise ConfigError(
                f"select.first={self.first} must lie between 0 and 1: it is the share of the "
                "training rows that come before all that are scored"
            )
        if not 0 < self.collinear <= 1:
            raise ConfigError(
                f"select.collinear={self.collinear} must be an absolute correlation, above 0 and "
                "at most 1"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One feature, as the training rows see it.

    Attributes:
        name: of the feature.
        group: number of its collinear group, from 1 in the order of their worth.
        importance: what the forecast loses where this column is permuted.
        together: the same where all columns of its group are.
        information: mutual information with the rank target in nats, mean over parts.
        direction: mutual information with the direction alone.
        places: among all candidates in each part, 1 the best, by each of `MEASURES`.
    """

    name: str
    group: int
    importance: Importance
    together: Importance
    information: float
    direction: float
    places: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Ranking:
    """All candidates, the best first.

    Attributes:
        candidates: group by group.
        stability: how far the parts agree on the order by each of `MEASURES`; see `agreement`.
    """

    candidates: tuple[Candidate, ...]
    stability: Mapping[str, float]

    def proposed(self, k: int) -> list[str]:
        """The first of each of the best `k` groups; fewer where there are fewer."""
        first: dict[int, str] = {}
        for one in self.candidates:
            first.setdefault(one.group, one.name)
        return list(first.values())[:k]

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "stability": dict(self.stability),
            "candidates": [asdict(one) for one in self.candidates],
        }


def rank_candidates(
    names: Sequence[str],
    groups: Groups,
    *,
    single: Sequence[Importance],
    together: Sequence[Importance],
    information: Float[np.ndarray, "parts candidates"],
    direction: Float[np.ndarray, "parts candidates"],
) -> Ranking:
    """Put groups in the order of their importance, and candidates within their group.

    Groups go by the rank IC that is lost where all of a group is permuted, since a column's own
    importance is split among those that tell the same. Within a group they go by the mean of their
    places by importance and by information on the direction. Information has no say between groups:
    it neither knows what the others tell already nor whether a learner can use it.

    Args:
        names: of the candidates.
        groups: numbers of the candidates.
        single: importance of each candidate.
        together: of each group.
        information: with the rank target, in nats.
        direction: with its direction, in nats.
    """
    importance = np.array([one.by_part for one in single]).T
    order = {
        name: places(worth)
        for name, worth in zip(MEASURES, (importance, information, direction), strict=True)
    }
    inside = (order["importance"] + order["direction"]).mean(axis=0)
    candidates = []
    best_first = np.argsort([-one.rank_ic.estimate for one in together], kind="stable")
    for number, group in enumerate(best_first, start=1):
        for column in sorted(groups[group], key=lambda column: float(inside[column])):
            candidates.append(
                Candidate(
                    names[column],
                    number,
                    single[column],
                    together[group],
                    float(information[:, column].mean()),
                    float(direction[:, column].mean()),
                    {name: tuple(found[:, column].tolist()) for name, found in order.items()},
                )
            )
    return Ranking(tuple(candidates), {name: agreement(found) for name, found in order.items()})


def places(worth: Float[np.ndarray, "parts candidates"]) -> Places:
    """Place of each candidate in each part, 1 for the largest; equals share the better one."""
    return rankdata(-worth, method="min", axis=1).astype(np.int64)


def agreement(order: Places) -> float:
    """Mean Spearman correlation of the orders of every two parts; NaN where there is no pair.

    1 where all parts agree, 0 where they have nothing in common. Parts follow each other in time
    and their learners share rows, so they agree more than samples of their own would.
    """
    pairs = combinations(order.astype(np.float64), 2)
    found = [correlation(rankdata(one), rankdata(other)) for one, other in pairs]
    return float(np.mean(found)) if found else float("nan")


def supported(candidates: Sequence[Candidate], names: Sequence[str]) -> list[str]:
    """Those of some candidates whose group loses rank IC in the whole of its interval."""
    above = {one.name: one.together.rank_ic for one in candidates}
    return [name for name in names if above[name].is_above(0)]


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
