"""Calibration by decile, edge of the outer deciles, and metrics by month and hour."""

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
    COLUMNS,
    DateBootstrap,
    DatedRows,
    DrawnSums,
    Interval,
    Statistic,
    date_weights,
    rank_ic_of,
    ratio,
    skill_of,
)

BINS = 10
_PATH_DRAWS = 2000
MIN_DATES = 5  # for an interval of a group


@dataclass(frozen=True, slots=True)
class Decile:
    """Rows with similar forecasts.

    Attributes:
        rows: number of rows.
        score: mean forecast, in rank units.
        target: mean realised rank.
        outcome_bp: mean forward return, in basis points.
    """

    rows: int
    score: float
    target: Interval
    outcome_bp: Interval


@dataclass(frozen=True, slots=True)
class Calibration:
    """Deciles of the forecast, lowest first; fewer than ten where forecasts tie.

    Attributes:
        deciles: see `Decile`.
        error: mean absolute difference of forecast and realised rank over deciles, by rows.
    """

    deciles: tuple[Decile, ...]
    error: float


def decile_index(score: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Return each row's decile, 0 to 9; equal forecasts share a decile."""
    quantile = (rankdata(score) - 0.5) / score.size
    return np.minimum((quantile * BINS).astype(np.int64), BINS - 1)


def calibration(
    rows: DatedRows, score: Float[np.ndarray, " rows"], samples: DateBootstrap
) -> Calibration:
    """Compute mean realised rank and return by decile of the forecast, with intervals."""
    index = decile_index(score)
    deciles, error = [], 0.0
    for number in np.unique(index):
        inside = index == number
        values = (1.0, rows.target, 1e4 * rows.outcome)
        sums = np.stack([rows.sum_by_date(inside * value) for value in values], axis=1)
        target = samples.interval(sums, lambda drawn: ratio(drawn[:, 1], drawn[:, 0]))
        outcome = samples.interval(sums, lambda drawn: ratio(drawn[:, 2], drawn[:, 0]))
        mean = float(score[inside].mean())
        deciles.append(Decile(int(inside.sum()), mean, target, outcome))
        error += inside.mean() * abs(mean - target.estimate)
    return Calibration(tuple(deciles), float(error))


@dataclass(frozen=True, slots=True)
class GroupMetrics:
    """Metrics of the rows of one month or hour.

    Attributes:
        name: such as 2024-03 or 08:00.
        rows: number of rows.
        dates: number of trading dates.
        rank_ic: Spearman correlation of forecast and outcome within the group.
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
    """Compute metrics by month of the trading date, in time order; see `group_metrics`."""
    month = net["trading_date"].to_numpy().astype("datetime64[M]").astype(str)
    return group_metrics(net, month, sorted(set(month)), trivial=trivial, draws=draws, block=block)


def by_hour(
    net: pd.DataFrame,
    *,
    trivial: Float[np.ndarray, " rows"],
    draws: int,
    block: float,
    zone: str,
    first_hour: int,
) -> tuple[GroupMetrics, ...]:
    """Compute metrics by hour of the bar's start; see `group_metrics`.

    Args:
        net: labelled rows of the net.
        trivial: constant forecast of each row, in rank units.
        draws: bootstrap samples.
        block: mean length of a bootstrap block, in dates.
        zone: time zone of the exchange.
        first_hour: hour of its clock at which a session starts.
    """
    hours = pd.DatetimeIndex(net["time"]).tz_convert(zone).hour.to_numpy()
    session = [(first_hour + offset) % 24 for offset in range(24)]
    order = [f"{hour:02d}:00" for hour in session if (hours == hour).any()]
    names = np.array([f"{hour:02d}:00" for hour in range(24)])[hours]
    return group_metrics(net, names, order, trivial=trivial, draws=draws, block=block)


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
    """Compute the metrics of each group separately, with its own ranks and its own dates.

    Args:
        net: labelled rows of the net, with time, trading_date, score, target and outcome.
        names: group of each row.
        order: of the groups.
        trivial: constant forecast of each row, in rank units.
        draws: bootstrap samples.
        block: mean length of a bootstrap block, in dates.
        seed: of the bootstrap.
    """

    @cache
    def samples(dates: int) -> DateBootstrap:
        length = max(1.0, min(block, dates / 3))
        return DateBootstrap(date_weights(dates, draws=draws, seed=seed, block=length), length)

    groups = []
    for name in order:
        inside = names == name
        rows = DatedRows.from_frame(net[inside], trivial=trivial[inside])
        sums = rows.sums(net["score"].to_numpy(dtype=np.float64)[inside])
        metrics = [samples(len(sums)).interval(sums, figure) for figure in (rank_ic_of, skill_of)]
        if len(sums) < MIN_DATES:
            metrics = [Interval(metric.estimate, math.nan, math.nan) for metric in metrics]
        groups.append(GroupMetrics(name, int(inside.sum()), len(sums), *metrics))
    return tuple(groups)


def backtest_paths(predictions: pd.DataFrame) -> tuple[GroupMetrics, ...]:
    """Compute the net's metrics on each backtest path; empty unless rows were tested several times.

    A path tests every row once, group by group, each by a fold that did not train on it. Paths
    share rows, outcomes and training data, so they are not independent: the spread over paths
    shows how much the choice of the training rows matters, and is no confidence interval.

    Args:
        predictions: of a run; the column path is there if rows were tested several times.

    Source: Lopez de Prado (2018), Advances in financial machine learning, section 12.4.
    """
    if "path" not in predictions:
        return ()
    labelled = predictions[predictions["outcome"].notna()]
    net = labelled[labelled["model"] == "net"]
    trivial = labelled.loc[labelled["model"] == "constant", "score"].to_numpy(dtype=np.float64)
    paths = []
    for number in np.unique(net["path"]):
        inside = (net["path"] == number).to_numpy()
        rows = DatedRows.from_frame(net[inside], trivial=trivial[inside])
        sums = rows.sums(net["score"].to_numpy(dtype=np.float64)[inside])
        saved = sums[:, COLUMNS.index("trivial")] - sums[:, COLUMNS.index("loss")]
        samples = DateBootstrap.for_series(
            saved, sums[:, COLUMNS.index("xy")], draws=_PATH_DRAWS, seed=0
        )
        metrics = [samples.interval(sums, figure) for figure in (rank_ic_of, skill_of)]
        paths.append(GroupMetrics(f"path {number}", int(inside.sum()), len(sums), *metrics))
    return tuple(paths)


def path_metrics(paths: Sequence[GroupMetrics]) -> dict[str, float]:
    """Flatten the distribution over backtest paths for metrics.json; empty without paths.

    Returns:
        paths/count, and paths/NAME_mean, _std (ddof=1), _min and _max of rank_ic and skill.
    """
    if not paths:
        return {}
    metrics: dict[str, float] = {"paths/count": len(paths)}
    for name in ("rank_ic", "skill"):
        values = np.array([getattr(path, name).estimate for path in paths])
        spread = float(values.std(ddof=1)) if values.size > 1 else math.nan
        metrics |= {f"paths/{name}_mean": float(values.mean()), f"paths/{name}_std": spread}
        ends = {f"paths/{name}_min": values.min(), f"paths/{name}_max": values.max()}
        metrics |= {key: float(value) for key, value in ends.items()}
    return metrics


@dataclass(frozen=True, slots=True)
class Instrument:
    """A futures contract to trade.

    Attributes:
        root: prefix of its contract codes.
        tick: smallest price step, in the price units of the bars; None if unknown.
        half_spread_ticks: cost of crossing the spread per side, in ticks.
        multiplier: value of one price unit per contract, in the currency of the fee; None, as in
            older runs, if unknown.
        fee: commission and exchange fees per contract and side; None if unknown.
    """

    root: str
    tick: float | None
    half_spread_ticks: float
    multiplier: float | None = None
    fee: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError unless tick and multiplier are positive, and no cost is negative."""
        if self.tick is not None and not (self.tick > 0 and math.isfinite(self.tick)):
            raise ConfigError(f"instrument.tick={self.tick} must be a positive price, or null")
        if self.multiplier is not None and not 0 < self.multiplier < math.inf:
            raise ConfigError(f"instrument.multiplier={self.multiplier} must be > 0 and finite")
        for name in ("half_spread_ticks", "fee"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"instrument.{name}={value} must be >= 0 and finite")

    @property
    def round_trip_ticks(self) -> float:
        """Two half-spreads and two fees, in ticks; NaN if tick, multiplier or fee is unknown."""
        if self.tick is None or self.multiplier is None or self.fee is None:
            return math.nan
        return 2 * self.half_spread_ticks + 2 * self.fee / (self.tick * self.multiplier)

    def trades(self, contracts: Iterable[str]) -> bool:
        """Return True if all contracts are this instrument's, so that its tick applies."""
        codes = list(contracts)
        return bool(codes) and all(code.startswith(self.root) for code in codes)


@dataclass(frozen=True, slots=True)
class Edge:
    """Mean outcome of the highest and the lowest decile of the forecast, before costs.

    Attributes:
        top_bp: of the rows with the highest forecasts, in basis points.
        bottom_bp: of the rows with the lowest forecasts.
        trade_bp: of a trade that buys the highest or sells the lowest.
        top_ticks: like top_bp, in ticks; NaN if tick size or price is unknown.
        bottom_ticks: likewise.
        trade_ticks: likewise.
        half_spread_ticks: spread paid per side; NaN if the tick size is unknown.
        half_spread_bp: the same, at the mean price of the traded rows.
        round_trip_ticks: two half-spreads and two fees; NaN if one of them is unknown.
        round_trip_bp: the same, at the mean price of the traded rows.
        trades: number of rows in the two deciles.
        contracts: codes of the traded contracts, to say whose costs are unknown.
    """

    top_bp: Interval
    bottom_bp: Interval
    trade_bp: Interval
    top_ticks: Interval
    bottom_ticks: Interval
    trade_ticks: Interval
    half_spread_ticks: float
    half_spread_bp: float
    round_trip_ticks: float
    round_trip_bp: float
    trades: int
    contracts: tuple[str, ...] = ()

    @property
    def break_even_ticks(self) -> float:
        """Cost per side, in ticks, at which a trade earns nothing; 0 without a positive edge.

        A trade pays it on entry and on exit.
        """
        return max(self.trade_ticks.estimate / 2, 0.0)


def edge(
    rows: DatedRows,
    score: Float[np.ndarray, " rows"],
    samples: DateBootstrap,
    *,
    close: Float[np.ndarray, " rows"] | None,
    instrument: Instrument | None,
    contracts: Sequence[str] = (),
) -> Edge:
    """Compute what the highest and the lowest decile of the forecast earn, with intervals.

    Args:
        rows: of the test span.
        score: forecasts of the net.
        samples: of trading dates.
        close: price at the start of each outcome, in the price units of the bars.
        instrument: provides tick size and costs.
        contracts: codes of the traded contracts.
    """
    decile = decile_index(score)
    top, bottom = decile == BINS - 1, decile == 0
    tick = None if instrument is None or close is None else instrument.tick
    price = np.full(score.size, math.nan) if close is None else close
    ticks = rows.outcome * price / (tick or math.nan)
    values = (1.0, 1e4 * rows.outcome, ticks)
    columns = [rows.sum_by_date(side * value) for side in (top, bottom) for value in values]
    sums = np.stack(columns, axis=1)
    intervals = {}
    for position, unit in enumerate(("bp", "ticks"), start=1):
        for name, statistic in _earnings(position).items():
            intervals[f"{name}_{unit}"] = samples.interval(sums, statistic)
    traded = price[top | bottom]
    mean_price = float(traded.mean()) if traded.size else math.nan
    tick_bp = 1e4 * (tick or math.nan) / mean_price
    known = None if tick is None else instrument
    half_spread, round_trip = (
        (math.nan, math.nan) if known is None else (known.half_spread_ticks, known.round_trip_ticks)
    )
    return Edge(
        **intervals,
        half_spread_ticks=half_spread,
        half_spread_bp=half_spread * tick_bp,
        round_trip_ticks=round_trip,
        round_trip_bp=round_trip * tick_bp,
        trades=int(traded.size),
        contracts=tuple(contracts),
    )


def _earnings(position: int) -> dict[str, Statistic]:
    """Mean earnings of both deciles and of a trade, from sums (count, bp, ticks) of each decile.

    Args:
        position: 1 for basis points, 2 for ticks.
    """

    def trade(sums: DrawnSums) -> Float[np.ndarray, " draws"]:
        return ratio(sums[:, position] - sums[:, 3 + position], sums[:, 0] + sums[:, 3])

    return {
        "top": lambda sums: ratio(sums[:, position], sums[:, 0]),
        "bottom": lambda sums: ratio(sums[:, 3 + position], sums[:, 3]),
        "trade": trade,
    }
