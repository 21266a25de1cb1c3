"""A leak: a value that moves when bars it cannot know change, and how far it sees."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from robust_fin.data.shocks import Change, later_stamps
from robust_fin.market.schema import stamps

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
    time = np.datetime_as_string(stamps(bars)[row], unit="m")
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
    return reach_to(stamps(bars), row, starts, last)


def reach_to(
    time: Shaped[np.ndarray, " rows"], row: int, starts: Int[np.ndarray, " later"], last: int
) -> Reach:
    """From a row to the last of some later starts that it notices."""
    minutes = (time[starts[last]] - time[row]) / np.timedelta64(1, "m")
    return Reach(last + 1, float(minutes), last == starts.size - 1)
