"""Controls: training on labels that are wrong on purpose, to see that the result knows it."""

import numpy as np
from jaxtyping import Float

from robust_fin.errors import ConfigError

Rows = Float[np.ndarray, " rows"]
KEPT, SHUFFLED, SWAPPED = "kept", "shuffled", "swapped"


def controlled(rank: Rows, outcome: Rows, *, labels: str, seed: int) -> tuple[Rows, Rows]:
    """The labels that a span is trained or chosen on.

    Shuffled, nothing is left to learn, and a run that still shows skill on the true labels of test
    leaks. Swapped, high for low, a run must order test as well as ever, the wrong way round; a loss
    that pairs forecasts and labels wrongly would not notice.

    Args:
        rank: of the forward returns, in [0, 1].
        outcome: the returns, as fractions.
        labels: kept, shuffled or swapped.
        seed: of the shuffling.

    Raises:
        ConfigError: `labels` is none of them.
    """
    if labels == KEPT:
        return rank, outcome
    if labels == SHUFFLED:
        order = np.random.default_rng([seed, rank.size]).permutation(rank.size)
        return rank[order], outcome[order]
    if labels == SWAPPED:
        return 1 - rank, -outcome
    raise ConfigError(f"debug.labels={labels} is none of {KEPT}, {SHUFFLED}, {SWAPPED}")
