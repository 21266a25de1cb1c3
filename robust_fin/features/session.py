"""Features of the session so far and of the one before it."""

import pandas as pd

from robust_fin.features.dates import first_rows, last_rows, on_each_bar, value_on_day
from robust_fin.features.registry import SESSION, TRADING_DATES, Lookback, feature


@feature(lookback=Lookback(0, SESSION), unit="fraction of close", chained=True)
def session_high(bars: pd.DataFrame) -> pd.Series:
    """Highest high of the session so far over close, minus 1."""
    return bars.groupby("trading_day", sort=False)["high"].cummax() / bars["close"] - 1


@feature(lookback=Lookback(0, SESSION), unit="fraction of close", chained=True)
def session_low(bars: pd.DataFrame) -> pd.Series:
    """Lowest low of the session so far over close, minus 1."""
    return bars.groupby("trading_day", sort=False)["low"].cummin() / bars["close"] - 1


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction", chained=True)
def opening_gap(bars: pd.DataFrame) -> pd.Series:
    """First open of the trading date over the last close of the one before, minus 1."""
    opened = on_each_bar(bars, bars["open"].to_numpy()[first_rows(bars)])
    closed = value_on_day(bars, bars["close"].to_numpy()[last_rows(bars)], dates_ago=1)
    return pd.Series(opened / closed - 1, index=bars.index)
