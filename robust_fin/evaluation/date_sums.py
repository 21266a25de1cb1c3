"""What is kept of a model per trading date: sums from which every figure of a sample follows."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import rankdata

from robust_fin.metrics import huber_terms

COLUMNS = (
    "loss", "trivial", "n", "x", "y", "xx", "yy", "xy", "hits", "ties", "dates", "ic", "ic_squared",
)  # fmt: skip
PLACE = {name: number for number, name in enumerate(COLUMNS)}
Sums = Float[np.ndarray, "dates sums"]


@dataclass(frozen=True, slots=True)
class DatedRows:
    """The labelled rows of a test span, and the constant their skill is measured against.

    Attributes:
        dates: the distinct trading dates, increasing.
        date: of each row, as its number among them.
        target: rank of the outcome among the training returns.
        outcome: forward return, a fraction.
        trivial: the training median of the row's fold, in rank units.
    """

    dates: np.ndarray
    date: Int[np.ndarray, " rows"]
    target: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    trivial: Float[np.ndarray, " rows"]

    @classmethod
    def of(cls, rows: pd.DataFrame, *, trivial: float | Float[np.ndarray, " rows"]) -> "DatedRows":
        """From the rows of one model.

        Args:
            rows: with trading_date, target, outcome.
            trivial: the constant forecast, in rank units; one a row where rows are of several
                folds.
        """
        dates, date = np.unique(rows["trading_date"].to_numpy(), return_inverse=True)
        target, outcome = (rows[name].to_numpy(dtype=np.float64) for name in ("target", "outcome"))
        constant = np.broadcast_to(np.asarray(trivial, dtype=np.float64), target.shape)
        return cls(dates, date, target, outcome, constant)

    def added(self, values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " dates"]:
        """Sums per date."""
        return np.bincount(self.date, weights=values, minlength=self.dates.size)

    def sums(self, score: Float[np.ndarray, " rows"]) -> Sums:
        """`COLUMNS` of one model, one row a date; ranks are taken once, over all dates.

        Args:
            score: its forecasts, in rank units.
        """
        middle = (score.size + 1) / 2
        x, y = rankdata(score) - middle, rankdata(self.outcome) - middle
        losses = (huber_terms(score, self.target), huber_terms(self.trivial, self.target))
        agreed = np.sign(score - self.trivial) * np.sign(self.outcome)
        hits, ties = 0.5 * (1 + agreed), (agreed == 0).astype(np.float64)
        moments = (np.ones_like(x), x, y, x * x, y * y, x * y)
        rows = [self.added(one) for one in (*losses, *moments, hits, ties)]
        ic = self.daily_ic(score)
        known = np.isfinite(ic)
        daily = np.where(known, ic, 0.0)
        return np.stack([*rows, known.astype(np.float64), daily, daily * daily], axis=1)

    def daily_ic(self, score: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " dates"]:
        """Spearman correlation of forecast and outcome within each date; NaN where one is flat."""
        table = pd.DataFrame({"x": score, "y": self.outcome})
        ranks = table.groupby(self.date).rank().to_numpy()
        middle = (self.added(np.ones(score.size)) + 1) / 2
        x, y = (ranks - middle[self.date][:, None]).T
        scale = self.added(x * x) * self.added(y * y)
        flat = np.full(self.dates.size, math.nan)
        return np.divide(self.added(x * y), np.sqrt(scale), out=flat, where=scale > 0)


def column(sums: Float[np.ndarray, "draws sums"], name: str) -> Float[np.ndarray, " draws"]:
    """One of `COLUMNS`."""
    return sums[:, PLACE[name]]


def skill_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """1 - loss / loss of the constant."""
    return 1 - ratio(column(sums, "loss"), column(sums, "trivial"))


def rank_ic_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Spearman correlation over all rows, with the ranks of the whole span."""
    n, x, y, xx, yy, xy = (column(sums, name) for name in ("n", "x", "y", "xx", "yy", "xy"))
    scale = (xx - x * x / n) * (yy - y * y / n)
    return ratio(xy - x * y / n, np.sqrt(np.maximum(scale, 0.0)))


def daily_ic_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Mean over dates of the rank IC within a date."""
    return ratio(column(sums, "ic"), column(sums, "dates"))


def icir_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Mean over standard deviation of the daily rank IC: its Sharpe ratio, per date."""
    count, mean = column(sums, "dates"), daily_ic_of(sums)
    variance = ratio(column(sums, "ic_squared") - count * mean * mean, count - 1)
    return ratio(mean, np.sqrt(np.maximum(variance, 0.0)))


def hit_rate_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Share of rows whose direction was right; a row without one, on either side, is half a hit."""
    return ratio(column(sums, "hits"), column(sums, "n"))


def tie_share_of(sums: Float[np.ndarray, "draws sums"]) -> Float[np.ndarray, " draws"]:
    """Share of rows where the forecast or the outcome has no direction."""
    return ratio(column(sums, "ties"), column(sums, "n"))


def ratio(
    above: Float[np.ndarray, " draws"], below: Float[np.ndarray, " draws"]
) -> Float[np.ndarray, " draws"]:
    """NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(above.shape, math.nan), where=below > 0)
