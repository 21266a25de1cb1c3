"""Ranking of candidate features by importance, on the training rows of one fold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import rankdata

from robust_fin.errors import ConfigError
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.verdict import format_interval
from robust_fin.metrics import correlation
from robust_fin.ranking.importance import (
    Groups,
    Importance,
    ScoredPart,
    collinear_groups,
    direction_bins,
    excess_information,
    forecast_figures,
    permutation_importances,
    quantile_bins,
    rank_correlations,
    score_part,
)
from robust_fin.ranking.learners import LEARNERS, TrainingSpan

MEASURES = ("importance", "information", "direction")
CORRELATED_ROWS = 200_000  # evenly spaced rows for the correlation of two columns

Ranks = Int[np.ndarray, "parts candidates"]
Scores = Float[np.ndarray, "parts candidates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingPlan:
    """Settings of a feature ranking.

    Attributes:
        k: number of features to propose.
        learner: name of a learner in `LEARNERS`.
        parts: number of scored parts, each with a learner fitted on the rows before it.
        first: share of the training rows before the first part.
        repeats: number of permutations of each column.
        draws: number of bootstrap samples of trading dates.
        collinear: absolute rank correlation from which two candidates are collinear.
        bins: number of bins of candidate and target for the mutual information.
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
        """Raise ConfigError unless every setting is in its range."""
        if self.learner not in LEARNERS:
            raise ConfigError(f"select.learner={self.learner} must be one of {', '.join(LEARNERS)}")
        least = {"k": 1, "parts": 1, "repeats": 1, "draws": 2, "bins": 2}
        for name, value in least.items():
            given = getattr(self, name)
            if not isinstance(given, int) or given < value:
                raise ConfigError(f"select.{name}={given} must be a whole number, at least {value}")
        if not 0 < self.first < 1:
            raise ConfigError(
                f"select.first={self.first} must be between 0 and 1: it is the share of the "
                "training rows before the first scored part"
            )
        if not 0 < self.collinear <= 1:
            raise ConfigError(
                f"select.collinear={self.collinear} must be an absolute correlation, above 0 and "
                "at most 1"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """Figures of one feature on the training rows.

    Attributes:
        name: name of the feature.
        group: number of its collinear group, from 1 for the most important.
        importance: loss when its column is permuted.
        together: loss when all columns of its group are permuted.
        information: mutual information with the rank target in nats, mean over parts.
        direction: mutual information with the direction only.
        places: rank among all candidates in each part, 1 for the best, by each of `MEASURES`.
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
    """All candidates, best first.

    Attributes:
        candidates: group by group.
        stability: agreement of the parts on the order, by each of `MEASURES`.
    """

    candidates: tuple[Candidate, ...]
    stability: Mapping[str, float]

    def proposed(self, k: int) -> list[str]:
        """Return the first candidate of each of the best `k` groups, or of all if fewer."""
        first: dict[int, str] = {}
        for candidate in self.candidates:
            first.setdefault(candidate.group, candidate.name)
        return list(first.values())[:k]

    def supported(self, names: Sequence[str]) -> list[str]:
        """Return the names whose group has an importance with its interval above 0."""
        together = {candidate.name: candidate.together for candidate in self.candidates}
        return [name for name in names if together[name].rank_ic.is_above(0)]


def rank_candidates(
    names: Sequence[str],
    groups: Groups,
    *,
    single: Sequence[Importance],
    together: Sequence[Importance],
    information: Scores,
    direction: Scores,
) -> Ranking:
    """Order the groups by importance, and the candidates within each group.

    Groups are ordered by the rank IC lost when all their columns are permuted, because collinear
    columns share their importance. Within a group, candidates are ordered by the mean of their
    ranks by importance and by information on the direction. Information does not order the groups:
    it does not know what other features contain, nor what a learner can use.

    Args:
        names: names of the candidates.
        groups: candidate numbers of each group.
        single: importance of each candidate.
        together: importance of each group.
        information: mutual information with the rank target, in nats.
        direction: mutual information with its direction, in nats.
    """
    importance = np.array([loss.by_part for loss in single]).T
    scores = zip(MEASURES, (importance, information, direction), strict=True)
    ranks = {name: rank_in_parts(values) for name, values in scores}
    inside = (ranks["importance"] + ranks["direction"]).mean(axis=0)
    candidates = []
    best_first = np.argsort([-loss.rank_ic.estimate for loss in together], kind="stable")
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
                    {name: tuple(of[:, column].tolist()) for name, of in ranks.items()},
                )
            )
    return Ranking(tuple(candidates), {name: agreement(of) for name, of in ranks.items()})


def rank_in_parts(scores: Scores) -> Ranks:
    """Rank the candidates within each part, 1 for the largest; ties share the better rank."""
    return rankdata(-scores, method="min", axis=1).astype(np.int64)


def agreement(ranks: Ranks) -> float:
    """Compute the mean Spearman correlation of every two parts; NaN for a single part.

    It is 1 if all parts agree and 0 if they are unrelated. Parts are consecutive and their learners
    share rows, so they agree more than independent samples would.
    """
    pairs = combinations(ranks.astype(np.float64), 2)
    correlations = [correlation(rankdata(first), rankdata(second)) for first, second in pairs]
    return float(np.mean(correlations)) if correlations else float("nan")


@dataclass(frozen=True, slots=True)
class FoldRanking:
    """Result of the training rows of one fold.

    Attributes:
        fold: number of the fold.
        rows: number of training rows.
        judged: number of training rows that are val or test rows of another fold.
        scored: first and last trading date and number of rows of each part.
        ranking: the ranked candidates.
        learner: rank IC and skill of the learner on the scored parts, with all candidates and with
            the proposed ones. The latter were chosen on the same parts, so theirs are too good.
        proposed: names of the proposed features.
    """

    fold: int
    rows: int
    judged: int
    scored: tuple[dict[str, Any], ...]
    ranking: Ranking
    learner: dict[str, dict[str, Interval]]
    proposed: tuple[str, ...]

    @property
    def supported(self) -> list[str]:
        """Proposed features whose group has an importance with its interval above 0."""
        return self.ranking.supported(self.proposed)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of select.json."""
        return {
            "fold": self.fold,
            "train_rows": self.rows,
            "train_rows_judged_elsewhere": self.judged,
            "scored": list(self.scored),
            "learner": {
                name: {key: asdict(interval) for key, interval in figures.items()}
                for name, figures in self.learner.items()
            },
            "proposed": list(self.proposed),
            "supported": self.supported,
            "stability": dict(self.ranking.stability),
            "candidates": [asdict(candidate) for candidate in self.ranking.candidates],
        }


@dataclass(frozen=True, slots=True)
class FeatureSelector:
    """Ranks the features of a training span with a learner.

    Attributes:
        plan: the settings.
        seed: seed of the learner, the permutations and the bootstrap.
        threads: number of the learner's threads.
    """

    plan: RankingPlan
    seed: int
    threads: int

    def rank(self, span: TrainingSpan, *, fold: int) -> FoldRanking:
        """Rank the features of a training span.

        Args:
            span: the rows.
            fold: number of the fold that the rows train.
        """
        plan, seed = self.plan, self.seed
        correlations = rank_correlations(span.x(most=CORRELATED_ROWS))
        groups = collinear_groups(correlations, least=plan.collinear)
        columns = [(column,) for column in range(len(span.names))]
        sets = list(dict.fromkeys([*columns, *groups]))
        sums, information, scored = [], [], []
        for number, part in enumerate(self._parts(span, span.names)):
            sums.append(score_part(part, sets, repeats=plan.repeats, seed=seed + number))
            information.append(self._information(part, seed=seed + number))
            scored.append(_describe_part(part))
        importances = permutation_importances(sums, draws=plan.draws, seed=seed)
        importance = dict(zip(sets, importances, strict=True))
        on_rank, on_direction = np.array(information).transpose(1, 0, 2)
        ranking = rank_candidates(
            span.names,
            groups,
            single=[importance[column] for column in columns],
            together=[importance[group] for group in groups],
            information=on_rank,
            direction=on_direction,
        )
        proposed = tuple(ranking.proposed(plan.k))
        learner = {
            "all": forecast_figures(sums, draws=plan.draws, seed=seed),
            "proposed": self.figures(span, proposed),
        }
        return FoldRanking(
            fold, span.rows.size, span.judged, tuple(scored), ranking, learner, proposed
        )

    def figures(self, span: TrainingSpan, names: Sequence[str]) -> dict[str, Interval]:
        """Compute rank IC and skill of a learner with these inputs, over all parts."""
        parts = self._parts(span, names)
        sums = [score_part(part, [], repeats=1, seed=self.seed) for part in parts]
        return forecast_figures(sums, draws=self.plan.draws, seed=self.seed)

    def _parts(self, span: TrainingSpan, names: Sequence[str]) -> Iterator[ScoredPart]:
        fit = LEARNERS[self.plan.learner]
        learner = partial(fit, seed=self.seed, threads=self.threads)
        return span.parts(self.plan.parts, first=self.plan.first, learner=learner, names=names)

    def _information(self, part: ScoredPart, *, seed: int) -> Float[np.ndarray, "2 candidates"]:
        """Return each column's information on the rank target and on its direction, in nats."""
        orders, bins = part.shuffles(self.plan.repeats, seed=seed), self.plan.bins
        targets = (
            quantile_bins(part.target, bins),
            direction_bins(part.target, median=part.trivial),
        )
        columns = [quantile_bins(x, bins) for x in part.x.T]
        return np.array(
            [[excess_information(x, y, orders=orders) for x in columns] for y in targets]
        )


def _describe_part(part: ScoredPart) -> dict[str, Any]:
    first, last = part.trading_date[[0, -1]].astype("datetime64[D]").astype(str)
    return {"first_date": str(first), "last_date": str(last), "rows": len(part.x)}


COLUMNS = ("candidate", "#", "loss", "with its group", "places", "nats", "sign")
NOTES = (
    "#: collinear group, most important first; * is proposed. loss: rank IC in thousandths that "
    "the learner loses when the column is moved to other dates, and with all of its group; columns "
    "of a group share their importance, so compare groups. places: best and worst rank by loss "
    "over the parts",
    "nats: mutual information of the column with the rank target, in thousandths; it also counts "
    "dependence of the spread only, and a tick size that reveals the price. sign: with the "
    "direction only",
)


def ranking_table(ranking: Ranking, *, proposed: Sequence[str], title: str) -> Table:
    """Tabulate the candidates, best first; the proposed ones have a star."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for candidate in ranking.candidates:
        table.add_row(
            candidate.name,
            f"{candidate.group} *" if candidate.name in proposed else f"{candidate.group}  ",
            f"{1e3 * candidate.importance.rank_ic.estimate:.1f}",
            format_thousandths(candidate.together.rank_ic),
            format_ranks(candidate.places["importance"]),
            f"{1e3 * candidate.information:.1f}",
            f"{1e3 * candidate.direction:.2f}",
        )
    return table


def format_ranks(ranks: Sequence[int]) -> str:
    """Format the best and the worst rank: 1..4."""
    return f"{min(ranks)}..{max(ranks)}"


def format_thousandths(interval: Interval) -> str:
    """Format a number and its interval in thousandths: 1.2 [0.8, 1.6]."""
    ends = (interval.estimate, interval.low, interval.high)
    return format_interval(Interval(*(1e3 * value for value in ends)), digits=1)
