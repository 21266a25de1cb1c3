"""The volume profile of a trading date: how much was traded at which price.

Source: Steidlmayer's market profile; the value area as the CBOT's handbook builds it, but by
single bins: from the point of control on, whichever neighbour holds more, up to 70 % of volume.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from robust_fin.features.dates import first_rows, on_each_bar, value_on_day
from robust_fin.features.registry import TRADING_DATES, Lookback, feature

BIN = 2e-4  # of the logarithm of price: about a point of ES
VALUE_SHARE = 0.7

_DECIMALS = 6  # of volume: what the running sum leaves in an empty bin is rounding

Dates = Float[np.ndarray, " dates"]
Volumes = Float[np.ndarray, "dates bins"]
Bins = Int[np.ndarray, " dates"]


class Profile(NamedTuple):
    """One entry a trading date that has a bar; NaN where nothing was traded.

    Attributes:
        control: middle of the bin that holds most volume, the lowest of them, in index points.
        high: upper edge of the value area, in index points.
        low: lower edge of it, in index points.
    """

    control: Dates
    high: Dates
    low: Dates


def profile_of(bars: pd.DataFrame) -> Profile:
    """The volume profile of every trading date of one contract's bars."""
    lowest = np.minimum.reduceat(bars["low"].to_numpy(), first_rows(bars))
    volume = binned_volume(bars, lowest)
    control = volume.argmax(axis=1)
    low, high = value_area(volume, control)
    lowest = np.where(volume.sum(axis=1) > 0, lowest, np.nan)
    return Profile(
        lowest * np.exp((control + 0.5) * BIN),
        lowest * np.exp((high + 1) * BIN),
        lowest * np.exp(low * BIN),
    )


def binned_volume(bars: pd.DataFrame, lowest: Dates) -> Volumes:
    """Volume by trading date and bin; a bar's is spread evenly over the bins it touched.

    Args:
        bars: one contract's bars.
        lowest: lowest price of each trading date, where its bins begin.
    """
    origin, date = on_each_bar(bars, lowest), on_each_bar(bars, np.arange(lowest.size))
    from_bin, to_bin = (_bin_of(bars[name].to_numpy(), origin) for name in ("low", "high"))
    bins = int(to_bin.max()) + 2  # one more, where the share of the highest ends
    share = bars["volume"].to_numpy() / (to_bin - from_bin + 1)
    begins, ends = (
        np.bincount(date * bins + edge, weights=share, minlength=lowest.size * bins)
        for edge in (from_bin, to_bin + 1)
    )
    volume = np.cumsum((begins - ends).reshape(lowest.size, bins), axis=1)
    return np.round(volume[:, :-1], _DECIMALS)


def value_area(volume: Volumes, control: Bins) -> tuple[Bins, Bins]:
    """Lowest and highest bin of the value area; of equal neighbours the upper one joins first.

    It ends at the outermost bins that hold volume: what other dates reached is nothing to a date.

    Args:
        volume: by trading date and bin.
        control: the bin to begin with.
    """
    walled = np.pad(np.where(_outside(volume), -1.0, volume), ((0, 0), (1, 1)), constant_values=-1)
    date, goal = np.arange(len(volume)), VALUE_SHARE * volume.sum(axis=1)
    low, high, held = control + 1, control + 1, volume[date, control]
    while (short := held < goal).any():
        above, below = walled[date, high + 1], walled[date, low - 1]
        up, down = short & (above >= below), short & (above < below)
        held = held + np.where(up, above, 0.0) + np.where(down, below, 0.0)
        high, low = high + up, low - down
    return low - 1, high - 1


def _outside(volume: Volumes) -> Bool[np.ndarray, "dates bins"]:
    held = volume > 0
    from_below = np.logical_or.accumulate(held, axis=1)
    from_above = np.logical_or.accumulate(held[:, ::-1], axis=1)[:, ::-1]
    return ~(from_below & from_above)


def _bin_of(
    price: Float[np.ndarray, " rows"], lowest: Float[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    return np.floor(np.log(price / lowest) / BIN).astype(np.int64)


def _of_previous_date(bars: pd.DataFrame, level: Dates) -> pd.Series:
    return pd.Series(value_on_day(bars, level, dates_ago=1), index=bars.index) / bars["close"] - 1


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction of close", chained=True)
def point_of_control_1d(bars: pd.DataFrame) -> pd.Series:
    """Price of most volume on the previous trading date over close, minus 1."""
    return _of_previous_date(bars, profile_of(bars).control)


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction of close", chained=True)
def value_area_high_1d(bars: pd.DataFrame) -> pd.Series:
    """Upper edge of the previous trading date's value area over close, minus 1."""
    return _of_previous_date(bars, profile_of(bars).high)


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction of close", chained=True)
def value_area_low_1d(bars: pd.DataFrame) -> pd.Series:
    """Lower edge of the previous trading date's value area over close, minus 1."""
    return _of_previous_date(bars, profile_of(bars).low)
