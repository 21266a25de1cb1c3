"""Features of prices alone."""

import pandas as pd

from robust_fin.features.dates import last_rows, value_on_day
from robust_fin.features.registry import BARS, TRADING_DATES, Lookback, feature


@feature(lookback=Lookback(1, BARS), unit="fraction")
def close_change_pct(bars: pd.DataFrame) -> pd.Series:
    """Close over the close one bar earlier, minus 1."""
    return bars["close"] / bars["close"].shift(1) - 1


@feature(lookback=Lookback(3, BARS), unit="fraction")
def price_mom_3bar(bars: pd.DataFrame) -> pd.Series:
    """Close over the close 3 bars earlier, minus 1."""
    return bars["close"] / bars["close"].shift(3) - 1


@feature(lookback=Lookback(5, BARS), unit="fraction")
def price_mom_5bar(bars: pd.DataFrame) -> pd.Series:
    """Close over the close 5 bars earlier, minus 1."""
    return bars["close"] / bars["close"].shift(5) - 1


@feature(lookback=Lookback(3, TRADING_DATES), unit="fraction", chained=True)
def price_mom_3d(bars: pd.DataFrame) -> pd.Series:
    """Chain-linked close over that of the last bar 3 trading dates earlier, minus 1."""
    return _momentum_over_dates(bars, 3)


@feature(lookback=Lookback(5, TRADING_DATES), unit="fraction", chained=True)
def price_mom_5d(bars: pd.DataFrame) -> pd.Series:
    """Chain-linked close over that of the last bar 5 trading dates earlier, minus 1."""
    return _momentum_over_dates(bars, 5)


@feature(lookback=Lookback(0, BARS), unit="fraction")
def price_range(bars: pd.DataFrame) -> pd.Series:
    """High minus low, over close."""
    return (bars["high"] - bars["low"]) / bars["close"]


@feature(lookback=Lookback(0, BARS), unit="index points")
def typical_price(bars: pd.DataFrame) -> pd.Series:
    """Mean of high, low and close: a level, kept to reproduce the study that called it VWAP."""
    return (bars["high"] + bars["low"] + bars["close"]) / 3


def _momentum_over_dates(bars: pd.DataFrame, dates: int) -> pd.Series:
    close = bars["close"].to_numpy()
    base = value_on_day(bars, close[last_rows(bars)], dates_ago=dates)
    return pd.Series(close / base - 1, index=bars.index)
