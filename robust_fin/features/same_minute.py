"""What happened at the same clock time of earlier trading dates."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from robust_fin.features.clock import DAY_S, seconds_of_day
from robust_fin.features.registry import TRADING_DATES, Lookback, feature
from robust_fin.features.windows import lagged, trailing_sum

MONTH = 20  # trading dates

_ROUNDING = 1e-12  # of a price

Rows = Float[np.ndarray, " rows"]


class DateGrid(NamedTuple):
    """Cells of trading dates by clock times.

    Attributes:
        dates: from the first to the last one of the bars, also those without any.
        times: different clock times.
        cell: place of each bar in the flattened (dates, times).
    """

    dates: int
    times: int
    cell: Int[np.ndarray, " rows"]

    @classmethod
    def of(cls, bars: pd.DataFrame) -> "DateGrid":
        """The grid of one contract's bars."""
        second, day = seconds_of_day(bars), bars["trading_day"].to_numpy().astype(np.int64)
        occurs = np.zeros(DAY_S, dtype=bool)
        occurs[second] = True
        column = np.cumsum(occurs)[second] - 1
        times = int(occurs.sum())
        return cls(int(day[-1] - day[0]) + 1, times, (day - day[0]) * times + column)

    def sums(self, values: Rows) -> Float[np.ndarray, "dates times"]:
        """Sum of the values in each cell; values that are not a number count as 0."""
        total = np.bincount(
            self.cell, weights=np.nan_to_num(values), minlength=self.dates * self.times
        )
        return total.reshape(self.dates, self.times)

    def mean_of_earlier(self, values: Rows, *, dates: int) -> Rows:
        """Mean of the bars at the same clock time of the trading dates before each bar's own.

        NaN where none of them had such a bar, and where the oldest of the dates had no bar at all.
        """
        seen = self.sums(np.where(np.isnan(values), 0.0, 1.0))
        total, count = (trailing_sum(lagged(one, 1), dates) for one in (self.sums(values), seen))
        known = (count > 0) & (lagged(seen.sum(axis=1), dates) > 0)[:, None]
        mean = np.divide(total, count, out=np.full_like(seen, np.nan), where=known)
        return mean.ravel()[self.cell]


@feature(lookback=Lookback(MONTH, TRADING_DATES), unit="log ratio", chained=True)
def volume_surprise_20d(bars: pd.DataFrame) -> pd.Series:
    """Log of volume over its mean at the same minute of the last 20 trading dates.

    One contract is added to both, so that a minute without volume has a logarithm.
    """
    volume = bars["volume"].to_numpy()
    usual = DateGrid.of(bars).mean_of_earlier(volume, dates=MONTH)
    return pd.Series(np.log1p(volume) - np.log1p(usual), index=bars.index)


@feature(lookback=Lookback(MONTH, TRADING_DATES), unit="share up minus share down", chained=True)
def next_minute_direction_20d(bars: pd.DataFrame) -> pd.Series:
    """How often the bar after this minute rose rather than fell on the last 20 trading dates.

    Seen from an earlier date that bar is past: it ended before this one began.
    """
    close = bars["close"].to_numpy()
    moved = close[1:] / close[:-1] - 1
    moved[np.abs(moved) < _ROUNDING] = 0  # chain-linked closes meet at a roll up to rounding
    direction = np.append(np.sign(moved), np.nan)  # filed under the bar it follows
    return pd.Series(DateGrid.of(bars).mean_of_earlier(direction, dates=MONTH), index=bars.index)
