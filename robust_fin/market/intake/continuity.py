"""Continuity of a bar table: bar length, tick, jumps of scale, silent contracts and holes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from robust_fin.market.calendar import TradingCalendar

MIN_STEPS = 20  # steps between bars below which no length is inferred
MIN_PRICES = 50  # distinct prices below which no tick is inferred
SCALE_JUMP = 1.8  # factor between the levels before and after a jump of scale
LONG_SCALE_JUMP = 3.0  # the same for bars of more than an hour
SILENT_DAYS = 365  # shortest silence that is longer than a contract's life
NO_TICK = 0.0  # prices on no known grid
_ON_GRID = 0.99  # share of steps, or of prices, that are multiples of a length, or of a tick
_RARE = 0.01  # share of a step's occurrences below which it is no candidate
_WITHIN_SESSION = 6 * 3600 * 1_000_000_000  # longest step that is likely within a session
_LEVEL_BARS = 30  # bars on each side of a jump whose median is the level
_MAX_PRICES = 200_000  # prices sampled for the tick
_DAY_NS = 86_400 * 1_000_000_000

Stamps = Int[np.ndarray, " _rows"]
Codes = Int[np.ndarray, " _rows"]
Prices = Float[np.ndarray, " _rows"]


class Grouped(NamedTuple):
    """Rows sorted by contract, then by time.

    Attributes:
        rows: numbers of the rows in this order.
        same: whether the next row belongs to the same contract, for every row but the last.
        start: starts of the bars in this order, UTC nanoseconds.
    """

    rows: Codes
    same: np.ndarray
    start: Stamps

    @classmethod
    def by_contract(cls, start: Stamps, contract: Codes) -> "Grouped":
        """Group rows that are sorted by time.

        Args:
            start: starts of the bars, UTC nanoseconds, increasing.
            contract: code of each bar's contract.
        """
        same = contract[1:] == contract[:-1]
        if (same | (contract[1:] > contract[:-1])).all():
            return cls(np.arange(start.size), same, start)
        rows = np.argsort(contract, kind="stable")
        code = contract[rows]
        return cls(rows, code[1:] == code[:-1], start[rows])

    def steps(self) -> Stamps:
        """Return the steps between consecutive bars of a contract, in nanoseconds."""
        return np.diff(self.start)[self.same]


def bar_length(grouped: Grouped) -> pd.Timedelta | None:
    """Infer the length of a bar: the longest common step that nearly all steps are multiples of.

    Returns:
        None if there are too few steps, or no regular one.
    """
    length, count = _count_steps(grouped.steps())
    within = length <= _WITHIN_SESSION
    if count[within].sum() >= count.sum() / 2:
        length, count = length[within], count[within]
    total = count.sum()
    if total < MIN_STEPS:
        return None
    common = length[count >= max(2, _RARE * total)]
    for candidate in common[::-1]:
        if count[length % candidate == 0].sum() >= _ON_GRID * total:
            return pd.Timedelta(int(candidate), unit="ns")
    return None


def _count_steps(steps: Stamps) -> tuple[Stamps, Stamps]:
    """Return the distinct positive steps, increasing, and how often each occurs.

    The first step is counted apart, because it is nearly always that of most rows: a million equal
    numbers are compared quickly, but sorted slowly.
    """
    usual = steps[:1]
    others = steps[steps != usual] if steps.size else steps
    length, count = np.unique(np.concatenate([usual, others]), return_counts=True)
    count[length == usual] += steps.size - others.size - 1
    return length[length > 0], count[length > 0]


_TICKS = np.array(
    sorted(
        {m * 10.0**e for m in (1, 2, 2.5, 5) for e in range(-9, 12)}
        | {2.0**-e for e in range(2, 10)}
    )
)[::-1]


def tick_size(prices: Prices) -> float | None:
    """Infer the tick: the coarsest usual grid that holds nearly all prices.

    Args:
        prices: in any order.

    Returns:
        `NO_TICK` if the prices lie on no usual grid; None if there are too few distinct prices.
    """
    every = max(1, prices.size // _MAX_PRICES)
    distinct, count = np.unique(prices[::every], return_counts=True)
    if distinct.size < MIN_PRICES:
        return None
    largest = float(np.abs(distinct).max())
    spread = float(np.ptp(distinct))
    for tick in _TICKS:
        if tick > spread:
            continue
        if tick < 4e-7 * largest:  # finer than single precision can tell
            break
        ratio = distinct / tick
        on_grid = np.abs(ratio - np.round(ratio)) < max(1e-3, 2e-7 * largest / tick)
        if count[on_grid].sum() >= _ON_GRID * count.sum():
            return float(tick)
    return NO_TICK


class ScaleJump(NamedTuple):
    """Place where prices change their scale.

    Attributes:
        row: first row after the jump.
        factor: level after it, divided by the level before it.
    """

    row: int
    factor: float


def scale_jumps(
    close: Prices, grouped: Grouped, *, bar: pd.Timedelta, across: bool
) -> list[ScaleJump]:
    """Find bars at which the level of prices changes by a factor and stays there.

    A single bad tick is no jump, because the medians on both sides agree.

    Args:
        close: closing prices, sorted by time.
        grouped: the same rows by contract.
        bar: length of a bar.
        across: compare each contract with the one before it too.
    """
    limit = LONG_SCALE_JUMP if bar > pd.Timedelta("1h") else SCALE_JUMP
    price = close[grouped.rows]
    if (price <= 0).any():
        return []
    ratio = price[1:] / price[:-1]
    far = (ratio >= limit) | (ratio <= 1 / limit)
    far &= np.diff(grouped.start) <= SILENT_DAYS * _DAY_NS  # prices may double in a year
    suspect = np.flatnonzero(far if across else far & grouped.same) + 1
    edges = np.flatnonzero(~grouped.same) + 1  # first row of each contract but the first
    found = []
    for row in suspect:
        place = np.searchsorted(edges, row)
        low = edges[place - 1] if place else 0
        later = edges[edges > row]
        high = later[0] if later.size else price.size
        before = np.median(np.log(price[max(low, row - _LEVEL_BARS) : row]))
        change = np.median(np.log(price[row : min(high, row + _LEVEL_BARS)])) - before
        if abs(change) >= np.log(limit):
            found.append(ScaleJump(int(grouped.rows[row]), float(np.exp(change))))
    return found


def silent_gaps(start: Stamps) -> Stamps:
    """Return the first bar after each silence longer than a year and than the time of all trading.

    Args:
        start: starts of the bars of one contract, UTC nanoseconds, increasing.
    """
    step = np.diff(start)
    is_long = step > SILENT_DAYS * _DAY_NS
    traded = step[~is_long].sum()
    return np.flatnonzero(is_long & (step > traded)) + 1


class Silence(NamedTuple):
    """Contract that is silent for longer than its life.

    Attributes:
        contract: its code number.
        before: last bar before the silence, UTC.
        after: first bar after it, UTC.
    """

    contract: int
    before: pd.Timestamp
    after: pd.Timestamp


def silences(grouped: Grouped, contract: Codes) -> list[Silence]:
    """Find contracts with a silence longer than a year and than all the time they were active.

    Args:
        grouped: rows by contract.
        contract: code of each bar's contract, sorted by time.
    """
    is_long = (np.diff(grouped.start) > SILENT_DAYS * _DAY_NS) & grouped.same
    found = []
    for code in np.unique(contract[grouped.rows[:-1][is_long]]):
        own = grouped.start[contract[grouped.rows] == code]
        for row in silent_gaps(own):
            before, after = (pd.Timestamp(int(own[at]), tz="UTC") for at in (row - 1, row))
            found.append(Silence(int(code), before, after))
    return found


class Hole(NamedTuple):
    """Trading dates in a row without a bar.

    Attributes:
        before: last bar before the hole, UTC.
        after: first bar after it, UTC.
        sessions: number of trading dates without a bar.
        change: close after the hole over the close before it, minus 1.
    """

    before: pd.Timestamp
    after: pd.Timestamp
    sessions: int
    change: float

    def __str__(self) -> str:
        """Describe the hole in a few words."""
        dates = "1 trading date" if self.sessions == 1 else f"{self.sessions} trading dates"
        return (
            f"{dates} after {self.before:%Y-%m-%d %H:%M} UTC "
            f"(return across {100 * self.change:+.2f} %)"
        )


def holes(calendar: TradingCalendar, start: Stamps, close: Prices) -> list[Hole]:
    """Find trading dates of the calendar without a bar, the longest hole first.

    Args:
        calendar: of the market.
        start: starts of the bars, UTC nanoseconds, increasing.
        close: closing prices.
    """
    low, high = np.searchsorted(calendar.open, start[[0, -1]], side="right") - 1
    first = np.searchsorted(start, calendar.open[max(low, 0) : high + 1])  # of each session
    held = np.flatnonzero(np.diff(np.append(first, start.size)))  # sessions with a bar
    skipped = np.diff(held) - 1
    found = [
        Hole(
            pd.Timestamp(int(start[row - 1]), tz="UTC"),
            pd.Timestamp(int(start[row]), tz="UTC"),
            int(count),
            float(close[row] / close[row - 1] - 1),
        )
        for row, count in zip(first[held[1:]][skipped > 0], skipped[skipped > 0], strict=True)
    ]
    return sorted(found, key=lambda hole: -hole.sessions)


def zero_volume_share(volume: Prices) -> float:
    """Return the share of bars without volume."""
    return float((volume == 0).mean())


def format_length(length: pd.Timedelta | None) -> str:
    """Format a bar length as source.bar writes it, such as 5min or 90s."""
    if length is None:
        return "unknown"
    seconds = length.total_seconds()
    for size, unit in ((86_400, "D"), (3_600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def longest(found: Sequence[Hole], *, count: int = 3) -> str:
    """Format the longest holes."""
    text = "; ".join(str(hole) for hole in found[:count])
    return text if len(found) <= count else f"{text}; and {len(found) - count} shorter"
