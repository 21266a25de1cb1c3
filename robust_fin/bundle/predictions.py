"""The predictions table: what evaluation eats."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.data.examples import Examples
from robust_fin.data.rank_target import RankTarget


class Forecast(NamedTuple):
    """One model's forecasts of some rows.

    Attributes:
        score: in rank units; of a population the mean over its members.
        std: standard deviation over the members, one degree of freedom less; NaN for one member.
    """

    score: Float[np.ndarray, " rows"]
    std: Float[np.ndarray, " rows"]

    @classmethod
    def single(cls, score: Float[np.ndarray, " rows"]) -> "Forecast":
        """Of one model without members."""
        return cls(score, np.full(score.size, np.nan))


class MemberMean:
    """Mean and spread over members that come a block at a time, in float64.

    Sums are of differences to the first member, so that nothing is lost where members agree.
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.members = 0

    def add(self, scores: Float[np.ndarray, "members rows"]) -> None:
        """Take a block of members in."""
        if not self.members:
            self._first = scores[0].astype(np.float64)
            self._sum, self._squares = np.zeros((2, scores.shape[1]))
        for score in scores:
            apart = score - self._first
            self._sum += apart
            self._squares += apart * apart
        self.members += len(scores)

    def forecast(self) -> Forecast:
        """What was seen so far; one member's own scores, to the last bit."""
        if self.members == 1:
            return Forecast.single(self._first)
        mean = self._sum / self.members
        spread = np.maximum(self._squares - self.members * mean * mean, 0.0)
        return Forecast(self._first + mean, np.sqrt(spread / (self.members - 1)))


def mean_forecast(blocks: Iterable[Float[np.ndarray, "members rows"]]) -> Forecast:
    """Mean and spread of members that come a block at a time."""
    mean = MemberMean()
    for block in blocks:
        mean.add(block)
    return mean.forecast()


def predictions_table(
    examples: Examples,
    rows: np.ndarray,
    forecasts: Mapping[str, Forecast],
    *,
    target: RankTarget,
    fold: int = 0,
) -> pd.DataFrame:
    """One row a (time, contract, fold, model).

    Args:
        examples: where the rows come from.
        rows: numbers of the scored rows.
        forecasts: by model (net, or a baseline's name), in rank units.
        target: ranks the outcomes.
        fold: number of the fold.

    Returns:
        time, contract, trading_date, close (price the outcome starts from), fold, model, score,
        score_std (null for one member), target, outcome (fraction), label_end; target and outcome
        are null where the future is not there.
    """
    outcome = examples.outcome[rows]
    known = ~np.isnan(outcome)
    ranks = np.full(rows.size, np.nan)
    ranks[known] = target.transform(outcome[known])
    shared = pd.DataFrame(
        {
            "time": pd.DatetimeIndex(examples.time[rows], tz="UTC"),
            "contract": examples.contract[rows],
            "trading_date": examples.trading_date[rows],
            "close": examples.close[rows],
            "fold": np.int32(fold),
        }
    )
    known_later = {"target": ranks, "outcome": outcome, "label_end": examples.label_end[rows]}
    parts = [
        shared.assign(
            model=model,
            score=forecast.score.astype(np.float32),
            score_std=forecast.std.astype(np.float32),
            **known_later,
        )
        for model, forecast in forecasts.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(label_end=pd.DatetimeIndex(table["label_end"], tz="UTC"))
