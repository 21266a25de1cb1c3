"""Mutual information of one column and the target, from counts in bins of equal numbers of rows.

It sees any dependence, whatever its shape, without a learner: of the column alone, not beside
others. That is also its limit. Where the target's spread depends on the column and its mean does
not, as with volatility and the rank of a return, there is information and no direction. And where
prices move by ticks, a return of one tick tells the price itself, so that every column that follows
the price shares that with the target. Information on the direction alone, below, at or above the
median, is free of the latter, and of the former but for how often the price stands still.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

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
        orders: rows with their dates moved, as `robust_fin.evaluation.importance.shuffled_dates`
            has them.
    """
    return mutual_information(x, y) - float(
        np.mean([mutual_information(x[order], y) for order in orders])
    )
