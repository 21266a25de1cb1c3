"""Permutation importance and mutual information of features."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
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

SUMS = COLUMNS[: COLUMNS.index("xy") + 1]  # what skill and rank IC need

Inputs = Float[np.ndarray, "rows features"]
Forecast = Callable[[np.ndarray], np.ndarray]
Statistic = Callable[[Float[np.ndarray, "draws sums"]], Float[np.ndarray, " draws"]]


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """Rows in the order of time that a learner was not fitted on, and what it makes of them.

    Attributes:
        x: the learner's inputs.
        target: rank of the outcome among the rows it was fitted on.
        outcome: forward return, a fraction.
        trading_date: datetime64, of each row.
        trivial: median of the target over the rows it was fitted on, in rank units.
        forecast: inputs -> scores in rank units.
    """

    x: Inputs
    target: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    trading_date: np.ndarray
    trivial: float
    forecast: Forecast

    def date_starts(self) -> Int[np.ndarray, " dates"]:
        """The first row of each trading date."""
        new = self.trading_date[1:] != self.trading_date[:-1]
        return np.concatenate([[0], np.flatnonzero(new) + 1])


@dataclass(frozen=True, slots=True)
class PartSums:
    """Sums per trading date of one part: every sample of dates follows from them.

    Ranks are taken once, within the part, and count from -0.5 to 0.5, so that parts add up.

    Attributes:
        whole: `SUMS` of the forecast.
        permuted: of the forecast with each set of columns permuted, each time.
    """

    whole: Float[np.ndarray, "dates sums"]
    permuted: Float[np.ndarray, "sets repeats dates sums"]


@dataclass(frozen=True, slots=True)
class Importance:
    """What is lost where a set of columns is permuted.

    Attributes:
        rank_ic: loss of rank IC, over all parts.
        skill: loss of Huber skill over the constant.
        by_part: loss of rank IC in each part.
    """

    rank_ic: Interval
    skill: Interval
    by_part: tuple[float, ...]


def shuffled_dates(
    starts: Int[np.ndarray, " dates"], *, rows: int, draw: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """Row numbers with whole trading dates in another order, end to end, each rolled round.

    Rows of a date stay neighbours: a column that hardly changes within a day would otherwise carry
    values that no day has. The rolls, one a date, are for columns that are alike every day, such as
    the hour, which an exchange of dates alone would leave as they are.

    Args:
        starts: the first row of each date.
        rows: in all.
        draw: of the order and the rolls.
    """
    sizes = np.diff(np.append(starts, rows))
    rolls = draw.integers(sizes)
    order = draw.permutation(starts.size)
    return np.concatenate(
        [starts[one] + (np.arange(sizes[one]) + rolls[one]) % sizes[one] for one in order]
    )


def part_sums(
    part: ScoredPart, sets: Sequence[Sequence[int]], *, repeats: int, seed: int
) -> PartSums:
    """Score a part as it is, and with each set of columns permuted.

    Args:
        part: the rows.
        sets: numbers of the columns that move together; all sets move in the same orders, so that
            they compare.
        repeats: orders.
        seed: of the orders.
    """
    starts, rows = part.date_starts(), len(part.x)
    draw = np.random.default_rng(seed)
    orders = [shuffled_dates(starts, rows=rows, draw=draw) for _ in range(repeats)]
    place = _centred_ranks(part.outcome)

    def sums(x: Inputs) -> Float[np.ndarray, "dates sums"]:
        return np.add.reduceat(_terms(part, place, part.forecast(x)), starts, axis=0)

    whole = sums(part.x)
    permuted = np.empty((len(sets), repeats, *whole.shape))
    for number, columns in enumerate(sets):
        for time, x in enumerate(_permuted(part.x, list(columns), orders)):
            permuted[number, time] = sums(x)
    return PartSums(whole, permuted)


def importances(parts: Sequence[PartSums], *, draws: int, seed: int) -> list[Importance]:
    """Importance of each set over all parts, with 95 % intervals.

    Each sample takes trading dates of all parts by stationary bootstrap, and orders of the columns
    by chance from those that were tried; as other dates also mean other orders, that makes the
    interval a little too wide. The fits are not repeated: how much another stretch of training rows
    would have changed the learner shows in `by_part` alone.

    Args:
        parts: in the order of time.
        draws: bootstrap samples.
        seed: of the samples.
    """
    samples = _samples(parts, draws=draws, seed=seed)
    permuted = np.concatenate([part.permuted for part in parts], axis=2)
    picks = np.random.default_rng(seed).integers(permuted.shape[1], size=(draws, permuted.shape[1]))
    whole = np.concatenate([part.whole for part in parts])
    found = []
    for number, one in enumerate(permuted):
        by_part = tuple(
            float(_lost(part.whole, part.permuted[number], rank_ic_of)[0].mean()) for part in parts
        )
        intervals = [
            _interval(whole, one, figure, samples=samples, picks=picks)
            for figure in (rank_ic_of, skill_of)
        ]
        found.append(Importance(intervals[0], intervals[1], by_part))
    return found


def carried(parts: Sequence[PartSums], *, draws: int, seed: int) -> tuple[Interval, Interval]:
    """Rank IC and Huber skill of the forecasts as they are, over all parts.

    Args:
        parts: in the order of time.
        draws: bootstrap samples.
        seed: of the samples.
    """
    samples = _samples(parts, draws=draws, seed=seed)
    whole = np.concatenate([part.whole for part in parts])
    return samples.interval(whole, rank_ic_of), samples.interval(whole, skill_of)


def _samples(parts: Sequence[PartSums], *, draws: int, seed: int) -> DateBootstrap:
    whole = np.concatenate([part.whole for part in parts])
    saved = column(whole, "trivial") - column(whole, "loss")
    return DateBootstrap.for_series(saved, column(whole, "xy"), draws=draws, seed=seed)


def _permuted(x: Inputs, columns: list[int], orders: Sequence[np.ndarray]) -> Iterator[Inputs]:
    """One array, changed in place from order to order."""
    changed = x.copy()
    for order in orders:
        changed[:, columns] = x[order][:, columns]
        yield changed


def _centred_ranks(values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    return (rankdata(values) - (values.size + 1) / 2) / values.size


def _terms(
    part: ScoredPart, place: Float[np.ndarray, " rows"], score: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows sums"]:
    """`SUMS` before they are summed."""
    x, y = _centred_ranks(score), place
    losses = (huber_terms(score, part.target), huber_terms(part.trivial, part.target))
    return np.stack([*losses, np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def _lost(
    whole: Float[np.ndarray, "dates sums"],
    permuted: Float[np.ndarray, "repeats dates sums"],
    figure: Statistic,
    weights: Float[np.ndarray, "draws dates"] | None = None,
) -> Float[np.ndarray, "draws repeats"]:
    """By how much a figure falls, for each sample of dates and each order; all dates by default.

    A forecast that ranks nothing, as one that is constant, has nothing to lose.
    """
    if weights is None:
        weights = np.ones((1, len(whole)))
    before = np.nan_to_num(figure(weights @ whole))
    after = [np.nan_to_num(figure(weights @ one)) for one in permuted]
    return before[:, None] - np.stack(after, axis=1)


def _interval(
    whole: Float[np.ndarray, "dates sums"],
    permuted: Float[np.ndarray, "repeats dates sums"],
    figure: Statistic,
    *,
    samples: DateBootstrap,
    picks: Int[np.ndarray, "draws repeats"],
) -> Interval:
    estimate = float(_lost(whole, permuted, figure).mean())
    lost = _lost(whole, permuted, figure, samples.weights)
    drawn = np.take_along_axis(lost, picks, axis=1).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(estimate, float(low), float(high))


Bins = Int[np.ndarray, " rows"]


def quantile_bins(values: Float[np.ndarray, " rows"], bins: int) -> Bins:
    """Number of each value's bin; equal values share one, so that there may be fewer.

    Args:
        values: of one column.
        bins: as many as there are distinct values for.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def mutual_information(x: Bins, y: Bins) -> float:
    """Mutual information of two binned columns in nats, less what independent rows would show.

    The count that chance adds is (bins of x - 1) (bins of y - 1) / (2 rows), for rows that are
    independent of each other. It can thus be a little below 0.

    Args:
        x: bin of each row, from 0 on.
        y: likewise.

    Source: Miller (1955), Note on the bias of information estimates; Moddemeijer (1989).
    """
    width = int(y.max()) + 1
    counts = np.bincount(x * width + y, minlength=(int(x.max()) + 1) * width)
    joint = counts.reshape(-1, width) / x.size
    of_x, of_y = joint.sum(axis=1), joint.sum(axis=0)
    apart = np.outer(of_x, of_y)
    seen = joint > 0
    plugged_in = float(np.sum(joint[seen] * np.log(joint[seen] / apart[seen])))
    chance = (np.count_nonzero(of_x) - 1) * (np.count_nonzero(of_y) - 1) / (2 * x.size)
    return plugged_in - chance


def directions(target: Float[np.ndarray, " rows"], *, median: float) -> Bins:
    """0, 1 or 2 for a target below, at or above the median."""
    return (np.sign(target - median) + 1).astype(np.int64)


def beyond_chance(x: Bins, y: Bins, *, orders: Sequence[Int[np.ndarray, " rows"]]) -> float:
    """Mutual information in nats, less that of the same column on other dates.

    Both column and target have memory, so a part holds fewer independent rows than rows, and chance
    adds more than `mutual_information` takes off.

    Args:
        x: bin of each row, in the order of time.
        y: likewise.
        orders: rows with their dates moved, as `robust_fin.ranking.importance.shuffled_dates`
            has them.
    """
    return mutual_information(x, y) - float(
        np.mean([mutual_information(x[order], y) for order in orders])
    )
