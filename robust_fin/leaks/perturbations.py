"""Perturbed bars, and the values that move although they must not."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from robust_fin.features.history import contract_rows
from robust_fin.features.registry import BARS, SESSION, Lookback
from robust_fin.market.schema import PRICES, bar_starts

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
    time = bar_starts(bars)
    first = np.flatnonzero(np.diff(time) > np.timedelta64(0)) + 1
    return first[first > row]


MIDDLE, ROLL, FIRST, TRAIN = "mid-session", "at a roll", "in the first bars", "end of train"

_MIDDLE = (0.2, 0.8)  # of a session


class PerturbationCut(NamedTuple):
    """A moment between two bars.

    Attributes:
        last: the last row that is known by then.
        kind: MIDDLE, ROLL, FIRST or TRAIN.
    """

    last: int
    kind: str


def cut_points(
    bars: pd.DataFrame, *, count: int, seed: int, ends: Iterable[np.datetime64] = ()
) -> list[PerturbationCut]:
    """Where to cut, in the order of time; no moment twice.

    Args:
        bars: in the order of time.
        count: cuts in the middle of sessions, and at most as many rolls.
        seed: of the draw.
        ends: moments to cut at beside these: the last label ends of training spans.
    """
    draw, time = np.random.default_rng(seed), bar_starts(bars)
    kinds: dict[int, str] = {}
    for row, kind in _rows(bars, count, draw, ends):
        last = int(np.searchsorted(time, time[row], side="right")) - 1
        if last < len(bars) - 1:
            kinds.setdefault(last, kind)
    return [PerturbationCut(*one) for one in sorted(kinds.items())]


def _rows(
    bars: pd.DataFrame, count: int, draw: np.random.Generator, ends: Iterable[np.datetime64]
) -> Iterator[tuple[int, str]]:
    first = [rows[0] for rows in contract_rows(bars)[1:]]
    for roll in draw.permutation(first)[:count]:  # the newest bar of before, the first, a few more
        yield from (
            (int(row), ROLL)
            for row in (roll - 1, roll, roll + draw.integers(2, 60))
            if row < len(bars)
        )
    yield int(draw.integers(1, 60)) % len(bars), FIRST
    time = bar_starts(bars)
    for end in ends:
        yield max(0, int(np.searchsorted(time, end, side="left")) - 1), TRAIN
    day = bars["trading_day"].to_numpy()
    dates = np.unique(day)
    for date in np.sort(draw.choice(dates, min(count, dates.size), replace=False)):
        opened, closed = (
            np.searchsorted(day, date, side="left"),
            np.searchsorted(day, date, side="right"),
        )
        yield int(opened + draw.uniform(*_MIDDLE) * (closed - opened)), MIDDLE


Values = Callable[[pd.DataFrame], Float[np.ndarray, " _rows"]]  # of a column, one a bar

_ROUNDING = 1e-9  # of a value
_NOTHING = 1e-7  # of a column's spread: running sums of all that came before differ by less


class Reach(NamedTuple):
    """How far a value sees.

    Attributes:
        bars: later stamps, up to the last whose change it notices.
        minutes: from its bar to that one.
        to_end: whether that is the last one there is.
    """

    bars: int
    minutes: float
    to_end: bool

    def __str__(self) -> str:
        """Such as `5 bars (5 minutes) ahead`."""
        bars = f"{self.bars:,} bar" + "s" * (self.bars != 1)
        minutes = f"{self.minutes:,.10g} minute" + "s" * (self.minutes != 1)
        return f"{bars} ({minutes}) ahead" + ", to the end of the bars" * self.to_end


@dataclass(frozen=True, slots=True)
class Leak:
    """What was found, in words a user can act on.

    Attributes:
        column: the feature, label or span that leaks.
        found: where it was seen, what was changed, and how far it sees.
        remedy: what to change.
        reach: how far it sees; None where it is no later bar that it sees.
    """

    column: str
    found: str
    remedy: str
    reach: Reach | None = None

    def __str__(self) -> str:
        """One message."""
        return f"{self.column} leaks: {self.found}. {self.remedy}"


class Checked(NamedTuple):
    """A line of what was checked.

    Attributes:
        column: the feature, label or span.
        what: it was held against.
        cuts: moments, starts or folds that were tried.
        rows: values compared, those that are not a number left out.
        note: what the reader should know, or nothing.
    """

    column: str
    what: str
    cuts: int
    rows: int
    note: str = ""


class Findings(NamedTuple):
    """Leaks in the order of the columns, and what was checked."""

    leaks: list[Leak]
    checked: list[Checked]


def spread_of(values: Float[np.ndarray, " rows"]) -> float:
    """Standard deviation of those that are numbers; 0 where none is."""
    known = values[np.isfinite(values)]
    return float(known.std()) if known.size else 0.0


def moved(
    before: Float[np.ndarray, " rows"], after: Float[np.ndarray, " rows"], *, spread: float
) -> Bool[np.ndarray, " rows"]:
    """Which values differ by more than rounding; being defined or not is a difference too."""
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    numbers = np.isfinite(before) & np.isfinite(after)
    apart = np.abs(np.subtract(before, after, out=np.zeros_like(before), where=numbers))
    allowed = _ROUNDING * np.abs(before) + _NOTHING * spread
    return ~(same | (numbers & (apart <= allowed)))


def where(bars: pd.DataFrame, row: int) -> str:
    """The bar of a row in words."""
    time = np.datetime_as_string(bar_starts(bars)[row], unit="m")
    return f"bar {time} UTC of {bars['contract'].iloc[row]}"


def farthest(notices: Callable[[int], bool], size: int) -> int | None:
    """The last of `size` rising starts from which on a change is noticed; None where none is.

    Asked about 2 log2 times: far off in doubling steps, then halving.

    >>> farthest(lambda start: start <= 11, 100)
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


def reach(
    bars: pd.DataFrame, row: int, values: Values, change: Change, *, spread: float
) -> Reach | None:
    """How far the value at a row sees, by where bars have to change for it to move.

    Args:
        bars: in the order of time.
        row: whose value.
        values: of the column, for any table.
        change: what is done to the bars from a row on.
        spread: of the column.

    Returns:
        None where no later bar moves it.
    """
    starts, before = later_stamps(bars, row), values(bars)[row : row + 1]

    def notices(place: int) -> bool:
        after = values(change(bars, int(starts[place])))[row : row + 1]
        return bool(moved(before, after, spread=spread)[0])

    last = farthest(notices, starts.size)
    if last is None:
        return None
    return reach_to(bar_starts(bars), row, starts, last)


def reach_to(
    time: Shaped[np.ndarray, " rows"], row: int, starts: Int[np.ndarray, " later"], last: int
) -> Reach:
    """From a row to the last of some later starts that it notices."""
    minutes = (time[starts[last]] - time[row]) / np.timedelta64(1, "m")
    return Reach(last + 1, float(minutes), last == starts.size - 1)
