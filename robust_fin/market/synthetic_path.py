"""Trading minutes and simulated price path of a synthetic market, in whole ticks."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped
from scipy.signal import lfilter
from scipy.special import ndtri

from robust_fin.errors import ConfigError
from robust_fin.market.calendar import TradingCalendar, chicago_ns

MINUTE_NS = 60_000_000_000
TAIL_DF = 6.0
REGIME_SESSIONS = 30.0  # memory of the slow part of volatility
JUMP_SHARE, JUMP_SIZE = 7e-4, 5.0  # of minutes; in standard deviations of the minute

# Chicago clock, standard deviation of a minute's return in basis points, mean volume
DAY = (
    ("17:00", 2.0, 260), ("17:30", 1.5, 125), ("19:00", 1.8, 205), ("21:00", 1.4, 140),
    ("23:30", 1.1, 92), ("00:30", 1.4, 135), ("01:15", 1.8, 210), ("02:15", 2.6, 420),
    ("04:00", 1.95, 300), ("06:00", 2.0, 360), ("07:29", 2.4, 620), ("07:32", 3.3, 1300),
    ("08:29", 2.7, 1300), ("08:30", 6.4, 6600), ("09:00", 5.5, 5300), ("10:00", 4.2, 3400),
    ("11:45", 3.35, 2150), ("13:00", 3.8, 2550), ("14:30", 4.2, 3800), ("14:59", 5.3, 10000),
    ("15:00", 3.1, 3900), ("15:20", 2.1, 800), ("15:59", 1.45, 380),
)  # fmt: skip
# Chicago clock of scheduled news, share of trading dates, standard deviation in basis points
NEWS = (("07:30", 0.30, 12.0), ("07:30", 0.10, 84.0), ("09:00", 0.15, 12.0), ("13:00", 0.03, 30.0))

Ints = Int[np.ndarray, " rows"]


class MinuteGrid(NamedTuple):
    """Minutes in which the market is open.

    Attributes:
        start: UTC nanoseconds since 1970.
        session: position of the session in the calendar.
        clock: minute of the day in Chicago.
    """

    start: Int[np.ndarray, " rows"]
    session: Int[np.ndarray, " rows"]
    clock: Int[np.ndarray, " rows"]


class Minutes(NamedTuple):
    """Random draws of each minute that do not depend on the price.

    Attributes:
        sigma: standard deviation of the return, fraction.
        shock: the return without its planted part, fraction.
        volume: contracts.
        keep: True if there is trading in the minute.
    """

    sigma: Float[np.ndarray, " rows"]
    shock: Float[np.ndarray, " rows"]
    volume: Float[np.ndarray, " rows"]
    keep: Bool[np.ndarray, " rows"]


def minute_grid(calendar: TradingCalendar, *, start: str, rows: int) -> MinuteGrid:
    """List the minutes of the sessions from a date on, slightly more than `rows`.

    Raises:
        ConfigError: `start` is not a date, or the calendar ends before the last row.
    """
    try:
        first = int(np.searchsorted(calendar.date, np.datetime64(start, "s")))
    except ValueError as error:
        raise ConfigError(
            f"synthetic bars: source.synthetic.start is {start!r}; it must be a date, YYYY-MM-DD"
        ) from error
    # up to 1.5 % of the minutes have no trades; 30 extra sessions cover small tables
    count = np.cumsum((calendar.close[first:] - calendar.open[first:]) // MINUTE_NS)
    last = first + int(np.searchsorted(count, rows * 1.015)) + 30
    if last > calendar.date.size:
        raise ConfigError(
            f"synthetic bars: {rows} rows from {start} extend beyond the calendar's last date "
            f"{calendar.date[-1].astype('M8[D]')}; use fewer source.synthetic.rows or an earlier "
            "source.synthetic.start"
        )
    opened, closed = calendar.open[first:last], calendar.close[first:last]
    length = (closed - opened) // MINUTE_NS
    session = np.repeat(np.arange(first, last), length)
    offset = np.arange(session.size) - np.repeat(np.cumsum(length) - length, length)
    local = pd.DatetimeIndex(opened).tz_localize("UTC").tz_convert("America/Chicago")
    clock = (np.repeat((local.hour * 60 + local.minute).to_numpy(), length) + offset) % 1440
    return MinuteGrid(np.repeat(opened, length) + offset * MINUTE_NS, session, clock)


def draw_minutes(
    grid: MinuteGrid,
    calendar: TradingCalendar,
    random: dict[str, np.random.Generator],
    *,
    tail_df: float = TAIL_DF,
    regime_sessions: float = REGIME_SESSIONS,
) -> Minutes:
    """Draw volatility, shock, volume and presence of every minute, each from a separate generator.

    Args:
        grid: the minutes.
        calendar: calendar of the sessions.
        random: generators by name.
        tail_df: degrees of freedom of the Student-t shocks, above 2.
        regime_sessions: memory of the slow part of volatility, in sessions, above 0.
    """
    first, sessions = grid.session[0], int(grid.session[-1] - grid.session[0]) + 1
    day = grid.session - first
    slow = _log_volatility(random["slow"], sessions, memory=regime_sessions, spread=0.42)
    hours = _log_volatility(random["hours"], day.size, memory=300.0, spread=0.32)
    minutes = _log_volatility(random["minutes"], day.size, memory=12.0, spread=0.20)
    short = calendar.close[first : first + sessions] - calendar.open[first : first + sessions]
    calm = np.where(short < 1300 * MINUTE_NS, 0.6, 1.0)
    state = np.exp(slow[day] + hours + minutes) * calm[day]
    sigma = 1e-4 * _profile(1)[grid.clock] * state
    shock = sigma * _tails(random, day.size, df=tail_df)
    shock += _news(random["news"], grid.clock, day, sessions) * np.exp(0.5 * slow)[day]
    expected = _profile(2)[grid.clock] * state**1.2
    volume = expected * random["volume"].lognormal(-0.125, 0.5, day.size)
    volume *= np.minimum(0.6 + 0.55 * np.abs(shock) / sigma, 6.0)
    keep = random["keep"].random(day.size) >= np.exp(-expected / 7.0)
    return Minutes(sigma, shock, np.ceil(volume), keep)


def _log_volatility(
    random: np.random.Generator, size: int, *, memory: float, spread: float
) -> Float[np.ndarray, " size"]:
    """Draw a bounded stationary AR(1), shifted so that the mean variance is 1."""
    stay = math.exp(-1.0 / memory)
    noise = random.standard_normal(size) * math.sqrt(1.0 - stay**2)
    noise[0] /= math.sqrt(1.0 - stay**2)
    path = np.asarray(lfilter([1.0], [1.0, -stay], noise))
    return np.clip(path, -3.0, 3.0) * spread - spread**2


def _profile(column: int) -> Float[np.ndarray, " minutes"]:
    """Interpolate a column of DAY in logarithms, one entry per minute of the Chicago day."""
    since = [(_minute(row[0]) - 1020) % 1440 for row in DAY]
    level = np.exp(np.interp(np.arange(1440), since, np.log([row[column] for row in DAY])))
    return np.roll(level, 1020)


def _minute(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def _tails(
    random: dict[str, np.random.Generator], size: int, *, df: float
) -> Float[np.ndarray, " size"]:
    """Draw Student-t shocks of unit variance, plus about one jump a day."""
    shock = random["shock"].standard_t(df, size) * math.sqrt((df - 2) / df)
    draw = random["jump"].random(size)
    # the uniform that decides on a jump is rescaled to [0, 1) and also gives the size
    at = np.flatnonzero(draw < JUMP_SHARE)
    shock[at] += JUMP_SIZE * ndtri((draw[at] / JUMP_SHARE).clip(1e-9, 1 - 1e-9))
    return shock


def _news(
    random: np.random.Generator, clock: Ints, day: Ints, sessions: int
) -> Float[np.ndarray, " minutes"]:
    """Draw scheduled news: rare, at fixed times, far larger than ordinary shocks."""
    happens = random.random((sessions, len(NEWS)))
    shock = np.zeros(clock.size)
    for column, (time, share, deviation) in enumerate(NEWS):
        at = np.flatnonzero(clock == _minute(time))
        draw = happens[day[at], column] / share
        sizes = ndtri(np.clip(draw, 1e-9, 1 - 1e-9)) * (draw < 1) * deviation * 1e-4
        shock[at] += sizes
    return shock


def contract_codes(start: Ints) -> tuple[Shaped[np.ndarray, " codes"], Ints]:
    """Assign a contract to each minute; rolls are on the Monday of the expiry week."""
    span = start[[0, -1]].astype("M8[ns]").astype("M8[Y]").astype("M8[M]")
    month = np.arange(span[0] + 2, span[1] + 20, 3)
    friday = np.busday_offset(month.astype("M8[D]"), 2, roll="forward", weekmask="Fri")
    roll = chicago_ns((friday - 4).astype("M8[s]"), "00:01")
    letter = dict(zip((3, 6, 9, 12), "HMUZ", strict=True))
    codes = [f"ES{letter[m.month]}{m.year % 100:02d}" for m in month.tolist()]
    return np.array(codes), np.searchsorted(roll, start, side="right")


STEEPNESS = 2.0
TURN = 6e-4  # range as a fraction of the close; reversal below, momentum above
NIGHT_SIGMA = 2e-4  # a minute's standard deviation at night, fraction
FLOOR_TICKS = 40  # lower bound of prices; not reached in practice
GAP = 1e-3  # standard deviation over a break of an hour, fraction
REACH = 0.3  # mean distance of the high above open and close, in standard deviations


class Draws(NamedTuple):
    """Random draws of each bar for the price path."""

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

    Moves of narrow bars reverse and moves of wide bars continue: the sign depends on the range, so
    neither feature alone nor a linear model of both captures the signal.

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


def bar_draws(grid: MinuteGrid, minutes: Minutes, random: dict[str, np.random.Generator]) -> Draws:
    """Add gaps over breaks, and draw rounding, highs and lows."""
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
    starts: Int[np.ndarray, " stretches"],
    *,
    strength: float,
    first: int,
    steps: Float[np.ndarray, " contracts"],
) -> Prices:
    """Simulate the price path, one session of one contract at a time.

    Increments scale with the price before the stretch, so that within it only the planted forecast
    depends on earlier bars.
    """
    close = np.empty(contract.size, dtype=np.int64)
    before, above, below = (np.empty_like(close) for _ in range(3))
    forecast = np.zeros(contract.size)
    level, carried, step = first, 0.0, iter(steps.tolist())
    for start, end in itertools.pairwise([*starts.tolist(), contract.size]):
        at = slice(start, end)
        rolled = start > 0 and bool(contract[start] != contract[start - 1])
        if rolled:
            level, carried = _roll(level, first, next(step)), 0.0
        stretch = Draws(*(entry[at] for entry in draws))
        fresh = rolled or start == 0
        walked = walk_stretch(stretch, level, carried, strength=strength, fresh=fresh)
        before[at], above[at], below[at], close[at], forecast[at] = walked
        level, carried = int(close[end - 1]), float(forecast[end - 1])
    return Prices(before, above, below, close, forecast)


def walk_stretch(
    draws: Draws, level: int, carried: float, *, strength: float, fresh: bool
) -> tuple[np.ndarray, ...]:
    """Simulate a stretch; with a signal, iterate to the fixed point.

    The forecast at a bar depends on bars up to it and affects only the next bar. So each iteration
    settles at least one more bar, and the fixed point equals a simulation bar by bar.
    """
    scale = draws.sigma * level
    pull = np.hypot(draws.sigma, NIGHT_SIGMA) * level
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
    """Return the next contract's price.

    The step reverts to the starting price, so that thirty years of a martingale do not end at a
    price of a few ticks. Returns, features and targets do not contain this step.
    """
    step = 0.008 - 0.01 * math.log(level / first) + 0.004 * draw
    return round(level * (1.0 + min(max(step, -0.0125), 0.0125)))
