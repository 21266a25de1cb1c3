"""Which columns tell the same: groups of high rank correlation."""

import numpy as np
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

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
