"""Skill and rank IC of the rows of a month, or of an hour of the day, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from robust_fin.evaluation.bootstrap import DateDraws, Interval, date_weights
from robust_fin.evaluation.date_sums import DatedRows, Sums, rank_ic_of, skill_of

ZONE = "America/Chicago"
SESSION_START = 17  # hour in Chicago at which a trading date begins
LEAST_DATES = 5  # fewer are too few to resample


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that share a month or an hour.

    Attributes:
        name: such as 2024-03 or 08:00.
        rows: how many.
        dates: trading dates they are of.
        rank_ic: Spearman correlation of forecast and outcome among them.
        skill: Huber skill over the constant.
    """

    name: str
    rows: int
    dates: int
    rank_ic: Interval
    skill: Interval


def by_month(
    net: pd.DataFrame, *, trivial: Float[np.ndarray, " rows"], draws: int, block: float
) -> tuple[Group, ...]:
    """Month by month of the trading date, in the order of time.

    Args:
        net: labelled rows of the net, with trading_date, score, target, outcome.
        trivial: the constant forecast of each row, in rank units.
        draws: bootstrap samples.
        block: mean length of a resampled block, in dates.
    """
    month = net["trading_date"].to_numpy().astype("datetime64[M]").astype(str)
    return grouped(net, month, sorted(set(month)), trivial=trivial, draws=draws, block=block)


def by_hour(
    net: pd.DataFrame, *, trivial: Float[np.ndarray, " rows"], draws: int, block: float
) -> tuple[Group, ...]:
    """Hour by hour of the bar's start in Chicago, in the order of a session: from 17:00 on.

    Args:
        net: labelled rows of the net, with time, trading_date, score, target, outcome.
        trivial: the constant forecast of each row, in rank units.
        draws: bootstrap samples.
        block: mean length of a resampled block, in dates.
    """
    hour = pd.DatetimeIndex(net["time"]).tz_convert(ZONE).hour.to_numpy()
    order = sorted(set(hour.tolist()), key=lambda one: (one - SESSION_START) % 24)
    names = np.array([f"{one:02d}:00" for one in range(24)])[hour]
    shown = [f"{one:02d}:00" for one in order]
    return grouped(net, names, shown, trivial=trivial, draws=draws, block=block)


def grouped(
    net: pd.DataFrame,
    names: Shaped[np.ndarray, " rows"],
    order: Sequence[str],
    *,
    trivial: Float[np.ndarray, " rows"],
    draws: int,
    block: float,
    seed: int = 0,
) -> tuple[Group, ...]:
    """Each group judged by itself: ranks among its own rows, its own dates resampled.

    Args:
        net: labelled rows of the net.
        names: group of each row.
        order: of the groups.
        trivial: the constant forecast of each row, in rank units.
        draws: bootstrap samples.
        block: mean length of a resampled block, in dates.
        seed: of the resampling.
    """

    @cache
    def samples(dates: int) -> DateDraws:
        length = max(1.0, min(block, dates / 3))
        return DateDraws(date_weights(dates, draws=draws, seed=seed, block=length), length)

    found = []
    for name in order:
        inside = names == name
        part = net[inside]
        sums = DatedRows.of(part, trivial=trivial[inside]).sums(
            part["score"].to_numpy(dtype=np.float64)
        )
        found.append(_group(name, len(part), sums, samples(len(sums))))
    return tuple(found)


def _group(name: str, rows: int, sums: Sums, samples: DateDraws) -> Group:
    figures = [samples.interval(sums, one) for one in (rank_ic_of, skill_of)]
    if len(sums) < LEAST_DATES:
        figures = [Interval(one.estimate, math.nan, math.nan) for one in figures]
    return Group(name, rows, len(sums), *figures)
