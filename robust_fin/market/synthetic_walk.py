"""The path of a synthetic price, in whole ticks, with or without a planted forecast.

A price moves by increments floor(x + u) with u uniform: right in the mean whatever x is, where
rounding the level would plant reversal.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from robust_fin.market.synthetic_minutes import MINUTE_NS, Grid, Ints, Minutes

STEEPNESS = 2.0
TURN = 6e-4  # range, as a fraction of the close, at which bounce turns into follow-through
USUAL_SIGMA = 2e-4  # a minute's standard deviation at night, fraction
FLOOR_TICKS = 40  # no price falls below; far from every path seen
GAP = 1e-3  # standard deviation over an hour's break, fraction
REACH = 0.3  # mean distance of a high above open and close, in the minute's deviations


class Draws(NamedTuple):
    """What a bar needs to walk on."""

    sigma: Float[np.ndarray, " rows"]
    shock: Float[np.ndarray, " rows"]
    rounding: Float[np.ndarray, " rows"]
    reach: Float[np.ndarray, "rows 2"]
    edge: Float[np.ndarray, "rows 2"]
    step: Int[np.ndarray, " rows"]


class Prices(NamedTuple):
    """Prices in whole ticks, and the forecast made at each bar."""

    open: Int[np.ndarray, " rows"]
    high: Int[np.ndarray, " rows"]
    low: Int[np.ndarray, " rows"]
    close: Int[np.ndarray, " rows"]
    forecast: Float[np.ndarray, " rows"]


def planted_forecast(
    close_change_pct: Float[np.ndarray, " rows"], price_range: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Forecast the next return from two registered features of the bar.

    Moves of quiet bars bounce, moves of wide bars run on: the sign turns with the range, so
    neither feature alone, nor any line through both, says what there is to know.

    Args:
        close_change_pct: close[t] / close[t - 1] - 1 within the contract, fraction; NaN on the
            contract's first bar.
        price_range: (high - low) / close, fraction.

    Returns:
        -tanh(2 * close_change_pct / price_range) * tanh(2 - 2 * price_range / 0.0006), in
        (-1, 1); 0 where the range is 0 or the change is undefined.
    """
    quiet = np.tanh(STEEPNESS * (1.0 - price_range / TURN))
    with np.errstate(divide="ignore", invalid="ignore"):
        forecast = -np.tanh(STEEPNESS * close_change_pct / price_range) * quiet
    return np.where((price_range > 0) & np.isfinite(close_change_pct), forecast, 0.0)


def draws_of(grid: Grid, minutes: Minutes, random: dict[str, np.random.Generator]) -> Draws:
    """Add the gaps over breaks, and draw what turns shocks into whole ticks and highs and lows."""
    rows = grid.start.size
    shock = minutes.shock.copy()
    opens = np.flatnonzero(np.diff(grid.session, prepend=grid.session[0] - 1))
    shut = np.diff(grid.start[opens], prepend=grid.start[0] - 1440 * MINUTE_NS) / MINUTE_NS
    hours = np.maximum(shut / 60 - 22, 1.0)
    shock[opens] += GAP * hours**0.25 * random["gap"].standard_normal(opens.size)
    reach = random["reach"].standard_exponential((rows, 2)) * REACH
    edge = random["edge"].random((rows, 3))
    step = (edge[:, 2] < 0.22).astype(np.int64) - (edge[:, 2] >= 0.78)
    return Draws(minutes.sigma, shock, random["round"].random(rows), reach, edge[:, :2], step)


def walk_prices(
    draws: Draws,
    contract: Ints,
    begins: Int[np.ndarray, " stretches"],
    *,
    strength: float,
    first: int,
    steps: Float[np.ndarray, " contracts"],
) -> Prices:
    """Walk the price on, one session of one contract at a time.

    The scale is the price before the stretch, so that within it nothing but the planted forecast
    depends on what came before.
    """
    close = np.empty(contract.size, dtype=np.int64)
    before, above, below = (np.empty_like(close) for _ in range(3))
    forecast = np.zeros(contract.size)
    level, carried, step = first, 0.0, iter(steps.tolist())
    for begin, end in itertools.pairwise([*begins.tolist(), contract.size]):
        at = slice(begin, end)
        rolled = begin > 0 and bool(contract[begin] != contract[begin - 1])
        if rolled:
            level, carried = _roll(level, first, next(step)), 0.0
        stretch = Draws(*(entry[at] for entry in draws))
        fresh = rolled or begin == 0
        walked = walk_stretch(stretch, level, carried, strength=strength, fresh=fresh)
        before[at], above[at], below[at], close[at], forecast[at] = walked
        level, carried = int(close[end - 1]), float(forecast[end - 1])
    return Prices(before, above, below, close, forecast)


def walk_stretch(
    draws: Draws, level: int, carried: float, *, strength: float, fresh: bool
) -> tuple[np.ndarray, ...]:
    """Walk through one stretch; with a signal, repeat until no bar moves any more.

    The forecast at a bar depends on bars up to it and moves the next one only, so each repetition
    settles at least one more bar, and the fixed point is what a walk bar by bar would give.
    """
    scale = draws.sigma * level
    pull = np.hypot(draws.sigma, USUAL_SIGMA) * level
    steady = draws.shock * level + draws.rounding
    reach = np.floor(draws.reach * scale[:, None] + draws.edge).astype(np.int64)
    forecast, close = np.zeros(scale.size), None
    while True:
        drift = strength * pull * np.concatenate([[carried], forecast[:-1]])
        settled = close
        path = level + np.cumsum(np.floor(steady + drift).astype(np.int64))
        close = np.maximum(path, FLOOR_TICKS)
        before = np.concatenate([[level], close[:-1]])
        opened = before + draws.step
        high = np.maximum(opened, close) + reach[:, 0]
        low = np.maximum(np.minimum(opened, close) - reach[:, 1], 1)
        if strength == 0 or (settled is not None and np.array_equal(close, settled)):
            break
        forecast = _forecast(before, high, low, close, fresh=fresh)
    return opened, high, low, close, forecast


def _forecast(
    before: Ints, high: Ints, low: Ints, close: Ints, *, fresh: bool
) -> Float[np.ndarray, " minutes"]:
    change = close / before - 1.0
    if fresh:
        change[0] = np.nan
    return planted_forecast(change, (high - low) / close)


def _roll(level: int, first: int, draw: float) -> int:
    """Step to the next contract's price.

    The step leans towards the starting price, so that thirty years of a martingale do not end at
    a price of a few ticks; no return, feature or target sees it.
    """
    step = 0.008 - 0.01 * math.log(level / first) + 0.004 * draw
    return round(level * (1.0 + min(max(step, -0.0125), 0.0125)))
