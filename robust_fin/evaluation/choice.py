"""What the best of several trials is worth on dates that did not choose it."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from robust_fin.evaluation.bootstrap import DateDraws, Interval, expanded_tail
from robust_fin.evaluation.significance import DRAWS

Gains = Float[np.ndarray, "dates trials"]
LEAST_DATES = 5  # a sample leaves about a third of them out, and two must remain to measure on


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice by skill among trials that were all scored on the same dates.

    Attributes:
        trials: among which was chosen.
        dates: that they were scored on.
        best: number of the trial with the greatest skill.
        shown: its skill on the dates that chose it, which flatter it.
        deflated: skill of a trial chosen on some of the dates, on the others.
        apart: that skill less the one of the reference on the same others; None without one.
    """

    trials: int
    dates: int
    best: int
    shown: float
    deflated: Interval
    apart: Interval | None


def choice(
    gains: Gains, *, reference: int | None = None, draws: int = DRAWS, seed: int = 0
) -> Choice:
    """Choose over and over on samples of the dates, and measure on the dates left out of them.

    What the best owes to the dates that chose it is not counted, however many trials there are and
    however alike they are. Skill that a trial owes to a lucky seed is its own, and is counted.
    What is not taken off: that a trial kept its best epoch by these dates, and that a search tried
    what they had made look good.

    Args:
        gains: share of its skill that each trial owes to each date, in the order of time; a column
            adds up to the skill of its trial. At least `LEAST_DATES`.
        reference: number of a trial that the choice is held against.
        draws: bootstrap samples.
        seed: of the resampling.

    Source: Tsamardinos, Greasidou and Borboudakis (2018), Bootstrapping the out-of-sample
    predictions for efficient and accurate cross-validation, section 3 (BBC-CV); here with blocks of
    dates for rows.
    """
    dates, trials = gains.shape
    assert dates >= LEAST_DATES
    skills = gains.sum(axis=0)
    best = int(np.argmax(skills))
    samples = DateDraws.of(*gains.T, draws=draws, seed=seed)
    left = samples.weights == 0
    kept = left.any(axis=1)
    winner = np.argmax(samples.weights[kept] @ gains, axis=1)
    found = _measured(gains, left[kept], dates)
    chosen = found[np.arange(len(found)), winner]
    blocks = dates / samples.block
    return Choice(
        trials,
        dates,
        best,
        float(skills[best]),
        _interval(chosen, blocks=blocks),
        None if reference is None else _interval(chosen - found[:, reference], blocks=blocks),
    )


def _measured(
    gains: Gains, left: Bool[np.ndarray, "draws dates"], dates: int
) -> Float[np.ndarray, "draws trials"]:
    """Skill of every trial on the dates that each sample left out."""
    return (left @ gains) * (dates / left.sum(axis=1))[:, None]


def _interval(values: Float[np.ndarray, " draws"], *, blocks: float) -> Interval:
    if not values.size:
        return Interval(math.nan, math.nan, math.nan)
    tail = 100 * expanded_tail(blocks)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(values.mean()), float(low), float(high))
