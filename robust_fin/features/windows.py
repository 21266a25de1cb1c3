"""Trailing windows over bars and over trading dates, exact to the last bit."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

Values = Float[np.ndarray, "rows *rest"]
RowNumbers = Int[np.ndarray, " dates"]


def lagged(values: Values, count: int) -> Values:
    """Shift values down by `count` rows along the first axis; the first rows become NaN.

    >>> lagged(np.array([1.0, 2.0, 3.0]), 2)
    array([nan, nan,  1.])
    """
    moved = np.full_like(values, np.nan)
    moved[count:] = values[: max(0, len(values) - count)]
    return moved


def trailing_sum(values: Values, span: int) -> Values:
    """Sum the last `span` rows, including the current row; NaN for the first `span` - 1 rows.

    Windows are built by doubling instead of a running sum, so a value does not depend on rows
    before its window, not even by rounding.

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
    """Average the last `span` rows, including the current row."""
    return trailing_sum(values, span) / span


def trailing_max(values: Values, span: int) -> Values:
    """Return the largest of the last `span` rows, including the current row."""
    return _trailing_extreme(values, span, np.maximum)


def trailing_min(values: Values, span: int) -> Values:
    """Return the smallest of the last `span` rows, including the current row."""
    return _trailing_extreme(values, span, np.minimum)


def _trailing_extreme(
    values: Values, span: int, extreme: Callable[[Values, Values], Values]
) -> Values:
    widest, width = values, 1
    while 2 * width <= span:
        widest = extreme(widest, lagged(widest, width))
        width *= 2
    return extreme(widest, lagged(widest, span - width))  # the two windows may overlap


def first_rows(bars: pd.DataFrame) -> RowNumbers:
    """Return the row number of the first bar of each trading date with bars."""
    day = bars["trading_day"].to_numpy()
    return np.flatnonzero(np.diff(day, prepend=day[:1] - 1))


def last_rows(bars: pd.DataFrame) -> RowNumbers:
    """Return the row number of the last bar of each trading date with bars."""
    return np.append(first_rows(bars)[1:], len(bars)) - 1


def repeat_per_bar(
    bars: pd.DataFrame, values: Shaped[np.ndarray, " dates"]
) -> Shaped[np.ndarray, " rows"]:
    """Repeat values with one entry per trading date with bars, to one entry per bar."""
    return np.repeat(values, np.diff(first_rows(bars), append=len(bars)))


def value_on_day(
    bars: pd.DataFrame, values: Float[np.ndarray, " dates"], *, dates_ago: int
) -> Float[np.ndarray, " rows"]:
    """Look up the value of the trading date `dates_ago` before the trading date of each bar.

    NaN if that date has no bars: the value of an older date would have another span.

    Args:
        bars: bars of a contract, sorted by time.
        values: one entry per trading date with bars.
        dates_ago: trading dates, by the calendar.
    """
    days = bars["trading_day"].to_numpy()[first_rows(bars)]
    position = np.searchsorted(days, days - dates_ago)
    exists = days[position] == days - dates_ago
    return repeat_per_bar(bars, np.where(exists, values[position], np.nan))
