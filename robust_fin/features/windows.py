"""Trailing windows over bars and over trading dates, exact to the last bit."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

Values = Float[np.ndarray, "rows *rest"]


def lagged(values: Values, count: int) -> Values:
    """The values `count` rows earlier, along the first axis; NaN where there are none.

    >>> lagged(np.array([1.0, 2.0, 3.0]), 2)
    array([nan, nan,  1.])
    """
    moved = np.full_like(values, np.nan)
    moved[count:] = values[: max(0, len(values) - count)]
    return moved


def trailing_sum(values: Values, span: int) -> Values:
    """Sum of the last `span` rows, the present one included; NaN where there are fewer.

    >>> trailing_sum(np.array([1.0, 2.0, 3.0, 4.0]), 3)
    array([nan, nan,  6.,  9.])
    """
    doubled, width, total, reach = values, 1, None, 0
    while True:
        if span & width:
            part = lagged(doubled, reach)
            total = part if total is None else total + part
            reach += width
        if reach == span:
            assert total is not None, f"a window of {span} rows"
            return total
        doubled = doubled + lagged(doubled, width)
        width *= 2


def trailing_mean(values: Values, span: int) -> Values:
    """Mean of the last `span` rows, the present one included; NaN where there are fewer."""
    return trailing_sum(values, span) / span


def trailing_max(values: Values, span: int) -> Values:
    """Largest of the last `span` rows, the present one included; NaN where there are fewer."""
    return _trailing_extreme(values, span, np.maximum)


def trailing_min(values: Values, span: int) -> Values:
    """Smallest of the last `span` rows, the present one included; NaN where there are fewer."""
    return _trailing_extreme(values, span, np.minimum)


def _trailing_extreme(
    values: Values, span: int, larger: Callable[[Values, Values], Values]
) -> Values:
    widest, width = values, 1
    while 2 * width <= span:
        widest = larger(widest, lagged(widest, width))
        width *= 2
    return larger(widest, lagged(widest, span - width))  # the two may overlap: no harm


Places = Int[np.ndarray, " dates"]


def first_rows(bars: pd.DataFrame) -> Places:
    """Row number of the first bar of each trading date that has one."""
    day = bars["trading_day"].to_numpy()
    return np.flatnonzero(np.diff(day, prepend=day[:1] - 1))


def last_rows(bars: pd.DataFrame) -> Places:
    """Row number of the last bar of each trading date that has one."""
    return np.append(first_rows(bars)[1:], len(bars)) - 1


def repeat_per_bar(
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
    return repeat_per_bar(bars, np.where(held, values[place], np.nan))
