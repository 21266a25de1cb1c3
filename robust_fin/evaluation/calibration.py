"""Whether forecasts mean what they say: the realised rank by decile of the forecast."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from robust_fin.evaluation.bootstrap import DateDraws, Interval
from robust_fin.evaluation.date_sums import DatedRows, ratio

BINS = 10
NUMBER, TARGET, OUTCOME = range(3)


@dataclass(frozen=True, slots=True)
class Decile:
    """Rows whose forecasts are alike.

    Attributes:
        rows: how many.
        score: their mean forecast, in rank units.
        target: their mean realised rank.
        outcome_bp: their mean forward return, in basis points.
    """

    rows: int
    score: float
    target: Interval
    outcome_bp: Interval


@dataclass(frozen=True, slots=True)
class Calibration:
    """Deciles of the forecast, lowest first; fewer where forecasts tie.

    Attributes:
        deciles: see `Decile`.
        error: mean distance of forecast and realised rank over deciles, weighted by rows.
    """

    deciles: tuple[Decile, ...]
    error: float


def decile_of(score: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Number of each row's decile, 0 to 9; equal forecasts share one."""
    place = (rankdata(score) - 0.5) / score.size
    return np.minimum((place * BINS).astype(np.int64), BINS - 1)


def calibration(
    rows: DatedRows, score: Float[np.ndarray, " rows"], samples: DateDraws
) -> Calibration:
    """Mean realised rank and return by decile of the forecast, with intervals over dates."""
    number = decile_of(score)
    found, apart = [], 0.0
    for one in np.unique(number):
        inside = number == one
        sums = np.stack(
            [rows.added(inside * value) for value in (1.0, rows.target, 1e4 * rows.outcome)], axis=1
        )
        target = samples.interval(sums, lambda drawn: ratio(drawn[:, TARGET], drawn[:, NUMBER]))
        outcome = samples.interval(sums, lambda drawn: ratio(drawn[:, OUTCOME], drawn[:, NUMBER]))
        mean = float(score[inside].mean())
        found.append(Decile(int(inside.sum()), mean, target, outcome))
        apart += inside.mean() * abs(mean - target.estimate)
    return Calibration(tuple(found), float(apart))
