"""What the clock in Chicago says at the start of a bar."""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from robust_fin.features.registry import BARS, Lookback, feature
from robust_fin.market.schema import stamps

DAY_S, HOUR_S, MINUTE_S = 86_400, 3_600, 60

_NOW = Lookback(0, BARS)


def seconds_of_day(bars: pd.DataFrame) -> Int[np.ndarray, " rows"]:
    """Seconds since midnight in Chicago, by the clock on the wall.

    The zone is asked once an hour, because the clock changes at full hours alone.
    """
    start = stamps(bars).view(np.int64) // 1_000_000_000
    first = np.flatnonzero(np.diff(start // HOUR_S, prepend=-1))
    instant = pd.DatetimeIndex(start[first].astype("datetime64[s]"), tz="UTC")
    local = instant.tz_convert("America/Chicago").tz_localize(None)
    ahead = local.as_unit("s").asi8 - start[first]
    return (start + np.repeat(ahead, np.diff(first, append=start.size))) % DAY_S


def _minutes_past(bars: pd.DataFrame, every: int) -> pd.Series:
    past = seconds_of_day(bars) % (every * MINUTE_S) / MINUTE_S
    return pd.Series(past, index=bars.index)


def _angle(bars: pd.DataFrame) -> Float[np.ndarray, " rows"]:
    return seconds_of_day(bars) * (2 * np.pi / DAY_S)


@feature(lookback=_NOW, unit="sine of the day's angle")
def time_of_day_sin(bars: pd.DataFrame) -> pd.Series:
    """Sine of the bar's start as an angle: 0 at midnight, 1 at 06:00."""
    return pd.Series(np.sin(_angle(bars)), index=bars.index)


@feature(lookback=_NOW, unit="cosine of the day's angle")
def time_of_day_cos(bars: pd.DataFrame) -> pd.Series:
    """Cosine of the bar's start as an angle: 1 at midnight, 0 at 06:00."""
    return pd.Series(np.cos(_angle(bars)), index=bars.index)


@feature(lookback=_NOW, unit="minutes")
def minutes_past_5min(bars: pd.DataFrame) -> pd.Series:
    """Minutes since the clock last showed a multiple of 5 minutes.

    The last move of such a span is taken back more often than others.
    """
    return _minutes_past(bars, 5)


@feature(lookback=_NOW, unit="minutes")
def minutes_past_half_hour(bars: pd.DataFrame) -> pd.Series:
    """Minutes since the clock last showed a full or half hour."""
    return _minutes_past(bars, 30)
