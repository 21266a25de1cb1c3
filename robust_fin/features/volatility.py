"""Realised volatility, and what is measured in it."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.features.registry import BARS, Lookback, feature
from robust_fin.features.windows import lagged, trailing_mean

Rows = Float[np.ndarray, " rows"]

HOUR = 60  # bars of the volatility by which others are divided
PER_VOLATILITY = "60-bar volatilities"


def realised_volatility(bars: pd.DataFrame, *, span: int) -> Rows:
    """Root mean square of the last `span` returns from close to close, a fraction a bar."""
    close = bars["close"].to_numpy()
    return np.sqrt(trailing_mean(np.square(close / lagged(close, 1) - 1), span))


def ratio(above: Rows, below: Rows) -> Rows:
    """One over the other; NaN where the other is 0, such as the volatility of a still market."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def in_volatilities(bars: pd.DataFrame, fraction: Rows) -> pd.Series:
    """A fraction of price over the realised volatility of the last 60 bars."""
    return pd.Series(ratio(fraction, realised_volatility(bars, span=HOUR)), index=bars.index)


@feature(lookback=Lookback(HOUR, BARS), unit="fraction a bar", chained=True)
def volatility_60bar(bars: pd.DataFrame) -> pd.Series:
    """Root mean square of the last 60 bar returns; the step across a roll counts as 0."""
    return pd.Series(realised_volatility(bars, span=HOUR), index=bars.index)


@feature(lookback=Lookback(HOUR, BARS), unit=PER_VOLATILITY, chained=True)
def volatility_5bar(bars: pd.DataFrame) -> pd.Series:
    """Root mean square of the last 5 bar returns over that of the last 60: how it changes."""
    return in_volatilities(bars, realised_volatility(bars, span=5))
