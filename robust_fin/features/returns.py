"""Returns over spans of bars, in units of volatility, so that calm and rough hours compare.

Chain-linked: the step across a roll counts as 0.
"""

import pandas as pd

from robust_fin.features.registry import BARS, Lookback, feature
from robust_fin.features.volatility import HOUR, PER_VOLATILITY, in_volatilities
from robust_fin.features.windows import lagged

_NEEDS = Lookback(HOUR, BARS)


def _return_over(bars: pd.DataFrame, span: int) -> pd.Series:
    close = bars["close"].to_numpy()
    return in_volatilities(bars, close / lagged(close, span) - 1)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def return_1bar(bars: pd.DataFrame) -> pd.Series:
    """Return over the last bar, over volatility."""
    return _return_over(bars, 1)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def return_2bar(bars: pd.DataFrame) -> pd.Series:
    """Return over the last 2 bars, over volatility."""
    return _return_over(bars, 2)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def return_3bar(bars: pd.DataFrame) -> pd.Series:
    """Return over the last 3 bars, over volatility."""
    return _return_over(bars, 3)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def return_5bar(bars: pd.DataFrame) -> pd.Series:
    """Return over the last 5 bars, over volatility."""
    return _return_over(bars, 5)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def return_10bar(bars: pd.DataFrame) -> pd.Series:
    """Return over the last 10 bars, over volatility."""
    return _return_over(bars, 10)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def return_30bar(bars: pd.DataFrame) -> pd.Series:
    """Return over the last 30 bars, over volatility."""
    return _return_over(bars, 30)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def return_60bar(bars: pd.DataFrame) -> pd.Series:
    """Return over the last 60 bars, over volatility."""
    return _return_over(bars, 60)
