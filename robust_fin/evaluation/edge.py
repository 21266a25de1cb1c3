"""What forecasts are worth beside the cost of acting on them; not a backtest."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from robust_fin.errors import ConfigError
from robust_fin.evaluation.bootstrap import DateDraws, Interval, Statistic
from robust_fin.evaluation.calibration import BINS, decile_of
from robust_fin.evaluation.date_sums import DatedRows, ratio

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
    samples: DateDraws,
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
    decile = decile_of(score)
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
