"""The bars of one contract by trading date."""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

Places = Int[np.ndarray, " dates"]


def first_rows(bars: pd.DataFrame) -> Places:
    """Row number of the first bar of each trading date that has one."""
    day = bars["trading_day"].to_numpy()
    return np.flatnonzero(np.diff(day, prepend=day[:1] - 1))


def last_rows(bars: pd.DataFrame) -> Places:
    """Row number of the last bar of each trading date that has one."""
    return np.append(first_rows(bars)[1:], len(bars)) - 1


def on_each_bar(
    bars: pd.DataFrame, values: Shaped[np.ndarray, " dates"]
) -> Shaped[np.ndarray, " rows"]:
    """The value of each bar's own trading date; one entry a trading date that has a bar."""
    return np.repeat(values, np.diff(first_rows(bars), append=len(bars)))


def value_on_day(
    bars: pd.DataFrame, values: Float[np.ndarray, " dates"], *, dates_ago: int
) -> Float[np.ndarray, " rows"]:
    """The value of the trading date that lies so many before each bar's own.

    NaN where that date has no bar: the value of an older one would be of another span.

    Args:
        bars: one contract's bars, in the order of time.
        values: one entry a trading date that has a bar.
        dates_ago: trading dates, by the calendar.
    """
    days = bars["trading_day"].to_numpy()[first_rows(bars)]
    place = np.searchsorted(days, days - dates_ago)
    held = days[place] == days - dates_ago
    return on_each_bar(bars, np.where(held, values[place], np.nan))
