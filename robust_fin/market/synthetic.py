"""ES-like one-minute bars with a KNOWN answer, any number of rows, from a seed.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped
from scipy.signal import lfilter
from scipy.special import ndtri

from robust_fin.errors import ConfigError
from robust_fin.market.calendar import TradingCalendar, chicago_ns
from robust_fin.metrics import rank_ic

TICK = 0.25  # index points
MINUTE_NS = 60_000_000_000
MAX_SIGNAL = 0.3
STEEPNESS = 2.0
TURN = 6e-4  # range, as a fraction of the close, at which bounce turns into follow-through
GAIN = 1.0  # strength that gives a rank IC of 1, extrapolated; measured at 500,000 rows
GAIN_SPREAD = 0.1  # by how much it differs from seed to seed, relative
USUAL_SIGMA = 2e-4  # a minute's standard deviation at night, fraction
FLOOR_TICKS = 40  # no price falls below; far from every path seen
TAIL_DF = 6.0
JUMP_SHARE, JUMP_SIZE = 7e-4, 5.0  # of minutes; in standard deviations of the minute
GAP = 1e-3  # standard deviation over an hour's break, fraction
REACH = 0.26  # mean distance of a high above open and close, in the minute's deviations
VIX_MEMORY, VIX_PREMIUM = 10.0, 1.2  # sessions; index over realised volatility
USUAL_VARIANCE = 1.1e-4  # of a session's return

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
STREAMS = ("slow", "hours", "minutes", "shock", "jump", "news", "gap", "round", "reach", "edge",
           "volume", "keep", "roll", "vix")

Ints = Int[np.ndarray, " rows"]


class SyntheticMarket(NamedTuple):
    """Bars and the answer planted in them.

    Attributes:
        bars: time (UTC, start of the bar), open, high, low, close (index points), volume
            (contracts), contract, session ("RTH" or "ETH"), vix (points; the last daily close
            before the bar's trading date).
        oracle: the planted forecast of the return from close[t] to close[t + 1], free of scale,
            (rows,); 0 without a signal, NaN on the last bar of a contract.
        oracle_rank_ic: Spearman correlation of oracle and realised return; NaN without a signal.
    """

    bars: pd.DataFrame
    oracle: Float[np.ndarray, " rows"]
    oracle_rank_ic: float


class _Grid(NamedTuple):
    start: Int[np.ndarray, " rows"]
    session: Int[np.ndarray, " rows"]
    clock: Int[np.ndarray, " rows"]


class _Minutes(NamedTuple):
    """What a minute draws before any price is known, relative to the price."""

    sigma: Float[np.ndarray, " rows"]
    shock: Float[np.ndarray, " rows"]
    volume: Float[np.ndarray, " rows"]
    keep: Bool[np.ndarray, " rows"]


class _Draws(NamedTuple):
    """What a bar needs to walk on."""

    sigma: Float[np.ndarray, " rows"]
    shock: Float[np.ndarray, " rows"]
    rounding: Float[np.ndarray, " rows"]
    reach: Float[np.ndarray, "rows 2"]
    edge: Float[np.ndarray, "rows 2"]
    step: Int[np.ndarray, " rows"]


class _Prices(NamedTuple):
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


def synthetic_market(
    rows: int,
    *,
    seed: int,
    signal: float = 0.0,
    start: str = "2021-12-14",
    price: float = 4600.0,
) -> SyntheticMarket:
    """Make one-minute bars of a market whose predictable part is known.

    A net can only be judged where the best possible score is known. More rows from the same seed,
    signal, start and price begin with the same bars.

    Args:
        rows: number of bars, at least 1.
        seed: seed of every draw, at least 0.
        signal: rank correlation of the planted forecast with the next return to aim at, 0 to 0.3;
            0 is pure noise.
        start: first trading date, "YYYY-MM-DD", or the next session's where it is none.
        price: price before the first bar, index points.

    Returns:
        The bars, the oracle's forecast and its measured rank correlation.

    Raises:
        ConfigError: a setting lies outside its range, or the calendar ends before the last row.
    """
    _check(rows, seed=seed, signal=signal, price=price)
    calendar = TradingCalendar.named("CME_Equity")
    random = {name: np.random.Generator(np.random.SFC64(child)) for name, child in
              zip(STREAMS, np.random.SeedSequence(seed).spawn(len(STREAMS)), strict=True)}
    grid = _grid(calendar, start=start, rows=rows)
    minutes = _minutes(grid, calendar, random)
    kept = np.flatnonzero(minutes.keep)[:rows]
    grid, minutes = _Grid(*(a[kept] for a in grid)), _Minutes(*(a[kept] for a in minutes))
    codes, contract = _contracts(grid.start)
    begins = np.flatnonzero(np.diff(grid.session, prepend=-1) + np.diff(contract, prepend=-1))
    walk = functools.partial(
        _walk, _draws(grid, minutes, random), contract, begins,
        first=round(price / TICK), steps=random["roll"].standard_normal(codes.size),
    )  # fmt: skip
    prices = _calibrated(walk, contract, signal=signal) if signal else walk(strength=0.0)
    oracle = np.where(_follows(contract), prices.forecast, np.nan)
    bars = _table(prices, grid, minutes, calendar, codes[contract], random["vix"])
    return SyntheticMarket(bars, oracle, _oracle_rank_ic(prices, contract))


def _calibrated(walk: Callable[..., _Prices], contract: Ints, *, signal: float) -> _Prices:
    """Walk twice: with the usual strength, then with the one which the first walk asks for.

    The measured rank correlation is trusted as far as the rows allow, against the spread of the
    gain over seeds, so that a short table is not bent to fit its own noise.
    """
    measured = _oracle_rank_ic(walk(strength=GAIN * signal), contract)
    noise = 1.0 / (signal**2 * contract.size)
    trust = GAIN_SPREAD**2 / (GAIN_SPREAD**2 + noise)
    ratio = measured / signal if math.isfinite(measured) else 1.0
    return walk(strength=GAIN * signal / max(1.0 + trust * (ratio - 1.0), 0.5))


def _check(rows: int, *, seed: int, signal: float, price: float) -> None:
    rules = (
        (rows >= 1, f"rows is {rows}; take 1 or more"),
        (seed >= 0, f"seed is {seed}; take 0 or more"),
        (0 <= signal <= MAX_SIGNAL, f"signal is {signal}; take 0 to {MAX_SIGNAL}"),
        (price >= 100 and math.isfinite(price), f"price is {price}; take 100 index points or more"),
    )
    for holds, words in rules:
        if not holds:
            raise ConfigError(f"synthetic bars: source.synthetic.{words}")


def _grid(calendar: TradingCalendar, *, start: str, rows: int) -> _Grid:
    first = int(np.searchsorted(calendar.date, np.datetime64(start, "s")))
    # 1.5 % of minutes may be absent; 30 more sessions cover short years and small counts
    count = np.cumsum((calendar.close[first:] - calendar.open[first:]) // MINUTE_NS)
    last = first + int(np.searchsorted(count, rows * 1.015)) + 30
    if last > calendar.date.size:
        raise ConfigError(
            f"synthetic bars: {rows} rows from {start} end after the calendar's last date "
            f"{calendar.date[-1].astype('M8[D]')}; take fewer source.synthetic.rows or an earlier "
            "source.synthetic.start"
        )
    opened, closed = calendar.open[first:last], calendar.close[first:last]
    length = (closed - opened) // MINUTE_NS
    session = np.repeat(np.arange(first, last), length)
    offset = np.arange(session.size) - np.repeat(np.cumsum(length) - length, length)
    begin = pd.DatetimeIndex(opened).tz_localize("UTC").tz_convert("America/Chicago")
    clock = (np.repeat((begin.hour * 60 + begin.minute).to_numpy(), length) + offset) % 1440
    return _Grid(np.repeat(opened, length) + offset * MINUTE_NS, session, clock)


def _minutes(
    grid: _Grid, calendar: TradingCalendar, random: dict[str, np.random.Generator]
) -> _Minutes:
    first, sessions = grid.session[0], int(grid.session[-1] - grid.session[0]) + 1
    day = grid.session - first
    slow = _log_volatility(random["slow"], sessions, memory=30.0, spread=0.42)
    hours = _log_volatility(random["hours"], day.size, memory=300.0, spread=0.32)
    minutes = _log_volatility(random["minutes"], day.size, memory=12.0, spread=0.20)
    short = calendar.close[first:first + sessions] - calendar.open[first:first + sessions]
    calm = np.where(short < 1300 * MINUTE_NS, 0.6, 1.0)
    state = np.exp(slow[day] + hours + minutes) * calm[day]
    sigma = 1e-4 * _profile(1)[grid.clock] * state
    shock = sigma * _tails(random, day.size)
    shock += _news(random["news"], grid.clock, day, sessions) * np.exp(0.5 * slow)[day]
    expected = _profile(2)[grid.clock] * state**1.2
    volume = expected * random["volume"].lognormal(-0.125, 0.5, day.size)
    volume *= np.minimum(0.6 + 0.55 * np.abs(shock) / sigma, 6.0)
    keep = random["keep"].random(day.size) >= np.exp(-expected / 7.0)
    return _Minutes(sigma, shock, np.ceil(volume), keep)


def _log_volatility(
    random: np.random.Generator, size: int, *, memory: float, spread: float
) -> Float[np.ndarray, " size"]:
    """Draw a stationary AR(1), bounded, shifted so that the mean variance stays 1."""
    stay = math.exp(-1.0 / memory)
    noise = random.standard_normal(size) * math.sqrt(1.0 - stay**2)
    noise[0] /= math.sqrt(1.0 - stay**2)
    path = np.asarray(lfilter([1.0], [1.0, -stay], noise))
    return np.clip(path, -3.0, 3.0) * spread - spread**2


def _profile(column: int) -> Float[np.ndarray, " minutes"]:
    """Interpolate a column of DAY in logarithms, one entry a minute of the Chicago clock."""
    since = [(_minute(row[0]) - 1020) % 1440 for row in DAY]
    level = np.exp(np.interp(np.arange(1440), since, np.log([row[column] for row in DAY])))
    return np.roll(level, 1020)


def _minute(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def _tails(random: dict[str, np.random.Generator], size: int) -> Float[np.ndarray, " size"]:
    """Draw Student-t shocks of unit variance, with about one jump a day on top."""
    shock = random["shock"].standard_t(TAIL_DF, size) * math.sqrt((TAIL_DF - 2) / TAIL_DF)
    draw = random["jump"].random(size)
    # the uniform that decides on a jump, stretched over its own interval, gives the size too
    at = np.flatnonzero(draw < JUMP_SHARE)
    shock[at] += JUMP_SIZE * ndtri((draw[at] / JUMP_SHARE).clip(1e-9, 1 - 1e-9))
    return shock


def _news(
    random: np.random.Generator, clock: Ints, day: Ints, sessions: int
) -> Float[np.ndarray, " minutes"]:
    """Place the scheduled releases: rare, at fixed times, far larger than an ordinary minute."""
    happens = random.random((sessions, len(NEWS)))
    shock = np.zeros(clock.size)
    for column, (time, share, deviation) in enumerate(NEWS):
        at = np.flatnonzero(clock == _minute(time))
        draw = happens[day[at], column] / share
        sizes = ndtri(np.clip(draw, 1e-9, 1 - 1e-9)) * (draw < 1) * deviation * 1e-4
        shock[at] += sizes
    return shock


def _contracts(start: Ints) -> tuple[Shaped[np.ndarray, " codes"], Ints]:
    """Give each minute its contract; the next one takes over on Monday of the expiry week."""
    span = start[[0, -1]].astype("M8[ns]").astype("M8[Y]").astype("M8[M]")
    month = np.arange(span[0] + 2, span[1] + 20, 3)
    friday = np.busday_offset(month.astype("M8[D]"), 2, roll="forward", weekmask="Fri")
    roll = chicago_ns((friday - 4).astype("M8[s]"), "00:01")
    letter = dict(zip((3, 6, 9, 12), "HMUZ", strict=True))
    codes = [f"ES{letter[m.month]}{m.year % 100:02d}" for m in month.tolist()]
    return np.array(codes), np.searchsorted(roll, start, side="right")


def _draws(
    grid: _Grid, minutes: _Minutes, random: dict[str, np.random.Generator]
) -> _Draws:
    rows = grid.start.size
    shock = minutes.shock.copy()
    opens = np.flatnonzero(np.diff(grid.session, prepend=grid.session[0] - 1))
    shut = np.diff(grid.start[opens], prepend=grid.start[0] - 1440 * MINUTE_NS) / MINUTE_NS
    hours = np.maximum(shut / 60 - 22, 1.0)
    shock[opens] += GAP * hours**0.25 * random["gap"].standard_normal(opens.size)
    reach = random["reach"].standard_exponential((rows, 2)) * REACH
    edge = random["edge"].random((rows, 3))
    step = (edge[:, 2] < 0.22).astype(np.int64) - (edge[:, 2] >= 0.78)
    return _Draws(minutes.sigma, shock, random["round"].random(rows), reach, edge[:, :2], step)


def _walk(
    draws: _Draws,
    contract: Ints,
    begins: Int[np.ndarray, " stretches"],
    *,
    strength: float,
    first: int,
    steps: Float[np.ndarray, " contracts"],
) -> _Prices:
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
        rolled = begin > 0 and contract[begin] != contract[begin - 1]
        if rolled:
            level, carried = _roll(level, first, next(step)), 0.0
        stretch = _Draws(*(entry[at] for entry in draws))
        fresh = rolled or begin == 0
        walked = _stretch(stretch, level, carried, strength=strength, fresh=fresh)
        before[at], above[at], below[at], close[at], forecast[at] = walked
        level, carried = int(close[end - 1]), float(forecast[end - 1])
    return _Prices(before, above, below, close, forecast)


def _stretch(
    draws: _Draws, level: int, carried: float, *, strength: float, fresh: bool
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


def _table(
    prices: _Prices,
    grid: _Grid,
    minutes: _Minutes,
    calendar: TradingCalendar,
    contract: Shaped[np.ndarray, " rows"],
    random: np.random.Generator,
) -> pd.DataFrame:
    regular = (grid.start >= calendar.rth_open[grid.session]) & (
        grid.start < calendar.rth_close[grid.session]
    )
    return pd.DataFrame({
        "time": pd.DatetimeIndex(grid.start.astype("M8[ns]")).tz_localize("UTC"),
        **{name: getattr(prices, name) * TICK for name in ("open", "high", "low", "close")},
        "volume": minutes.volume,
        "contract": contract,
        "session": pd.Series(["ETH", "RTH"], dtype="str").take(regular.astype(int)).to_numpy(),
        "vix": _vix(prices, contract, grid.session, random),
    })


def _vix(
    prices: _Prices,
    contract: Shaped[np.ndarray, " rows"],
    session: Ints,
    random: np.random.Generator,
) -> Float[np.ndarray, " rows"]:
    """Quote a volatility index of the sessions before each bar's own, in points."""
    change = np.diff(prices.close, prepend=prices.close[0]) / prices.close
    change[np.flatnonzero(contract[1:] != contract[:-1]) + 1] = 0.0
    day = session - session[0]
    variance = np.bincount(day, weights=change**2)
    fade = math.exp(-1.0 / VIX_MEMORY)
    smooth, _ = lfilter([1.0 - fade], [1.0, -fade], variance, zi=[fade * USUAL_VARIANCE])
    noise = np.exp(0.03 * random.standard_normal(variance.size))
    index = VIX_PREMIUM * 100.0 * np.sqrt(252.0 * smooth) * noise
    before = np.concatenate([[VIX_PREMIUM * 100.0 * math.sqrt(252.0 * USUAL_VARIANCE)], index[:-1]])
    return np.maximum(np.round(before, 2), 5.0)[day]


def _follows(contract: Ints) -> Bool[np.ndarray, " rows"]:
    return np.append(contract[1:] == contract[:-1], False)


def _oracle_rank_ic(prices: _Prices, contract: Ints) -> float:
    at = np.flatnonzero(_follows(contract))
    return rank_ic(prices.forecast[at], prices.close[at + 1] / prices.close[at] - 1.0)
