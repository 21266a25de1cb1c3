"""Features of what surrounds the contract."""

import pandas as pd

from robust_fin.features.registry import BARS, Lookback, feature


@feature(lookback=Lookback(0, BARS), unit="index points")
def vix(bars: pd.DataFrame) -> pd.Series:
    """VIX close of the last day before the bar's trading date, as the source joined it."""
    return bars["vix"]
