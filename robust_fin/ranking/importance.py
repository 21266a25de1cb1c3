"""Permutation importance, mutual information and collinear groups of features."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from robust_fin.evaluation.intervals import (
    COLUMNS,
    DateBootstrap,
    Interval,
    column,
    rank_ic_of,
    skill_of,
)
from robust_fin.metrics import huber_terms

SUMS = COLUMNS[: COLUMNS.index("xy") + 1]  # the sums that skill and rank IC need
ROUNDING = 1e-9  # tolerance of a correlation, so that equal columns reach 1

Matrix = Float[np.ndarray, "rows features"]
SquareMatrix = Float[np.ndarray, "features features"]
Bins = Int[np.ndarray, " rows"]
Groups = tuple[tuple[int, ...], ...]
Scorer = Callable[[np.ndarray], np.ndarray]
Statistic = Callable[[Float[np.ndarray, "draws sums"]], Float[np.ndarray, " draws"]]


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """Rows in time order that a learner was not fitted on, and its forecast function.

    Attributes:
        x: inputs of the learner.
        target: rank of the outcome among the fitted rows.
        outcome: forward return, a fraction.
        trading_date: datetime64, per row.
        trivial: median target of the fitted rows, in rank units.
        forecast: maps inputs to scores in rank units.
    """

    x: Matrix
    target: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    trading_date: np.ndarray
    trivial: float
    forecast: Scorer

    def date_starts(self) -> Int[np.ndarray, " dates"]:
        """Return the first row of each trading date."""
        new = self.trading_date[1:] != self.trading_date[:-1]
        return np.concatenate([[0], np.flatnonzero(new) + 1])

    def shuffles(self, count: int, *, seed: int) -> list[Int[np.ndarray, " rows"]]:
        """Draw row orders by `shuffle_dates`."""
        draw, starts = np.random.default_rng(seed), self.date_starts()
        return [shuffle_dates(starts, rows=len(self.x), draw=draw) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class PartSums:
    """Sums per trading date of one part, from which every bootstrap sample is computed.

    Ranks are taken once within the part and range from -0.5 to 0.5, so that parts can be added.

    Attributes:
        original: `SUMS` of the forecast.
        permuted: `SUMS` of the forecast after each permutation of each set of columns.
    """

    original: Float[np.ndarray, "dates sums"]
    permuted: Float[np.ndarray, "sets repeats dates sums"]


@dataclass(frozen=True, slots=True)
class Importance:
    """Loss caused by permuting a set of columns.

    Attributes:
        rank_ic: loss of rank IC, over all parts.
        skill: loss of Huber skill over the constant.
        by_part: loss of rank IC in each part.
    """

    rank_ic: Interval
    skill: Interval
    by_part: tuple[float, ...]


def shuffle_dates(
    starts: Int[np.ndarray, " dates"], *, rows: int, draw: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """Reorder whole trading dates and rotate the rows within each date.

    Rows of a date stay together, because a column that hardly changes within a day would otherwise
    get values that no day has. The rotation is needed for columns that are the same every day, such
    as the hour: reordering dates would leave them unchanged.

    Args:
        starts: first row of each date.
        rows: number of rows.
        draw: random generator.

    Returns:
        Row numbers in the new order.
    """
    sizes = np.diff(np.append(starts, rows))
    shifts = draw.integers(sizes)
    order = draw.permutation(starts.size)
    return np.concatenate(
        [starts[date] + (np.arange(sizes[date]) + shifts[date]) % sizes[date] for date in order]
    )


def score_part(
    part: ScoredPart, sets: Sequence[Sequence[int]], *, repeats: int, seed: int
) -> PartSums:
    """Score a part as it is, and with each set of columns permuted.

    Args:
        part: the rows.
        sets: sets of column numbers to permute together; all sets use the same permutations, so
            that they can be compared.
        repeats: number of permutations.
        seed: seed of the permutations.
    """
    starts, orders = part.date_starts(), part.shuffles(repeats, seed=seed)
    outcome_ranks = _centered_ranks(part.outcome)

    def sums(x: Matrix) -> Float[np.ndarray, "dates sums"]:
        return np.add.reduceat(_terms(part, outcome_ranks, part.forecast(x)), starts, axis=0)

    original = sums(part.x)
    permuted = np.empty((len(sets), repeats, *original.shape))
    for number, columns in enumerate(sets):
        for repeat, x in enumerate(_permuted(part.x, list(columns), orders)):
            permuted[number, repeat] = sums(x)
    return PartSums(original, permuted)


def permutation_importances(
    parts: Sequence[PartSums], *, draws: int, seed: int
) -> list[Importance]:
    """Compute the importance of each set over all parts, with 95 % intervals.

    Each sample draws trading dates of all parts by stationary bootstrap, and permutations from
    those that were tried. Other dates also mean other permutations, so the interval is slightly too
    wide. The learner is not fitted again: `by_part` alone shows how much it depends on the training
    rows.

    Args:
        parts: in time order.
        draws: number of bootstrap samples.
        seed: seed of the samples.
    """
    samples, original = _bootstrap(parts, draws=draws, seed=seed)
    permuted = np.concatenate([part.permuted for part in parts], axis=2)
    picks = np.random.default_rng(seed).integers(permuted.shape[1], size=(draws, permuted.shape[1]))
    importances = []
    for number, sums in enumerate(permuted):
        by_part = tuple(
            float(_loss(part.original, part.permuted[number], rank_ic_of)[0].mean())
            for part in parts
        )
        rank_ic, skill = (
            _loss_interval(original, sums, statistic, weights=samples.weights, picks=picks)
            for statistic in (rank_ic_of, skill_of)
        )
        importances.append(Importance(rank_ic, skill, by_part))
    return importances


def forecast_figures(parts: Sequence[PartSums], *, draws: int, seed: int) -> dict[str, Interval]:
    """Compute rank IC and Huber skill of the unpermuted forecasts over all parts.

    Args:
        parts: in time order.
        draws: number of bootstrap samples.
        seed: seed of the samples.
    """
    samples, original = _bootstrap(parts, draws=draws, seed=seed)
    statistics = {"rank_ic": rank_ic_of, "skill": skill_of}
    return {name: samples.interval(original, figure) for name, figure in statistics.items()}


def _bootstrap(
    parts: Sequence[PartSums], *, draws: int, seed: int
) -> tuple[DateBootstrap, Float[np.ndarray, "dates sums"]]:
    original = np.concatenate([part.original for part in parts])
    gain = column(original, "trivial") - column(original, "loss")
    samples = DateBootstrap.for_series(gain, column(original, "xy"), draws=draws, seed=seed)
    return samples, original


def _permuted(x: Matrix, columns: list[int], orders: Sequence[np.ndarray]) -> Iterator[Matrix]:
    """Yield the same array, changed in place for each order."""
    changed = x.copy()
    for order in orders:
        changed[:, columns] = x[order][:, columns]
        yield changed


def _centered_ranks(values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    return (rankdata(values) - (values.size + 1) / 2) / values.size


def _terms(
    part: ScoredPart, y: Float[np.ndarray, " rows"], score: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows sums"]:
    """Return the terms of `SUMS` per row; `y` holds the centered ranks of the outcome."""
    x = _centered_ranks(score)
    losses = (huber_terms(score, part.target), huber_terms(part.trivial, part.target))
    return np.stack([*losses, np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def _loss(
    original: Float[np.ndarray, "dates sums"],
    permuted: Float[np.ndarray, "repeats dates sums"],
    statistic: Statistic,
    weights: Float[np.ndarray, "draws dates"] | None = None,
) -> Float[np.ndarray, "draws repeats"]:
    """Return the loss of a statistic for each sample of dates and each permutation.

    Without weights there is one sample of all dates. A constant forecast has a rank IC of NaN,
    which counts as 0.
    """
    if weights is None:
        weights = np.ones((1, len(original)))
    before = np.nan_to_num(statistic(weights @ original))
    after = [np.nan_to_num(statistic(weights @ sums)) for sums in permuted]
    return before[:, None] - np.stack(after, axis=1)


def _loss_interval(
    original: Float[np.ndarray, "dates sums"],
    permuted: Float[np.ndarray, "repeats dates sums"],
    statistic: Statistic,
    *,
    weights: Float[np.ndarray, "draws dates"],
    picks: Int[np.ndarray, "draws repeats"],
) -> Interval:
    estimate = float(_loss(original, permuted, statistic).mean())
    losses = _loss(original, permuted, statistic, weights)
    drawn = np.take_along_axis(losses, picks, axis=1).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(estimate, float(low), float(high))


def quantile_bins(values: Float[np.ndarray, " rows"], bins: int) -> Bins:
    """Return the quantile bin of each value; equal values share a bin, so there may be fewer.

    Args:
        values: one column.
        bins: number of bins.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def direction_bins(target: Float[np.ndarray, " rows"], *, median: float) -> Bins:
    """Return 0, 1 or 2 for a target below, at or above the median."""
    return (np.sign(target - median) + 1).astype(np.int64)


def mutual_information(x: Bins, y: Bins) -> float:
    """Compute the mutual information of two binned columns in nats, corrected for its bias.

    The bias (bins of x - 1) (bins of y - 1) / (2 rows) holds for independent rows. The result can
    be slightly negative.

    Args:
        x: bin of each row, from 0 on.
        y: likewise.

    Source: Miller (1955), Note on the bias of information estimates; Moddemeijer (1989).
    """
    width = int(y.max()) + 1
    counts = np.bincount(x * width + y, minlength=(int(x.max()) + 1) * width)
    joint = counts.reshape(-1, width) / x.size
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    independent = np.outer(p_x, p_y)
    seen = joint > 0
    plug_in = float(np.sum(joint[seen] * np.log(joint[seen] / independent[seen])))
    bias = (np.count_nonzero(p_x) - 1) * (np.count_nonzero(p_y) - 1) / (2 * x.size)
    return plug_in - bias


def excess_information(x: Bins, y: Bins, *, orders: Sequence[Int[np.ndarray, " rows"]]) -> float:
    """Compute the mutual information in nats, minus its mean after dates are shuffled.

    Column and target are autocorrelated, so there are fewer independent rows than rows, and the
    bias is larger than `mutual_information` corrects for.

    Args:
        x: bin of each row, in time order.
        y: likewise.
        orders: row orders from `shuffle_dates`.
    """
    shuffled = [mutual_information(x[order], y) for order in orders]
    return mutual_information(x, y) - float(np.mean(shuffled))


def rank_correlations(x: Matrix) -> SquareMatrix:
    """Compute the Spearman correlation of every two columns; no column may be constant."""
    ranks = np.stack([rankdata(values) for values in x.T])
    return np.atleast_2d(np.corrcoef(ranks))


def collinear_groups(correlation: SquareMatrix, *, least: float) -> Groups:
    """Group columns so that every two of a group have an absolute correlation of at least `least`.

    Complete linkage is used, so a chain of correlated pairs does not make a group. A column that is
    a combination of three others, and of no single one, stays outside their group.

    Args:
        correlation: correlation of every two columns.
        least: smallest absolute correlation within a group.

    Returns:
        Column numbers of each group, ordered by the first column.
    """
    if len(correlation) == 1:
        return ((0,),)
    distance = np.clip(1 - np.abs(correlation), 0, 1)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="complete")
    label = fcluster(tree, 1 - least + ROUNDING, criterion="distance")
    groups = {tuple(np.flatnonzero(label == number).tolist()) for number in np.unique(label)}
    return tuple(sorted(groups))
