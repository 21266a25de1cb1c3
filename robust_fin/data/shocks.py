"""Bars whose future is changed or missing, or whose past is dropped: what must not notice does not.

Everything here works on the rows of one table in the order of time, so that a cut is a row number.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from robust_fin.features.registry import BARS, SESSION, Lookback
from robust_fin.market.schema import PRICES, stamps

Change = Callable[[pd.DataFrame, int], pd.DataFrame]  # of all bars from a row on
Mask = Bool[np.ndarray, " rows"]

_LEVELS = (0.8, 1.25)  # of a changed price: far more than any minute moves it
_WIDER = {"high": 1.02, "low": 0.98}  # the range changes too, and the bar stays valid
_DATES = 2  # around a cut, beside the lookback: a leak reaches further than most
_TOOTH = 60  # bars of one contract that a comb leaves alone or changes, beside the lookback


def shocked(bars: pd.DataFrame, rows: Mask) -> pd.DataFrame:
    """Those rows changed beyond recognition, each in its own way; still valid bars.

    How a row is changed depends on its place in the table alone. A volume of 0 stays 0.

    Args:
        bars: in the order of time.
        rows: which to change.
    """
    level = np.random.default_rng(len(bars)).uniform(*_LEVELS, len(bars))
    changed = {}
    for name in bars.columns:
        if bars[name].dtype == np.float64:
            own = level if name in PRICES else level[::-1]
            values = bars[name].to_numpy()
            changed[name] = np.where(rows, values * own * _WIDER.get(name, 1.0), values)
    return bars.assign(**changed)


def future_changed(bars: pd.DataFrame, first: int) -> pd.DataFrame:
    """All bars from row `first` on are others."""
    return shocked(bars, np.arange(len(bars)) >= first)


def future_missing(bars: pd.DataFrame, first: int) -> pd.DataFrame:
    """The bars before row `first`."""
    return bars.iloc[:first]


def past_missing(bars: pd.DataFrame, first: int) -> pd.DataFrame:
    """The bars from row `first` on, counted anew."""
    return bars.iloc[first:].reset_index(drop=True)


def around(bars: pd.DataFrame, row: int, *, lookbacks: Iterable[Lookback]) -> tuple[int, int]:
    """The rows, first and one past the last, that lie within the lookbacks and two dates of a row.

    Args:
        bars: in the order of time.
        row: in the middle.
        lookbacks: of the features that are looked at.
    """
    dates, count = 0, 0
    for one in lookbacks:
        if one.unit == BARS:
            count = max(count, one.count * bars["contract"].nunique())
        else:
            dates = max(dates, one.count)
    day = bars["trading_day"].to_numpy()
    first = int(np.searchsorted(day, day[row] - dates - _DATES, side="left"))
    stop = int(np.searchsorted(day, day[row] + dates + _DATES, side="right"))
    return max(0, min(first, row - count)), min(len(bars), max(stop, row + count + 1))


def own_place(bars: pd.DataFrame) -> Int[np.ndarray, " rows"]:
    """How many bars of its contract lie before each bar."""
    return bars.groupby("contract", observed=True).cumcount().to_numpy()


def past_lookback(bars: pd.DataFrame, lookback: Lookback) -> Mask:
    """Rows whose lookback lies inside the table, though it may begin within a session."""
    if lookback.unit == BARS:
        return own_place(bars) >= lookback.count
    day = bars["trading_day"].to_numpy()
    return day >= day[0] + 1 + lookback.count


def comb(bars: pd.DataFrame, lookback: Lookback, *, seed: int) -> tuple[Mask, Mask]:
    """Many cuts in one table: teeth of changed bars, and rows before them that none can reach.

    A changed bar may move what follows it for the length of a lookback; the rows after that, up to
    the next tooth, have it in their future alone.

    Args:
        bars: in the order of time.
        lookback: of the features that are looked at.
        seed: of where the teeth begin.

    Returns:
        The rows to change, and the rows to compare.
    """
    draw = np.random.default_rng(seed)
    if lookback.unit == BARS:
        span = 2 * _TOOTH + lookback.count
        place, number = own_place(bars) % span, own_place(bars) // span
        begin = draw.integers(lookback.count + 1, span, number.max() + 1)[number]
        return place >= begin, (place < begin) & (place >= lookback.count)
    day = bars["trading_day"].to_numpy().astype(np.int64)
    span = 1 if lookback.unit == SESSION else lookback.count + 2
    phase, number = (day - day[0]) % span, (day - day[0]) // span
    begin = draw.uniform(0.02, 0.98, number.max() + 1)[number]
    late = share_of_date(day) >= begin
    return (phase == span - 1) & late, (phase >= span - 2) & ~((phase == span - 1) & late)


def share_of_date(day: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Where in its trading date each row lies, from 0 at the first to below 1 at the last."""
    first = np.searchsorted(day, day, side="left")
    return (np.arange(day.size) - first) / (np.searchsorted(day, day, side="right") - first)


def later_stamps(bars: pd.DataFrame, row: int) -> Int[np.ndarray, " later"]:
    """The first row of every stamp after that of a row."""
    time = stamps(bars)
    first = np.flatnonzero(np.diff(time) > np.timedelta64(0)) + 1
    return first[first > row]
