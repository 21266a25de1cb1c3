"""Features of what surrounds the contract."""

import pandas as pd

from robust_fin.features.dates import last_rows, value_on_day
from robust_fin.features.registry import BARS, TRADING_DATES, Lookback, feature


@feature(lookback=Lookback(0, BARS), unit="index points")
def vix(bars: pd.DataFrame) -> pd.Series:
    """VIX close of the last day before the bar's trading date, as the source joined it."""
    return bars["vix"]


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction", chained=True)
def vix_change_1d(bars: pd.DataFrame) -> pd.Series:
    """The VIX at this bar over the VIX at the last bar of the previous trading date, minus 1.

    Both are closes of days before the bar's trading date, where the source joined them.
    """
    before = bars["vix"].to_numpy()[last_rows(bars)]
    return bars["vix"] / value_on_day(bars, before, dates_ago=1) - 1
