"""ES-like one-minute bars with a KNOWN answer, any number of rows, from a seed.

A price moves by increments drawn in whole ticks, floor(x + u) with u uniform; rounding the level
would plant reversal. Volatility is a daily profile times three AR(1) of 30 sessions, 300 and 12
minutes; shocks are Student-t with jumps and scheduled news. All of it is symmetric, so without a
signal no sign can be foretold. With one, the mean of the next increment is moved by
strength * sqrt(sigma^2 + (2 bp)^2) * planted_forecast: that makes the forecast itself, free of
scale, the best ranking of the next return, whether the minute is quiet or rough.

At 1,073,305 rows, returns over one minute where not said otherwise, median (least .. most) of
seeds 0 to 4 beside es_1m_12contracts.parquet:

| statistic | real | synthetic |
|---|---|---|
| excess kurtosis | 154 | 167 (135 .. 256) |
| excess kurtosis RTH / ETH | 14 / 638 | 21 / 708 |
| zero returns, % | 16.9 | 16.9 (14.5 .. 21.5) |
| autocorrelation of absolute returns, lag 1 | 0.38 | 0.30 (0.28 .. 0.31) |
| the same, lag 60 | 0.27 | 0.23 (0.21 .. 0.24) |
| standard deviation RTH, bp | 4.31 | 4.40 (4.12 .. 4.76) |
| standard deviation ETH, bp | 2.14 | 2.16 (2.01 .. 2.24) |
| mean volume RTH | 3,198 | 3,254 (2,888 .. 3,454) |
| mean volume ETH | 314 | 324 (285 .. 338) |
| minutes absent, % | 0.14 | 0.09 (0.05 .. 0.13) |
| mean size of a roll jump, % | 0.82 | 0.72 (0.56 .. 0.93) |
| mean range, ticks | 5.8 | 6.0 (4.5 .. 7.3) |
| bars without a range, % | 1.7 | 4.1 (3.1 .. 6.1) |
| mean VIX | 19.4 | 20.1 (18.5 .. 21.2) |
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped
from scipy.signal import lfilter

from robust_fin.errors import ConfigError
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.synthetic_path import (
    REGIME_SESSIONS,
    TAIL_DF,
    Ints,
    MinuteGrid,
    Minutes,
    Prices,
    bar_draws,
    contract_codes,
    draw_minutes,
    minute_grid,
    planted_forecast,
    walk_prices,
)
from robust_fin.metrics import rank_ic

TICK = 0.25  # index points
MAX_SIGNAL = 0.3
GAIN = 1.0  # strength that gives a rank IC of 1, extrapolated; measured at 500,000 rows
GAIN_SPREAD = 0.1  # by how much it differs from seed to seed, relative
VIX_MEMORY, VIX_PREMIUM = 10.0, 1.2  # sessions; index over realised volatility
USUAL_VARIANCE = 1.1e-4  # of a session's return

STREAMS = (
    "slow",
    "hours",
    "minutes",
    "shock",
    "jump",
    "news",
    "gap",
    "round",
    "reach",
    "edge",
    "volume",
    "keep",
    "roll",
    "vix",
)

__all__ = ["SyntheticMarket", "planted_forecast", "synthetic_market"]


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


def synthetic_market(
    rows: int,
    *,
    seed: int,
    signal: float = 0.0,
    start: str = "2021-12-14",
    price: float = 4600.0,
    tail_df: float = TAIL_DF,
    regime_sessions: float = REGIME_SESSIONS,
) -> SyntheticMarket:
    """Make one-minute bars of a market whose predictable part is known.

    A net can only be judged where the best possible score is known. Without a signal, more rows
    from the same seed begin with the same bars; with one, its strength is measured on all rows.

    Args:
        rows: number of bars, at least 1.
        seed: seed of every draw, at least 0.
        signal: rank correlation of the planted forecast with the next return to aim at, 0 to 0.3;
            0 is pure noise.
        start: first trading date, "YYYY-MM-DD", or the next session's where it is none.
        price: price before the first bar, index points.
        tail_df: degrees of freedom of the Student-t shocks, above 2: 6 is like ES; with 2.5 the
            excess kurtosis of a million returns is 616 to 9,480, by seed (0 to 7).
        regime_sessions: memory of the slow part of volatility, in sessions, above 0: 30 is like ES,
            and as long as many a test span.

    Returns:
        The bars, the oracle's forecast and its measured rank correlation.

    Raises:
        ConfigError: a setting lies outside its range, or the calendar ends before the last row.
    """
    _check(
        rows,
        seed=seed,
        signal=signal,
        price=price,
        tail_df=tail_df,
        regime_sessions=regime_sessions,
    )
    calendar = TradingCalendar.named("CME_Equity")
    random = {
        name: np.random.Generator(np.random.SFC64(child))
        for name, child in zip(
            STREAMS, np.random.SeedSequence(seed).spawn(len(STREAMS)), strict=True
        )
    }
    grid = minute_grid(calendar, start=start, rows=rows)
    minutes = draw_minutes(grid, calendar, random, tail_df=tail_df, regime_sessions=regime_sessions)
    kept = np.flatnonzero(minutes.keep)[:rows]
    grid, minutes = MinuteGrid(*(a[kept] for a in grid)), Minutes(*(a[kept] for a in minutes))
    codes, contract = contract_codes(grid.start)
    begins = np.flatnonzero(np.diff(grid.session, prepend=-1) + np.diff(contract, prepend=-1))
    walk = functools.partial(
        walk_prices, bar_draws(grid, minutes, random), contract, begins,
        first=round(price / TICK), steps=random["roll"].standard_normal(codes.size),
    )  # fmt: skip
    prices = _calibrated(walk, contract, signal=signal) if signal else walk(strength=0.0)
    oracle = np.where(_follows(contract), prices.forecast, np.nan)
    bars = _table(prices, grid, minutes, calendar, codes[contract], random["vix"])
    return SyntheticMarket(bars, oracle, _oracle_rank_ic(prices, contract) if signal else math.nan)


def _calibrated(walk: Callable[..., Prices], contract: Ints, *, signal: float) -> Prices:
    """Walk twice: with the usual strength, then with the one which the first walk asks for.

    The measured rank correlation is trusted as far as the rows allow, against the spread of the
    gain over seeds, so that a short table is not bent to fit its own noise.
    """
    measured = _oracle_rank_ic(walk(strength=GAIN * signal), contract)
    noise = 1.0 / (signal**2 * contract.size)
    trust = GAIN_SPREAD**2 / (GAIN_SPREAD**2 + noise)
    ratio = measured / signal if math.isfinite(measured) else 1.0
    return walk(strength=GAIN * signal / max(1.0 + trust * (ratio - 1.0), 0.5))


def _check(
    rows: int, *, seed: int, signal: float, price: float, tail_df: float, regime_sessions: float
) -> None:
    rules = (
        (rows >= 1, f"rows is {rows}; take 1 or more"),
        (seed >= 0, f"seed is {seed}; take 0 or more"),
        (0 <= signal <= MAX_SIGNAL, f"signal is {signal}; take 0 to {MAX_SIGNAL}"),
        (price >= 100 and math.isfinite(price), f"price is {price}; take 100 index points or more"),
        (tail_df > 2 and math.isfinite(tail_df), f"tail_df is {tail_df}; take a number above 2"),
        (
            0 < regime_sessions < math.inf,
            f"regime_sessions is {regime_sessions}; take a number above 0",
        ),
    )
    for holds, words in rules:
        if not holds:
            raise ConfigError(f"synthetic bars: source.synthetic.{words}")


def _table(
    prices: Prices,
    grid: MinuteGrid,
    minutes: Minutes,
    calendar: TradingCalendar,
    contract: Shaped[np.ndarray, " rows"],
    random: np.random.Generator,
) -> pd.DataFrame:
    regular = (grid.start >= calendar.rth_open[grid.session]) & (
        grid.start < calendar.rth_close[grid.session]
    )
    return pd.DataFrame(
        {
            "time": pd.DatetimeIndex(grid.start.astype("M8[ns]")).tz_localize("UTC"),
            **{name: getattr(prices, name) * TICK for name in ("open", "high", "low", "close")},
            "volume": minutes.volume,
            "contract": contract,
            "session": pd.Series(["ETH", "RTH"], dtype="str").take(regular.astype(int)).to_numpy(),
            "vix": _vix(prices, contract, grid.session, random),
        }
    )


def _vix(
    prices: Prices,
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


def _oracle_rank_ic(prices: Prices, contract: Ints) -> float:
    at = np.flatnonzero(_follows(contract))
    return rank_ic(prices.forecast[at], prices.close[at + 1] / prices.close[at] - 1.0)
