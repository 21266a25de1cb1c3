"""Features that weigh prices by volume."""

import numpy as np
import pandas as pd

from robust_fin.features.registry import SESSION, Lookback, feature


@feature(lookback=Lookback(0, SESSION), unit="fraction of close")
def vwap(bars: pd.DataFrame) -> pd.Series:
    """Session-to-date volume-weighted typical price over close, minus 1.

    The gap and not the level, because a level is not stationary. Undefined until a contract of the
    session has traded.
    """
    typical = (bars["high"] + bars["low"] + bars["close"]) / 3
    sums = pd.DataFrame({"value": typical * bars["volume"], "volume": bars["volume"]})
    to_date = sums.groupby(bars["trading_day"].to_numpy(), sort=False).cumsum()
    traded = to_date["volume"].where(to_date["volume"] > 0, np.nan)
    return to_date["value"] / traded / bars["close"] - 1
