"""What the best of several trials is worth: the deflated Sharpe ratio.

Notation: the Sharpe ratio of a daily series is its mean over its standard deviation, per date and
not annualised. Of the daily rank IC it is the ICIR.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import kurtosis, norm, skew

_LEAST_DATES = 4  # below, the fourth moment has no unbiased estimate


@dataclass(frozen=True, slots=True)
class Track:
    """A daily series in four numbers; NaN where it is too short or never changes.

    Attributes:
        ratio: Sharpe ratio, per date; one degree of freedom less.
        dates: how many.
        skew: third standardised moment; 0 for a normal law.
        kurtosis: fourth standardised moment, not the excess; 3 for a normal law.
    """

    ratio: float
    dates: int
    skew: float
    kurtosis: float

    @classmethod
    def of(cls, daily: Float[np.ndarray, " dates"]) -> "Track":
        """Measure a series.

        Args:
            daily: one value a trading date; dates without one (NaN) are left out.
        """
        known = daily[np.isfinite(daily)]
        if known.size < _LEAST_DATES or np.ptp(known) == 0:
            return cls(math.nan, known.size, math.nan, math.nan)
        return cls(
            ratio=float(known.mean() / known.std(ddof=1)),
            dates=known.size,
            skew=float(skew(known, bias=False)),
            kurtosis=float(kurtosis(known, bias=False, fisher=False)),
        )


@dataclass(frozen=True, slots=True)
class Deflated:
    """A Sharpe ratio held against the luck of the best of several trials.

    Attributes:
        trials: how many there were.
        luck: the ratio that the best of so many trials without skill is expected to have.
        probability: that the true ratio is above `luck`; NaN where it could not be computed.
    """

    trials: int
    luck: float
    probability: float


def deflated_sharpe(track: Track, *, trials: int, spread: float) -> Deflated:
    """How sure one may be of a Sharpe ratio that was found in several trials.

    Args:
        track: of the run whose ratio is claimed.
        trials: how many were made, this one among them.
        spread: standard deviation of their ratios; of no use where there is one.

    Source: Bailey and Lopez de Prado (2014), The deflated Sharpe ratio, equations 1 and 2.
    """
    luck = expected_maximum(trials, spread=spread)
    return Deflated(trials, luck, probabilistic_sharpe(track, above=luck))


def expected_maximum(trials: int, *, spread: float) -> float:
    """The greatest Sharpe ratio to expect of independent trials without skill.

    0 for a single trial, which was not picked from anything.

    Args:
        trials: how many.
        spread: standard deviation of their ratios.

    Source: Bailey and Lopez de Prado (2014), equation 1.
    """
    assert trials >= 1
    if trials == 1:
        return 0.0
    first, second = float(norm.isf(1 / trials)), float(norm.isf(1 / (trials * math.e)))
    return spread * ((1 - np.euler_gamma) * first + np.euler_gamma * second)


def probabilistic_sharpe(track: Track, *, above: float) -> float:
    """The probability that the true Sharpe ratio is above a level, from the track's four moments.

    NaN where the moments allow no such statement.

    Args:
        track: of the series; its dates are taken as independent.
        above: the level, per date.

    Source: Bailey and Lopez de Prado (2012), The Sharpe ratio efficient frontier, equation 11.
    """
    ratio = track.ratio
    variance = 1 - track.skew * ratio + (track.kurtosis - 1) / 4 * ratio**2
    if not variance > 0 or not math.isfinite(above):
        return math.nan
    return float(norm.cdf((ratio - above) * math.sqrt((track.dates - 1) / variance)))


def spread_of(ratios: Sequence[float]) -> float:
    """Standard deviation over trials, one degree of freedom less; NaN for fewer than two."""
    known = np.array([one for one in ratios if math.isfinite(one)])
    return float(known.std(ddof=1)) if known.size > 1 else math.nan
