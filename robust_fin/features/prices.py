"""Features of prices: returns, momentum, volatility and the location of the close."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.features.history import (
    lagged,
    last_rows,
    trailing_max,
    trailing_mean,
    trailing_min,
    value_on_day,
)
from robust_fin.features.registry import BARS, TRADING_DATES, Lookback, feature
from robust_fin.market.schema import PRICES

Rows = Float[np.ndarray, " rows"]

HOUR = 60  # bars of the volatility that scales other features
PER_VOLATILITY = "60-bar volatilities"
_NEEDS = Lookback(HOUR, BARS)
_LOCATION_UNIT = "half ranges from the middle"
_ROUNDING = 1e-12  # relative; chain-linked prices of a market that does not move differ by less


def realised_volatility(bars: pd.DataFrame, *, span: int) -> Rows:
    """Return the root mean square of the last `span` bar returns, as a fraction per bar."""
    close = bars["close"].to_numpy()
    return np.sqrt(trailing_mean(np.square(close / lagged(close, 1) - 1), span))


def ratio(numerator: Rows, denominator: Rows) -> Rows:
    """Divide; NaN where the denominator is 0, as the volatility of a market that does not move."""
    nan = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=nan, where=denominator > 0)


def per_volatility(bars: pd.DataFrame, fraction: Rows) -> pd.Series:
    """Divide a fraction of price by the realised volatility of the last 60 bars."""
    return pd.Series(ratio(fraction, realised_volatility(bars, span=HOUR)), index=bars.index)


@feature(lookback=_NEEDS, unit="fraction a bar", chained=True)
def volatility_60bar(bars: pd.DataFrame) -> pd.Series:
    """Root mean square of the last 60 bar returns; the step across a roll counts as 0."""
    return pd.Series(realised_volatility(bars, span=HOUR), index=bars.index)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def volatility_5bar(bars: pd.DataFrame) -> pd.Series:
    """Root mean square of the last 5 bar returns over that of the last 60."""
    return per_volatility(bars, realised_volatility(bars, span=5))


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
    """Mean of high, low and close: a price level, kept to reproduce the original study."""
    return (bars["high"] + bars["low"] + bars["close"]) / 3


def _momentum_over_dates(bars: pd.DataFrame, dates: int) -> pd.Series:
    close = bars["close"].to_numpy()
    base = value_on_day(bars, close[last_rows(bars)], dates_ago=dates)
    return pd.Series(close / base - 1, index=bars.index)


def _return_over(bars: pd.DataFrame, span: int) -> pd.Series:
    close = bars["close"].to_numpy()
    return per_volatility(bars, close / lagged(close, span) - 1)


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


def _close_location(bars: pd.DataFrame, span: int) -> pd.Series:
    """Locate the close: -1 at the low, 1 at the high, 0 in the middle or if high equals low."""
    close = bars["close"].to_numpy()
    high = trailing_max(bars["high"].to_numpy(), span)
    low = trailing_min(bars["low"].to_numpy(), span)
    off_middle, flat = (close - low) - (high - close), high - low <= _ROUNDING * close
    location = np.divide(off_middle, high - low, out=np.zeros_like(close), where=~flat)
    return pd.Series(location, index=bars.index)


@feature(lookback=Lookback(0, BARS), unit=_LOCATION_UNIT)
def close_location_1bar(bars: pd.DataFrame) -> pd.Series:
    """Location of the close between low and high of its bar."""
    return _close_location(bars, 1)


@feature(lookback=Lookback(2, BARS), unit=_LOCATION_UNIT, chained=True)
def close_location_3bar(bars: pd.DataFrame) -> pd.Series:
    """Location of the close between the lowest low and the highest high of the last 3 bars."""
    return _close_location(bars, 3)


@feature(lookback=Lookback(9, BARS), unit=_LOCATION_UNIT, chained=True)
def close_location_10bar(bars: pd.DataFrame) -> pd.Series:
    """Location of the close between the lowest low and the highest high of the last 10 bars."""
    return _close_location(bars, 10)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def range_1bar(bars: pd.DataFrame) -> pd.Series:
    """High minus low, over close and volatility."""
    _, high, low, close = _prices(bars)
    return per_volatility(bars, (high - low) / close)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def upper_shadow_1bar(bars: pd.DataFrame) -> pd.Series:
    """High minus the higher of open and close, over close and volatility."""
    opened, high, _, close = _prices(bars)
    return per_volatility(bars, (high - np.maximum(opened, close)) / close)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def lower_shadow_1bar(bars: pd.DataFrame) -> pd.Series:
    """The lower of open and close minus low, over close and volatility."""
    opened, _, low, close = _prices(bars)
    return per_volatility(bars, (np.minimum(opened, close) - low) / close)


def _prices(bars: pd.DataFrame) -> list[Rows]:
    return [bars[name].to_numpy() for name in PRICES]
