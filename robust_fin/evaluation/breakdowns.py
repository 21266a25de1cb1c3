"""Calibration by decile, edge of the outer deciles, and figures by month and hour."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from scipy.stats import rankdata

from robust_fin.errors import ConfigError
from robust_fin.evaluation.intervals import (
    DateBootstrap,
    DatedRows,
    Interval,
    Statistic,
    Sums,
    date_weights,
    rank_ic_of,
    ratio,
    skill_of,
)

BINS = 10
NUMBER, TARGET, OUTCOME = range(3)


@dataclass(frozen=True, slots=True)
class Decile:
    """Rows whose forecasts are alike.

    Attributes:
        rows: how many.
        score: their mean forecast, in rank units.
        target: their mean realised rank.
        outcome_bp: their mean forward return, in basis points.
    """

    rows: int
    score: float
    target: Interval
    outcome_bp: Interval


@dataclass(frozen=True, slots=True)
class Calibration:
    """Deciles of the forecast, lowest first; fewer where forecasts tie.

    Attributes:
        deciles: see `Decile`.
        error: mean distance of forecast and realised rank over deciles, weighted by rows.
    """

    deciles: tuple[Decile, ...]
    error: float


def decile_index(score: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Number of each row's decile, 0 to 9; equal forecasts share one."""
    place = (rankdata(score) - 0.5) / score.size
    return np.minimum((place * BINS).astype(np.int64), BINS - 1)


def calibration(
    rows: DatedRows, score: Float[np.ndarray, " rows"], samples: DateBootstrap
) -> Calibration:
    """Mean realised rank and return by decile of the forecast, with intervals over dates."""
    number = decile_index(score)
    found, apart = [], 0.0
    for one in np.unique(number):
        inside = number == one
        sums = np.stack(
            [rows.added(inside * value) for value in (1.0, rows.target, 1e4 * rows.outcome)], axis=1
        )
        target = samples.interval(sums, lambda drawn: ratio(drawn[:, TARGET], drawn[:, NUMBER]))
        outcome = samples.interval(sums, lambda drawn: ratio(drawn[:, OUTCOME], drawn[:, NUMBER]))
        mean = float(score[inside].mean())
        found.append(Decile(int(inside.sum()), mean, target, outcome))
        apart += inside.mean() * abs(mean - target.estimate)
    return Calibration(tuple(found), float(apart))


ZONE = "America/Chicago"
SESSION_START = 17  # hour in Chicago at which a trading date begins
MIN_DATES = 5  # fewer are too few to resample


@dataclass(frozen=True, slots=True)
class GroupMetrics:
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
) -> tuple[GroupMetrics, ...]:
    """Month by month of the trading date, in the order of time.

    Args:
        net: labelled rows of the net, with trading_date, score, target, outcome.
        trivial: the constant forecast of each row, in rank units.
        draws: bootstrap samples.
        block: mean length of a resampled block, in dates.
    """
    month = net["trading_date"].to_numpy().astype("datetime64[M]").astype(str)
    return group_metrics(net, month, sorted(set(month)), trivial=trivial, draws=draws, block=block)


def by_hour(
    net: pd.DataFrame, *, trivial: Float[np.ndarray, " rows"], draws: int, block: float
) -> tuple[GroupMetrics, ...]:
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
    return group_metrics(net, names, shown, trivial=trivial, draws=draws, block=block)


def group_metrics(
    net: pd.DataFrame,
    names: Shaped[np.ndarray, " rows"],
    order: Sequence[str],
    *,
    trivial: Float[np.ndarray, " rows"],
    draws: int,
    block: float,
    seed: int = 0,
) -> tuple[GroupMetrics, ...]:
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
    def samples(dates: int) -> DateBootstrap:
        length = max(1.0, min(block, dates / 3))
        return DateBootstrap(date_weights(dates, draws=draws, seed=seed, block=length), length)

    found = []
    for name in order:
        inside = names == name
        part = net[inside]
        sums = DatedRows.from_frame(part, trivial=trivial[inside]).sums(
            part["score"].to_numpy(dtype=np.float64)
        )
        found.append(_group(name, len(part), sums, samples(len(sums))))
    return tuple(found)


def _group(name: str, rows: int, sums: Sums, samples: DateBootstrap) -> GroupMetrics:
    figures = [samples.interval(sums, one) for one in (rank_ic_of, skill_of)]
    if len(sums) < MIN_DATES:
        figures = [Interval(one.estimate, math.nan, math.nan) for one in figures]
    return GroupMetrics(name, rows, len(sums), *figures)


_TOP, _TOP_BP, _TOP_TICKS, _BOTTOM, _BOTTOM_BP, _BOTTOM_TICKS = range(6)


@dataclass(frozen=True, slots=True)
class Instrument:
    """What is traded.

    Attributes:
        root: what the codes of its contracts begin with.
        tick: least change of its price, in the units of the bars' prices; None where not known.
        half_spread_ticks: what crossing the spread costs a side, in ticks.
    """

    root: str
    tick: float | None
    half_spread_ticks: float

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        if self.tick is not None and not (self.tick > 0 and math.isfinite(self.tick)):
            raise ConfigError(f"instrument.tick={self.tick} must be a price above 0, or null")
        if not 0 <= self.half_spread_ticks < math.inf:
            raise ConfigError(
                f"instrument.half_spread_ticks={self.half_spread_ticks} must be at least 0"
            )

    def trades(self, contracts: Iterable[str]) -> bool:
        """Whether these are its contracts; the tick of another market would be a wrong unit."""
        return all(code.startswith(self.root) for code in contracts)


@dataclass(frozen=True, slots=True)
class Edge:
    """Mean outcome of the first and the last decile of the forecast, over the target's horizon.

    Attributes:
        top_bp: of the rows with the highest forecasts, in basis points.
        bottom_bp: of those with the lowest.
        trade_bp: of a trade that buys the ones or sells the others, before costs.
        top_ticks: like top_bp, in ticks; NaN where the tick or the price is not known.
        bottom_ticks: likewise.
        trade_ticks: likewise.
        half_spread_ticks: the cost of a side; NaN where the tick is not known.
        half_spread_bp: the same at the mean price of the traded rows.
        trades: rows in the two deciles.
    """

    top_bp: Interval
    bottom_bp: Interval
    trade_bp: Interval
    top_ticks: Interval
    bottom_ticks: Interval
    trade_ticks: Interval
    half_spread_ticks: float
    half_spread_bp: float
    trades: int

    @property
    def break_even_ticks(self) -> float:
        """Cost of a side, in ticks, at which a trade earns nothing: it pays on entry and on exit.

        0 where there is no edge to pay with.
        """
        return max(self.trade_ticks.estimate / 2, 0.0)


def edge(
    rows: DatedRows,
    score: Float[np.ndarray, " rows"],
    samples: DateBootstrap,
    *,
    close: Float[np.ndarray, " rows"] | None,
    instrument: Instrument | None,
) -> Edge:
    """What the first and the last decile of the forecast earn, with intervals over dates.

    Args:
        rows: of the test span.
        score: forecasts of the net.
        samples: of trading dates.
        close: the price each outcome starts from, in the units of the bars.
        instrument: what a tick is and costs.
    """
    decile = decile_index(score)
    top, bottom = decile == BINS - 1, decile == 0
    tick = None if instrument is None or close is None else instrument.tick
    price = np.full(score.size, math.nan) if close is None else close
    ticks = rows.outcome * price / (tick or math.nan)
    parts = [part * value for part in (top, bottom) for value in (1.0, 1e4 * rows.outcome, ticks)]
    sums = np.stack([rows.added(one) for one in parts], axis=1)
    traded = price[top | bottom]
    mean_price = float(traded.mean()) if traded.size else math.nan
    cost = math.nan if tick is None or instrument is None else instrument.half_spread_ticks

    def at(statistic: Statistic) -> Interval:
        return samples.interval(sums, statistic)

    return Edge(
        top_bp=at(_mean_of(_TOP, _TOP_BP)),
        bottom_bp=at(_mean_of(_BOTTOM, _BOTTOM_BP)),
        trade_bp=at(_trade_of(_TOP_BP, _BOTTOM_BP)),
        top_ticks=at(_mean_of(_TOP, _TOP_TICKS)),
        bottom_ticks=at(_mean_of(_BOTTOM, _BOTTOM_TICKS)),
        trade_ticks=at(_trade_of(_TOP_TICKS, _BOTTOM_TICKS)),
        half_spread_ticks=cost,
        half_spread_bp=1e4 * cost * (tick or math.nan) / mean_price,
        trades=int(traded.size),
    )


def _mean_of(count: int, value: int) -> Statistic:
    """A sum over rows, over their number."""
    return lambda sums: ratio(sums[:, value], sums[:, count])


def _trade_of(top: int, bottom: int) -> Statistic:
    """What the rows of both deciles earn, bought on the one side and sold on the other."""
    return lambda sums: ratio(sums[:, top] - sums[:, bottom], sums[:, _TOP] + sums[:, _BOTTOM])
