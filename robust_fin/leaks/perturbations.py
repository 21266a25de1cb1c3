"""Perturbed bars, the cuts at which to perturb them, and the values that change as a result."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from robust_fin.features.history import contract_rows
from robust_fin.features.registry import BARS, SESSION, Lookback
from robust_fin.market.schema import PRICES, bar_starts

Change = Callable[[pd.DataFrame, int], pd.DataFrame]  # changes or drops the bars from a row on
ColumnValues = Callable[[pd.DataFrame], Float[np.ndarray, " _rows"]]  # one value per bar
Mask = Bool[np.ndarray, " rows"]

_LEVELS = (0.8, 1.25)  # factors of a changed price, far beyond the move of any minute
_WIDER = {"high": 1.02, "low": 0.98}  # changes the range too and keeps the bar valid
_DATES = 2  # trading dates around a cut beyond the lookback; most leaks reach no further
_TOOTH = 60  # bars of one contract that a comb keeps or changes, beyond the lookback
_ROUNDING = 1e-9  # of a value
_RUNNING_SUM = 1e-7  # of a column's std: the rounding error of a running sum depends on older bars

MIDDLE, ROLL, FIRST, TRAIN = "mid-session", "at a roll", "in the first bars", "end of train"
_MIDDLE = (0.2, 0.8)  # of a session


def perturb_bars(bars: pd.DataFrame, rows: Mask) -> pd.DataFrame:
    """Change some rows strongly, each by another factor; the bars stay valid.

    The factor depends on the row number and the table length only. A volume of 0 stays 0.

    Args:
        bars: in time order.
        rows: rows to change.
    """
    level = np.random.default_rng(len(bars)).uniform(*_LEVELS, len(bars))
    changed = {}
    for name in bars.columns:
        if bars[name].dtype == np.float64:
            factor = level if name in PRICES else level[::-1]
            values = bars[name].to_numpy()
            changed[name] = np.where(rows, values * factor * _WIDER.get(name, 1.0), values)
    return bars.assign(**changed)


def change_future(bars: pd.DataFrame, first: int) -> pd.DataFrame:
    """Change all bars from row `first` on."""
    return perturb_bars(bars, np.arange(len(bars)) >= first)


def drop_future(bars: pd.DataFrame, first: int) -> pd.DataFrame:
    """Keep the bars before row `first`."""
    return bars.iloc[:first]


def drop_past(bars: pd.DataFrame, first: int) -> pd.DataFrame:
    """Keep the bars from row `first` on, numbered from 0."""
    return bars.iloc[first:].reset_index(drop=True)


def window_around(
    bars: pd.DataFrame, row: int, *, lookbacks: Iterable[Lookback]
) -> tuple[int, int]:
    """Return the rows (first, stop) within the longest lookback plus two trading dates of a row.

    Args:
        bars: in time order.
        row: the row in the middle.
        lookbacks: lookbacks of the features to compute.
    """
    dates, count = 0, 0
    for lookback in lookbacks:
        if lookback.unit == BARS:
            count = max(count, lookback.count * bars["contract"].nunique())
        else:
            dates = max(dates, lookback.count)
    day = bars["trading_day"].to_numpy()
    first = int(np.searchsorted(day, day[row] - dates - _DATES, side="left"))
    stop = int(np.searchsorted(day, day[row] + dates + _DATES, side="right"))
    return max(0, min(first, row - count)), min(len(bars), max(stop, row + count + 1))


def _bar_numbers(bars: pd.DataFrame) -> Int[np.ndarray, " rows"]:
    return bars.groupby("contract", observed=True).cumcount().to_numpy()


def has_full_lookback(bars: pd.DataFrame, lookback: Lookback) -> Mask:
    """Mark the rows whose lookback lies in the table, even if the table starts mid-session."""
    if lookback.unit == BARS:
        return _bar_numbers(bars) >= lookback.count
    day = bars["trading_day"].to_numpy()
    return day >= day[0] + 1 + lookback.count


def comb_masks(bars: pd.DataFrame, lookback: Lookback, *, seed: int) -> tuple[Mask, Mask]:
    """Place as many cuts in one table as the lookback allows.

    A changed bar may affect the rows within a lookback after it. The rows from there to the next
    changed bars have those bars in their future only, so their features must not change.

    Args:
        bars: in time order.
        lookback: lookback of the features to compare.
        seed: seed of the positions.

    Returns:
        The rows to change, and the rows to compare.
    """
    draw = np.random.default_rng(seed)
    if lookback.unit == BARS:
        span, bar = 2 * _TOOTH + lookback.count, _bar_numbers(bars)
        phase, tooth = bar % span, bar // span
        start = draw.integers(lookback.count + 1, span, tooth.max() + 1)[tooth]
        return phase >= start, (phase < start) & (phase >= lookback.count)
    day = bars["trading_day"].to_numpy().astype(np.int64)
    span = 1 if lookback.unit == SESSION else lookback.count + 2
    phase, tooth = (day - day[0]) % span, (day - day[0]) // span
    start = draw.uniform(0.02, 0.98, tooth.max() + 1)[tooth]
    changed = (phase == span - 1) & (_share_of_date(day) >= start)
    return changed, (phase >= span - 2) & ~changed


def _share_of_date(day: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Return the position of each row in its trading date, in [0, 1)."""
    first = np.searchsorted(day, day, side="left")
    return (np.arange(day.size) - first) / (np.searchsorted(day, day, side="right") - first)


class PerturbationCut(NamedTuple):
    """A moment between two bars.

    Attributes:
        last: the last row that is known at the cut.
        kind: MIDDLE, ROLL, FIRST or TRAIN.
    """

    last: int
    kind: str


def cut_points(
    bars: pd.DataFrame, *, count: int, seed: int, ends: Iterable[np.datetime64] = ()
) -> list[PerturbationCut]:
    """Draw the cuts, in time order and without duplicates.

    Args:
        bars: in time order.
        count: number of mid-session cuts, and the most rolls to cut at.
        seed: seed of the draw.
        ends: further moments to cut at, the last label ends of training spans.
    """
    draw, time = np.random.default_rng(seed), bar_starts(bars)
    kinds: dict[int, str] = {}
    for row, kind in _cut_rows(bars, count, draw, ends):
        last = int(np.searchsorted(time, time[row], side="right")) - 1
        if last < len(bars) - 1:
            kinds.setdefault(last, kind)
    return [PerturbationCut(last, kind) for last, kind in sorted(kinds.items())]


def _cut_rows(
    bars: pd.DataFrame, count: int, draw: np.random.Generator, ends: Iterable[np.datetime64]
) -> Iterator[tuple[int, str]]:
    rolls = [rows[0] for rows in contract_rows(bars)[1:]]
    for roll in draw.permutation(rolls)[:count]:
        for row in (roll - 1, roll, roll + draw.integers(2, 60)):
            if row < len(bars):
                yield int(row), ROLL
    yield int(draw.integers(1, 60)) % len(bars), FIRST
    time, day = bar_starts(bars), bars["trading_day"].to_numpy()
    for end in ends:
        yield max(0, int(np.searchsorted(time, end, side="left")) - 1), TRAIN
    dates = np.unique(day)
    for date in np.sort(draw.choice(dates, min(count, dates.size), replace=False)):
        first, stop = (np.searchsorted(day, date, side=side) for side in ("left", "right"))
        yield int(first + draw.uniform(*_MIDDLE) * (stop - first)), MIDDLE


class Reach(NamedTuple):
    """How far into the future a value sees.

    Attributes:
        bars: number of later time stamps up to the last one that affects the value.
        minutes: from the value's bar to that stamp.
        to_end: whether that is the last stamp of the table.
    """

    bars: int
    minutes: float
    to_end: bool

    def __str__(self) -> str:
        """Format such as `5 bars (5 minutes) ahead`."""
        bars = f"{self.bars:,} bar" + "s" * (self.bars != 1)
        minutes = f"{self.minutes:,.10g} minute" + "s" * (self.minutes != 1)
        return f"{bars} ({minutes}) ahead" + ", to the end of the bars" * self.to_end


@dataclass(frozen=True, slots=True)
class Leak:
    """A column that depends on data it cannot know.

    Attributes:
        column: the feature, label or span that leaks.
        evidence: which value changed, after which change, and how far it sees.
        remedy: what to change.
        reach: how far it sees; None if no later bar affects it.
    """

    column: str
    evidence: str
    remedy: str
    reach: Reach | None = None

    def __str__(self) -> str:
        """Format as one message."""
        return f"{self.column} leaks: {self.evidence}. {self.remedy}"


class CheckedColumn(NamedTuple):
    """A line of the table of checks.

    Attributes:
        column: the feature, label or span.
        what: the data that must not affect it.
        cuts: number of cuts, table starts or folds tried.
        rows: number of finite values compared.
        note: a limitation of the check, or "".
    """

    column: str
    what: str
    cuts: int
    rows: int
    note: str = ""


class Findings(NamedTuple):
    """The leaks in the order of the columns, and what was checked."""

    leaks: list[Leak]
    checked: list[CheckedColumn]


def finite_std(values: Float[np.ndarray, " rows"]) -> float:
    """Return the standard deviation of the finite values; 0 if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.std()) if finite.size else 0.0


def values_differ(
    before: Float[np.ndarray, " rows"], after: Float[np.ndarray, " rows"], *, std: float
) -> Mask:
    """Mark the values that differ by more than rounding, or that are NaN on one side only."""
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    finite = np.isfinite(before) & np.isfinite(after)
    distance = np.abs(np.subtract(before, after, out=np.zeros_like(before), where=finite))
    allowed = _ROUNDING * np.abs(before) + _RUNNING_SUM * std
    return ~(same | (finite & (distance <= allowed)))


def describe_bar(bars: pd.DataFrame, row: int) -> str:
    """Format the time and contract of a bar."""
    return f"bar {format_minute(bar_starts(bars)[row])} UTC of {bars['contract'].iloc[row]}"


def format_minute(stamp: np.datetime64) -> str:
    """Format a time stamp to the minute."""
    return str(np.datetime_as_string(stamp, unit="m"))


def later_starts(bars: pd.DataFrame, row: int) -> Int[np.ndarray, " later"]:
    """Return the first row of every time stamp after that of a row."""
    first = np.flatnonzero(np.diff(bar_starts(bars)) > np.timedelta64(0)) + 1
    return first[first > row]


def last_noticed(notices: Callable[[int], bool], size: int) -> int | None:
    """Find the last of `size` start positions whose change is noticed; None if none is.

    A change is assumed to be noticed from every position up to that one. Doubling steps and then
    halving need 2 log2(size) calls.

    >>> last_noticed(lambda start: start <= 11, 100)
    11
    """
    if size == 0 or not notices(0):
        return None
    low, step = 0, 1
    while low + step < size and notices(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, size)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if notices(middle) else (low, middle)
    return low


def measure_reach(
    bars: pd.DataFrame, row: int, values: ColumnValues, change: Change, *, std: float
) -> Reach | None:
    """Measure how far the value at a row sees; None if no later bar affects it.

    Args:
        bars: in time order.
        row: row of the value.
        values: computes the column from a table.
        change: changes the bars from a row on.
        std: standard deviation of the column.
    """
    starts, before = later_starts(bars, row), values(bars)[row : row + 1]

    def notices(position: int) -> bool:
        after = values(change(bars, int(starts[position])))[row : row + 1]
        return bool(values_differ(before, after, std=std)[0])

    last = last_noticed(notices, starts.size)
    return None if last is None else reach_between(bar_starts(bars), row, starts, last)


def reach_between(
    time: Shaped[np.ndarray, " rows"], row: int, starts: Int[np.ndarray, " later"], last: int
) -> Reach:
    """Return the reach from a row to position `last` of its later starts."""
    minutes = (time[starts[last]] - time[row]) / np.timedelta64(1, "m")
    return Reach(last + 1, float(minutes), last == starts.size - 1)
