"""How often the model that looks best on one half of the dates disappoints on the other half."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

BLOCKS = 16  # of dates: 12,870 ways to take half of them
LEAST_BLOCKS = 6  # below, there are too few ways to count
DATES_A_BLOCK = 5
Scores = Float[np.ndarray, "ways runs"]


@dataclass(frozen=True, slots=True)
class Overfitting:
    """The result of combinatorially symmetric cross-validation.

    Attributes:
        probability: share of the ways in which the best on one half is below the median of all on
            the other; one half where the choice is by luck.
        logits: of the relative rank, on the other half, of the best on the one; one a way.
        ways: how the blocks were halved, in number.
        blocks: of consecutive dates.
    """

    probability: float
    logits: Float[np.ndarray, " ways"]
    ways: int
    blocks: int


def fitting_blocks(dates: int) -> int | None:
    """An even number of blocks of at least `DATES_A_BLOCK` dates; None where there are too few."""
    blocks = min(BLOCKS, dates // DATES_A_BLOCK // 2 * 2)
    return blocks if blocks >= LEAST_BLOCKS else None


def backtest_overfitting(daily: Float[np.ndarray, "dates runs"], *, blocks: int) -> Overfitting:
    """Probability of backtest overfitting: whether choosing the best of some runs means anything.

    Every half of the blocks picks the run with the greatest Sharpe ratio; the other half says
    where that run stands among all.

    Args:
        daily: one value a trading date and run, higher is better, such as the daily rank IC.
        blocks: parts of consecutive dates, an even number.

    Source: Bailey, Borwein, Lopez de Prado and Zhu (2017), The probability of backtest overfitting.
    """
    dates, runs = daily.shape
    assert runs > 1
    assert 1 < blocks <= dates
    assert blocks % 2 == 0
    inside = halves(blocks)
    number = np.sort(np.arange(dates) % blocks)  # the first blocks take what is left over
    chosen = np.argmax(_ratios(daily, number, inside), axis=1)
    ranks = rankdata(_ratios(daily, number, ~inside), axis=1)
    share = ranks[np.arange(len(inside)), chosen] / (runs + 1)
    logits = np.log(share / (1 - share))
    return Overfitting(float(np.mean(logits < 0)), logits, len(inside), blocks)


def halves(blocks: int) -> Bool[np.ndarray, "ways blocks"]:
    """Every way to take half of the blocks."""
    inside = np.zeros((math.comb(blocks, blocks // 2), blocks), dtype=bool)
    for way, taken in enumerate(combinations(range(blocks), blocks // 2)):
        inside[way, list(taken)] = True
    return inside


def _ratios(
    daily: Float[np.ndarray, "dates runs"],
    number: np.ndarray,
    inside: Bool[np.ndarray, "ways blocks"],
) -> Scores:
    """Sharpe ratio of each run on the dates of some blocks; 0 where it never changes there."""
    middle = daily.mean(axis=0)
    apart = daily - middle  # else the squares would lose what little the values differ by
    own = number == np.arange(inside.shape[1])[:, None]
    taken = inside.astype(np.float64)
    count = (taken @ own.sum(axis=1))[:, None]
    mean = taken @ (own @ apart) / count
    variance = (taken @ (own @ apart**2) - count * mean**2) / (count - 1)
    moving = variance > 1e-12 * np.mean(apart**2, axis=0)
    safe = np.sqrt(np.where(moving, variance, 1.0))
    return np.where(moving, (mean + middle) / safe, 0.0)
