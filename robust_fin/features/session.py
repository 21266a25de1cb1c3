"""Features of the session: time of day, volume, volume profile, gaps and the VIX."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from robust_fin.features.history import (
    first_rows,
    lagged,
    last_rows,
    repeat_per_bar,
    trailing_sum,
    value_on_day,
)
from robust_fin.features.registry import BARS, SESSION, TRADING_DATES, Lookback, feature
from robust_fin.market.schema import bar_starts

DAY_S, HOUR_S, MINUTE_S = 86_400, 3_600, 60

MONTH = 20  # trading dates
BIN = 2e-4  # bin width in log price: about a point of ES
VALUE_SHARE = 0.7  # of the date's volume, in the value area
_NOW = Lookback(0, BARS)
_ROUNDING = 1e-12  # relative to the price
_DECIMALS = 6  # of volume; the running sum leaves rounding errors in empty bins

Rows = Float[np.ndarray, " rows"]
Dates = Float[np.ndarray, " dates"]
Volumes = Float[np.ndarray, "dates bins"]
Bins = Int[np.ndarray, " dates"]


def seconds_of_day(bars: pd.DataFrame) -> Int[np.ndarray, " rows"]:
    """Return seconds since midnight in Chicago local time.

    The UTC offset is looked up once per hour, because clocks change only at full hours.
    """
    start = bar_starts(bars).view(np.int64) // 1_000_000_000
    first = np.flatnonzero(np.diff(start // HOUR_S, prepend=-1))
    instant = pd.DatetimeIndex(start[first].astype("datetime64[s]"), tz="UTC")
    local = instant.tz_convert("America/Chicago").tz_localize(None)
    offset = local.as_unit("s").asi8 - start[first]
    return (start + np.repeat(offset, np.diff(first, append=start.size))) % DAY_S


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

    The last move of such an interval reverses more often than other moves.
    """
    return _minutes_past(bars, 5)


@feature(lookback=_NOW, unit="minutes")
def minutes_past_half_hour(bars: pd.DataFrame) -> pd.Series:
    """Minutes since the clock last showed a full or half hour."""
    return _minutes_past(bars, 30)


class DateGrid(NamedTuple):
    """Grid of trading dates by times of day.

    Attributes:
        dates: number of trading dates from the first to the last bar, including dates without bars.
        times: number of different times of day.
        cell: index of each bar in the flattened (dates, times) grid.
    """

    dates: int
    times: int
    cell: Int[np.ndarray, " rows"]

    @classmethod
    def from_bars(cls, bars: pd.DataFrame) -> "DateGrid":
        """Build the grid of a contract's bars."""
        second, day = seconds_of_day(bars), bars["trading_day"].to_numpy().astype(np.int64)
        occurs = np.zeros(DAY_S, dtype=bool)
        occurs[second] = True
        column = np.cumsum(occurs)[second] - 1
        times = int(occurs.sum())
        return cls(int(day[-1] - day[0]) + 1, times, (day - day[0]) * times + column)

    def sums(self, values: Rows) -> Float[np.ndarray, "dates times"]:
        """Sum the values in each cell; NaN counts as 0."""
        total = np.bincount(
            self.cell, weights=np.nan_to_num(values), minlength=self.dates * self.times
        )
        return total.reshape(self.dates, self.times)

    def mean_of_earlier(self, values: Rows, *, dates: int) -> Rows:
        """Average the bars at the same time of day over the `dates` trading dates before each bar.

        NaN if none of these dates has such a bar, or if the oldest of them has no bars at all.
        """
        seen = self.sums(np.where(np.isnan(values), 0.0, 1.0))
        total, count = (trailing_sum(lagged(sums, 1), dates) for sums in (self.sums(values), seen))
        known = (count > 0) & (lagged(seen.sum(axis=1), dates) > 0)[:, None]
        mean = np.divide(total, count, out=np.full_like(seen, np.nan), where=known)
        return mean.ravel()[self.cell]


@feature(lookback=Lookback(MONTH, TRADING_DATES), unit="log ratio", chained=True)
def volume_surprise_20d(bars: pd.DataFrame) -> pd.Series:
    """Log of volume over its mean at the same minute of the last 20 trading dates.

    One contract is added to both, so that the logarithm exists for a minute without volume.
    """
    volume = bars["volume"].to_numpy()
    usual = DateGrid.from_bars(bars).mean_of_earlier(volume, dates=MONTH)
    return pd.Series(np.log1p(volume) - np.log1p(usual), index=bars.index)


@feature(lookback=Lookback(MONTH, TRADING_DATES), unit="share up minus share down", chained=True)
def next_minute_direction_20d(bars: pd.DataFrame) -> pd.Series:
    """Share of the last 20 trading dates on which the next minute rose, minus the share it fell.

    On those earlier dates the next minute ended before this bar began, so it is known.
    """
    close = bars["close"].to_numpy()
    moved = close[1:] / close[:-1] - 1
    moved[np.abs(moved) < _ROUNDING] = 0  # across a roll, chained closes are equal up to rounding
    direction = np.append(np.sign(moved), np.nan)  # stored at the bar before the move
    return pd.Series(
        DateGrid.from_bars(bars).mean_of_earlier(direction, dates=MONTH), index=bars.index
    )


class VolumeProfile(NamedTuple):
    """Volume profile with one entry per trading date with bars; NaN for a date without volume.

    Attributes:
        control: middle of the bin with the most volume (the lowest in a tie), in index points.
        high: upper edge of the value area, in index points.
        low: lower edge of the value area, in index points.
    """

    control: Dates
    high: Dates
    low: Dates


def volume_profile(bars: pd.DataFrame) -> VolumeProfile:
    """Compute the volume profile of every trading date of a contract's bars."""
    lowest = np.minimum.reduceat(bars["low"].to_numpy(), first_rows(bars))
    volume = binned_volume(bars, lowest)
    control = volume.argmax(axis=1)
    low, high = value_area(volume, control)
    lowest = np.where(volume.sum(axis=1) > 0, lowest, np.nan)
    return VolumeProfile(
        lowest * np.exp((control + 0.5) * BIN),
        lowest * np.exp((high + 1) * BIN),
        lowest * np.exp(low * BIN),
    )


def binned_volume(bars: pd.DataFrame, lowest: Dates) -> Volumes:
    """Sum volume by trading date and bin; a bar's volume is spread evenly over its bins.

    Args:
        bars: bars of a contract.
        lowest: lowest price of each trading date, where its bins start.
    """
    origin, date = repeat_per_bar(bars, lowest), repeat_per_bar(bars, np.arange(lowest.size))
    from_bin, to_bin = (_bin_index(bars[name].to_numpy(), origin) for name in ("low", "high"))
    bins = int(to_bin.max()) + 2  # an extra bin, where the share of the highest bar ends
    share = bars["volume"].to_numpy() / (to_bin - from_bin + 1)
    starts, ends = (
        np.bincount(date * bins + edge, weights=share, minlength=lowest.size * bins)
        for edge in (from_bin, to_bin + 1)
    )
    volume = np.cumsum((starts - ends).reshape(lowest.size, bins), axis=1)
    return np.round(volume[:, :-1], _DECIMALS)


def value_area(volume: Volumes, control: Bins) -> tuple[Bins, Bins]:
    """Grow the value area from the point of control; return its lowest and highest bin.

    The neighbour with more volume joins first, the upper neighbour in a tie. The area ends at the
    outermost bins with volume of the same date.

    Args:
        volume: volume by trading date and bin.
        control: bin with the most volume of each date.
    """
    padded = np.pad(np.where(_outside(volume), -1.0, volume), ((0, 0), (1, 1)), constant_values=-1)
    date, goal = np.arange(len(volume)), VALUE_SHARE * volume.sum(axis=1)
    low, high, held = control + 1, control + 1, volume[date, control]
    while (short := held < goal).any():
        above, below = padded[date, high + 1], padded[date, low - 1]
        up, down = short & (above >= below), short & (above < below)
        held = held + np.where(up, above, 0.0) + np.where(down, below, 0.0)
        high, low = high + up, low - down
    return low - 1, high - 1


def _outside(volume: Volumes) -> Bool[np.ndarray, "dates bins"]:
    held = volume > 0
    from_below = np.logical_or.accumulate(held, axis=1)
    from_above = np.logical_or.accumulate(held[:, ::-1], axis=1)[:, ::-1]
    return ~(from_below & from_above)


def _bin_index(price: Rows, lowest: Rows) -> Int[np.ndarray, " rows"]:
    return np.floor(np.log(price / lowest) / BIN).astype(np.int64)


def _previous_date_level(bars: pd.DataFrame, level: Dates) -> pd.Series:
    return pd.Series(value_on_day(bars, level, dates_ago=1), index=bars.index) / bars["close"] - 1


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction of close", chained=True)
def point_of_control_1d(bars: pd.DataFrame) -> pd.Series:
    """Price with the most volume on the previous trading date over close, minus 1."""
    return _previous_date_level(bars, volume_profile(bars).control)


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction of close", chained=True)
def value_area_high_1d(bars: pd.DataFrame) -> pd.Series:
    """Upper edge of the previous trading date's value area over close, minus 1."""
    return _previous_date_level(bars, volume_profile(bars).high)


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction of close", chained=True)
def value_area_low_1d(bars: pd.DataFrame) -> pd.Series:
    """Lower edge of the previous trading date's value area over close, minus 1."""
    return _previous_date_level(bars, volume_profile(bars).low)


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
    """First open of the trading date over the last close of the previous one, minus 1."""
    opened = repeat_per_bar(bars, bars["open"].to_numpy()[first_rows(bars)])
    closed = value_on_day(bars, bars["close"].to_numpy()[last_rows(bars)], dates_ago=1)
    return pd.Series(opened / closed - 1, index=bars.index)


@feature(lookback=Lookback(0, SESSION), unit="fraction of close")
def vwap(bars: pd.DataFrame) -> pd.Series:
    """Session-to-date volume-weighted typical price over close, minus 1.

    A gap rather than a level, because a level is not stationary. NaN until the session has volume.
    """
    typical = (bars["high"] + bars["low"] + bars["close"]) / 3
    sums = pd.DataFrame({"value": typical * bars["volume"], "volume": bars["volume"]})
    to_date = sums.groupby(bars["trading_day"].to_numpy(), sort=False).cumsum()
    traded = to_date["volume"].where(to_date["volume"] > 0, np.nan)
    return to_date["value"] / traded / bars["close"] - 1


@feature(lookback=Lookback(0, BARS), unit="index points")
def vix(bars: pd.DataFrame) -> pd.Series:
    """VIX close of the last day before the bar's trading date."""
    return bars["vix"]


@feature(lookback=Lookback(1, TRADING_DATES), unit="fraction", chained=True)
def vix_change_1d(bars: pd.DataFrame) -> pd.Series:
    """VIX at this bar over the VIX at the last bar of the previous trading date, minus 1.

    If the source joined the VIX, both are closes of days before the bar's trading date.
    """
    before = bars["vix"].to_numpy()[last_rows(bars)]
    return bars["vix"] / value_on_day(bars, before, dates_ago=1) - 1
