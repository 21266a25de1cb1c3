"""Synthetic one-minute bars that resemble ES futures, with a known predictable part.

Prices move by increments in whole ticks, floor(x + u) with u uniform; rounding the price level
instead would create mean reversion. Volatility is a daily profile times three AR(1) processes with
memories of 30 sessions, 300 and 12 minutes. Shocks are Student-t with jumps and scheduled news. All
distributions are symmetric, so without a signal the sign of a return is unpredictable. A signal
shifts the mean of the next increment by strength * sqrt(sigma^2 + (2 bp)^2) * planted_forecast.
This makes the scale-free forecast the best ranking of the next return in quiet and in volatile
minutes.

Statistics of one-minute returns unless stated otherwise, at 1,073,305 rows: median (min .. max) of
seeds 0 to 4 beside es_1m_12contracts.parquet.

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
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped, UInt64
from scipy.signal import lfilter

from robust_fin.errors import ConfigError
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.schema import PRICES, bar_starts
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
GAIN = 1.0  # strength per unit of rank IC; measured at 500,000 rows
GAIN_SPREAD = 0.1  # relative spread of the gain between seeds
VIX_MEMORY, VIX_PREMIUM = 10.0, 1.2  # sessions; index over realised volatility
MEAN_VARIANCE = 1.1e-4  # of a session's return

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
    """Synthetic bars with their predictable part.

    Attributes:
        bars: time (UTC, start of the bar), open, high, low, close (index points), volume
            (contracts), contract, session ("RTH" or "ETH"), vix (points; the last daily close
            before the bar's trading date).
        oracle: scale-free forecast of the return from close[t] to close[t + 1]; 0 without a signal,
            NaN on the last bar of a contract.
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
    """Generate one-minute bars of a market with a known predictable part.

    This shows how close a net comes to the best possible score. Without a signal, a longer table
    with the same seed starts with the same bars. With a signal this does not hold, because its
    strength is calibrated on all rows.

    Args:
        rows: number of bars, at least 1.
        seed: seed of all random draws, at least 0.
        signal: target rank correlation of the planted forecast with the next return, 0 to 0.3; 0 is
            pure noise.
        start: first trading date, "YYYY-MM-DD"; the next session if it is not a trading date.
        price: price before the first bar, in index points.
        tail_df: degrees of freedom of the Student-t shocks, above 2. 6 resembles ES; with 2.5 the
            excess kurtosis of a million returns is 616 to 9,480, depending on the seed (0 to 7).
        regime_sessions: memory of the slow part of volatility, in sessions, above 0. 30 resembles
            ES, and is as long as many test spans.

    Returns:
        The bars, the oracle's forecast and its measured rank correlation.

    Raises:
        ConfigError: a setting is out of range, or the calendar ends before the last row.
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
    starts = np.flatnonzero(np.diff(grid.session, prepend=-1) + np.diff(contract, prepend=-1))
    walk = functools.partial(
        walk_prices, bar_draws(grid, minutes, random), contract, starts,
        first=round(price / TICK), steps=random["roll"].standard_normal(codes.size),
    )  # fmt: skip
    prices = _calibrated(walk, contract, signal=signal) if signal else walk(strength=0.0)
    oracle = np.where(_has_next(contract), prices.forecast, np.nan)
    bars = _table(prices, grid, minutes, calendar, codes[contract], random["vix"])
    return SyntheticMarket(bars, oracle, _oracle_rank_ic(prices, contract) if signal else math.nan)


def _calibrated(walk: Callable[..., Prices], contract: Ints, *, signal: float) -> Prices:
    """Simulate twice: the second strength is corrected by the first measured rank correlation.

    The correction is shrunk by the sampling noise relative to the spread of the gain between seeds,
    so that a short table is not fitted to its own noise.
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
        (rows >= 1, f"rows is {rows}; it must be >= 1"),
        (seed >= 0, f"seed is {seed}; it must be >= 0"),
        (0 <= signal <= MAX_SIGNAL, f"signal is {signal}; it must be in [0, {MAX_SIGNAL}]"),
        (
            price >= 100 and math.isfinite(price),
            f"price is {price}; it must be >= 100 index points",
        ),
        (
            tail_df > 2 and math.isfinite(tail_df),
            f"tail_df is {tail_df}; it must be > 2 and finite",
        ),
        (
            0 < regime_sessions < math.inf,
            f"regime_sessions is {regime_sessions}; it must be > 0",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise ConfigError(f"synthetic bars: source.synthetic.{message}")


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
    """Compute a volatility index from the sessions before each bar's session, in points."""
    change = np.diff(prices.close, prepend=prices.close[0]) / prices.close
    change[np.flatnonzero(contract[1:] != contract[:-1]) + 1] = 0.0
    day = session - session[0]
    variance = np.bincount(day, weights=change**2)
    fade = math.exp(-1.0 / VIX_MEMORY)
    smooth, _ = lfilter([1.0 - fade], [1.0, -fade], variance, zi=[fade * MEAN_VARIANCE])
    noise = np.exp(0.03 * random.standard_normal(variance.size))
    index = VIX_PREMIUM * 100.0 * np.sqrt(252.0 * smooth) * noise
    before = np.concatenate([[VIX_PREMIUM * 100.0 * math.sqrt(252.0 * MEAN_VARIANCE)], index[:-1]])
    return np.maximum(np.round(before, 2), 5.0)[day]


def _has_next(contract: Ints) -> Bool[np.ndarray, " rows"]:
    return np.append(contract[1:] == contract[:-1], False)


def _oracle_rank_ic(prices: Prices, contract: Ints) -> float:
    at = np.flatnonzero(_has_next(contract))
    return rank_ic(prices.forecast[at], prices.close[at + 1] / prices.close[at] - 1.0)


SPIKED_BARS = "bars spiked on purpose by source.spikes"
_GAMMA = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)  # SplitMix64's increment


@dataclass(frozen=True, slots=True)
class Spikes:
    """Random bad ticks: a share of bars has all four prices multiplied by a factor.

    All prices of a bar are multiplied together, so the bar still passes the schema checks and only
    a comparison with its neighbours reveals it. The choice of bars is a hash of time, contract and
    seed: it does not depend on which part of a file is read, or on the block size.

    Attributes:
        share: expected share of bars, in [0, 1).
        factor: multiplier of open, high, low and close; 10 imitates a misplaced decimal point.
        seed: seed of the choice of bars, at least 0.
    """

    share: float
    factor: float
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        valid_seed = isinstance(self.seed, int) and self.seed >= 0
        rules = (
            (0 <= self.share < 1, f"share={self.share} must be in [0, 1)"),
            (0 < self.factor < math.inf, f"factor={self.factor} must be finite and > 0"),
            (valid_seed, f"seed={self.seed} must be an integer >= 0"),
        )
        for holds, message in rules:
            if not holds:
                raise ConfigError(f"source.spikes.{message}; typical values are 0.001, 10.0 and 0")

    def __str__(self) -> str:
        """Describe the spikes for the name of the data."""
        return f"{100 * self.share:g} % of bars spiked {self.factor:g}-fold"

    def mask(self, bars: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Select the bars to spike.

        Args:
            bars: table with time and contract.
        """
        contract = bars["contract"].cat
        codes = np.array([zlib.crc32(str(code).encode()) for code in contract.categories])
        salt = _splitmix64(_splitmix64(np.array([self.seed], np.uint64)) + codes.astype(np.uint64))
        key = bar_starts(bars).view(np.uint64) ^ salt[contract.codes.to_numpy()]
        return (_splitmix64(key) >> np.uint64(11)) * 2.0**-53 < self.share

    def apply(self, bars: pd.DataFrame) -> tuple[pd.DataFrame, int]:
        """Return the bars with spikes, and the number of spiked bars.

        Args:
            bars: validated table; it is not modified.
        """
        mask = self.mask(bars)
        scale = np.where(mask, self.factor, 1.0)
        spiked: dict[str, Any] = {name: bars[name] * scale for name in PRICES}
        return bars.assign(**spiked), int(mask.sum())


def _splitmix64(key: UInt64[np.ndarray, " keys"]) -> UInt64[np.ndarray, " keys"]:
    """Hash 64-bit keys.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    key = key + _GAMMA
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
