"""Typical leaks, under names that do not reveal them; importing this registers none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from robust_fin.data.splits import Fold, Holdout, LabelledRows
from robust_fin.data.targets import ForwardReturn, Labels
from robust_fin.features.registry import BARS, FEATURES, SESSION, TRADING_DATES, Lookback, feature

CHUNK = 1500


def relative_level(bars: pd.DataFrame) -> pd.Series:
    """Global rank."""
    return bars["close"].rank(pct=True)


def scaled_range(bars: pd.DataFrame) -> pd.Series:
    """Global scaler."""
    width = (bars["high"] - bars["low"]) / bars["close"]
    return (width - width.mean()) / width.std()


def smooth_return(bars: pd.DataFrame) -> pd.Series:
    """Centred rolling window of 11 bars."""
    return bars["close"].pct_change().rolling(11, center=True).mean()


def steady_volatility(bars: pd.DataFrame) -> pd.Series:
    """Backfill of the first hour, which has no volatility yet."""
    return bars["close"].pct_change().rolling(60).std().bfill()


def step_return(bars: pd.DataFrame) -> pd.Series:
    """Return of the next bar, by shift(-1)."""
    return bars["close"].shift(-1) / bars["close"] - 1


def fear_level(bars: pd.DataFrame) -> pd.Series:
    """Same-day VIX close, which the source joins to the bars of the next trading date."""
    closes = bars.groupby("trading_day")["vix"].last()
    return bars["trading_day"].map(closes.shift(-1))


def day_price_gap(bars: pd.DataFrame) -> pd.Series:
    """Whole-day VWAP."""
    typical = (bars["high"] + bars["low"] + bars["close"]) / 3
    day = bars["trading_day"].to_numpy()
    value = (typical * bars["volume"]).groupby(day).transform("sum")
    return value / bars["volume"].groupby(day).transform("sum") / bars["close"] - 1


def volume_weight(bars: pd.DataFrame) -> pd.Series:
    """Whole-day volume share."""
    return bars["volume"] / bars.groupby("trading_day")["volume"].transform("sum")


def room_above(bars: pd.DataFrame) -> pd.Series:
    """Future session high."""
    ahead = bars["high"][::-1].groupby(bars["trading_day"][::-1]).cummax()[::-1]
    return ahead / bars["close"] - 1


def slow_momentum(bars: pd.DataFrame) -> pd.Series:
    """Chunk restart: the mean restarts every 1,500 rows of the given table."""
    chunk = np.arange(len(bars)) // CHUNK
    mean = bars["close"].groupby(chunk).transform(lambda part: part.rolling(30).mean())
    return bars["close"] / mean - 1


def minutes_to_close(bars: pd.DataFrame) -> pd.Series:
    """Count of the remaining bars of the day; it reads no price."""
    day = bars["trading_day"].to_numpy()
    left = np.append(np.flatnonzero(np.diff(day)), len(bars) - 1)
    return pd.Series(left[np.searchsorted(left, np.arange(len(bars)))] - np.arange(len(bars)))


def shy_volume(bars: pd.DataFrame) -> pd.Series:
    """Backfill of single missing values, about one in 400."""
    ticks = np.round(bars["close"] * 4)
    return bars["volume"].where(ticks % 401 != 0).bfill(limit=1)


NONE, HOUR, DAY = Lookback(0, BARS), Lookback(60, BARS), Lookback(1, TRADING_DATES)
LOOKBACKS: dict[Callable[[pd.DataFrame], pd.Series], Lookback] = {
    relative_level: NONE,
    scaled_range: NONE,
    smooth_return: Lookback(6, BARS),
    steady_volatility: HOUR,
    step_return: NONE,
    fear_level: NONE,
    day_price_gap: Lookback(0, SESSION),
    volume_weight: Lookback(0, SESSION),
    room_above: Lookback(0, SESSION),
    slow_momentum: Lookback(29, BARS),
}


@contextmanager
def registry() -> Iterator[None]:
    """Restore the feature registry on exit."""
    kept = dict(FEATURES)
    try:
        yield
    finally:
        FEATURES.clear()
        FEATURES.update(kept)


def plant(*functions: Callable[[pd.DataFrame], pd.Series]) -> list[str]:
    """Register the given leaky features, by default all of `LOOKBACKS`; return their names."""
    functions = functions or tuple(LOOKBACKS)
    for fn in functions:
        feature(lookback=LOOKBACKS.get(fn, NONE), unit="any")(fn)
    return [fn.__name__ for fn in functions]


@dataclass(frozen=True, slots=True)
class PlainHoldout(Holdout):
    """Unpurged split: train ends where val starts, whatever its labels need."""

    def each_fold(self, rows: LabelledRows) -> Iterator[Fold]:
        """Cut three consecutive spans."""
        numbers, size = np.arange(rows.time.size), rows.time.size
        val = round(size * (1 - self.val_fraction - self.test_fraction))
        test = round(size * (1 - self.test_fraction))
        yield Fold(numbers[:val], numbers[val:test], numbers[test:], {})


@dataclass(frozen=True, slots=True)
class LongReturn(ForwardReturn):
    """Label across the roll: the next bars of the table, whatever their contract."""

    def label(self, bars: pd.DataFrame, *, bar: pd.Timedelta) -> Labels:
        """Label all bars as a single contract."""
        codes = pd.Categorical.from_codes(np.zeros(len(bars), dtype=np.int8), ["ONE"])
        # zero-argument super() does not work in a dataclass with slots
        return ForwardReturn.label(self, bars.assign(contract=codes), bar=bar)


@dataclass(frozen=True, slots=True)
class LateReturn(ForwardReturn):
    """A label_end that is too early: that of horizon 1, for a longer horizon."""

    def label(self, bars: pd.DataFrame, *, bar: pd.Timedelta) -> Labels:
        """Combine the outcome of the horizon with the label_end of horizon 1."""
        labels = ForwardReturn.label(self, bars, bar=bar)
        ends = ForwardReturn.label(replace(self, horizon=1), bars, bar=bar).label_end
        ends[np.isnat(labels.label_end)] = np.datetime64("NaT")
        return labels._replace(label_end=ends)


@dataclass(frozen=True, slots=True)
class TableScaler:
    """A transform step that scales by the table it is given, not by the fitted rows."""

    names: int

    @classmethod
    def fit(cls, train: np.ndarray, *, names: list[str]) -> "TableScaler":  # noqa: ARG003
        """Learn nothing."""
        return cls(len(names))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Center and scale by the given table."""
        return (x - x.mean(axis=0)) / x.std(axis=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return no arrays."""
        return {}


def last_close_upto(closes: pd.Series, trading_date: np.ndarray, *, days: int) -> np.ndarray:
    """Same-day VIX close: the last close up to each bar's own trading date."""
    dates = closes.index.to_numpy().astype("datetime64[D]")
    today = trading_date.astype("datetime64[D]")
    position = np.searchsorted(dates, today, side="right") - 1
    known = (position >= 0) & (today - dates[np.maximum(position, 0)] <= np.timedelta64(days, "D"))
    return np.where(known, closes.to_numpy()[np.maximum(position, 0)], np.nan)
