"""Moments after which all bars are changed: mid-session, at rolls, where training spans end."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from robust_fin.features.history import contract_rows
from robust_fin.market.schema import stamps

MIDDLE, ROLL, FIRST, TRAIN = "mid-session", "at a roll", "in the first bars", "end of train"

_MIDDLE = (0.2, 0.8)  # of a session


class Cut(NamedTuple):
    """A moment between two bars.

    Attributes:
        last: the last row that is known by then.
        kind: MIDDLE, ROLL, FIRST or TRAIN.
    """

    last: int
    kind: str


def cut_points(
    bars: pd.DataFrame, *, count: int, seed: int, ends: Iterable[np.datetime64] = ()
) -> list[Cut]:
    """Where to cut, in the order of time; no moment twice.

    Args:
        bars: in the order of time.
        count: cuts in the middle of sessions, and at most as many rolls.
        seed: of the draw.
        ends: moments to cut at beside these: the last label ends of training spans.
    """
    draw, time = np.random.default_rng(seed), stamps(bars)
    kinds: dict[int, str] = {}
    for row, kind in _rows(bars, count, draw, ends):
        last = int(np.searchsorted(time, time[row], side="right")) - 1
        if last < len(bars) - 1:
            kinds.setdefault(last, kind)
    return [Cut(*one) for one in sorted(kinds.items())]


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
    time = stamps(bars)
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
