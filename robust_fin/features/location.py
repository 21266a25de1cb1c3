"""Where the close lies in its bar and among the bars before it: most of the bid-ask bounce."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.features.registry import BARS, Lookback, feature
from robust_fin.features.volatility import HOUR, PER_VOLATILITY, in_volatilities
from robust_fin.features.windows import trailing_max, trailing_min
from robust_fin.market.schema import PRICES

_NEEDS = Lookback(HOUR, BARS)
_UNIT = "half ranges from the middle"
_ROUNDING = 1e-12  # of a price: chain-linked prices of a still market differ by no more


def _close_location(bars: pd.DataFrame, span: int) -> pd.Series:
    """-1 at the low, 0 in the middle, 1 at the high; 0 too where high and low are one price."""
    close = bars["close"].to_numpy()
    high = trailing_max(bars["high"].to_numpy(), span)
    low = trailing_min(bars["low"].to_numpy(), span)
    off_middle, still = (close - low) - (high - close), high - low <= _ROUNDING * close
    location = np.divide(off_middle, high - low, out=np.zeros_like(close), where=~still)
    return pd.Series(location, index=bars.index)


@feature(lookback=Lookback(0, BARS), unit=_UNIT)
def close_location_1bar(bars: pd.DataFrame) -> pd.Series:
    """Close between low and high of its bar."""
    return _close_location(bars, 1)


@feature(lookback=Lookback(2, BARS), unit=_UNIT, chained=True)
def close_location_3bar(bars: pd.DataFrame) -> pd.Series:
    """Close between the lowest low and the highest high of the last 3 bars."""
    return _close_location(bars, 3)


@feature(lookback=Lookback(9, BARS), unit=_UNIT, chained=True)
def close_location_10bar(bars: pd.DataFrame) -> pd.Series:
    """Close between the lowest low and the highest high of the last 10 bars."""
    return _close_location(bars, 10)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def range_1bar(bars: pd.DataFrame) -> pd.Series:
    """High minus low, over close and volatility."""
    _, high, low, close = _prices(bars)
    return in_volatilities(bars, (high - low) / close)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def upper_shadow_1bar(bars: pd.DataFrame) -> pd.Series:
    """High minus the higher of open and close, over close and volatility."""
    opened, high, _, close = _prices(bars)
    return in_volatilities(bars, (high - np.maximum(opened, close)) / close)


@feature(lookback=_NEEDS, unit=PER_VOLATILITY, chained=True)
def lower_shadow_1bar(bars: pd.DataFrame) -> pd.Series:
    """The lower of open and close minus low, over close and volatility."""
    opened, _, low, close = _prices(bars)
    return in_volatilities(bars, (np.minimum(opened, close) - low) / close)


def _prices(bars: pd.DataFrame) -> list[Float[np.ndarray, " rows"]]:
    return [bars[name].to_numpy() for name in PRICES]
