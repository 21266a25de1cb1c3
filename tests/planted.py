"""Mistakes as people make them, under names that give nothing away; none is registered here."""

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
    """shift(-1)."""
    return bars["close"].shift(-1) / bars["close"] - 1


def fear_level(bars: pd.DataFrame) -> pd.Series:
    """Same-day VIX close, which the source joins to the bars of the next trading date."""
    own = bars.groupby("trading_day")["vix"].last()
    return bars["trading_day"].map(own.shift(-1))


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
    """Chunk restart: the mean begins anew every 1,500 rows, counted from the first one given."""
    chunk = np.arange(len(bars)) // CHUNK
    mean = bars["close"].groupby(chunk).transform(lambda part: part.rolling(30).mean())
    return bars["close"] / mean - 1


def minutes_to_close(bars: pd.DataFrame) -> pd.Series:
    """No price, yet it counts bars that are still to come."""
    day = bars["trading_day"].to_numpy()
    left = np.append(np.flatnonzero(np.diff(day)), len(bars) - 1)
    return pd.Series(left[np.searchsorted(left, np.arange(len(bars)))] - np.arange(len(bars)))


def shy_volume(bars: pd.DataFrame) -> pd.Series:
    """Backfill of single values that are missing here and there, one in 400."""
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
    """A registry that forgets what is registered inside."""
    kept = dict(FEATURES)
    try:
        yield
    finally:
        FEATURES.clear()
        FEATURES.update(kept)


def plant(*functions: Callable[[pd.DataFrame], pd.Series]) -> list[str]:
    """Register some of them, or all; their names."""
    some = functions or tuple(LOOKBACKS)
    for fn in some:
        feature(lookback=LOOKBACKS.get(fn, NONE), unit="any")(fn)
    return [fn.__name__ for fn in some]


@dataclass(frozen=True, slots=True)
class PlainHoldout(Holdout):
    """Unpurged split: train ends where val begins, whatever its labels need."""

    def each_fold(self, rows: LabelledRows) -> Iterator[Fold]:
        """Three parts, one after the other."""
        numbers, size = np.arange(rows.time.size), rows.time.size
        val = round(size * (1 - self.val_fraction - self.test_fraction))
        test = round(size * (1 - self.test_fraction))
        yield Fold(numbers[:val], numbers[val:test], numbers[test:], {})


@dataclass(frozen=True, slots=True)
class LongReturn(ForwardReturn):
    """Label across the roll: the next bars of the table, whatever their contract."""

    def label(self, bars: pd.DataFrame, *, bar: pd.Timedelta) -> Labels:
        """As if there were one contract."""
        codes = pd.Categorical.from_codes(np.zeros(len(bars), dtype=np.int8), ["ONE"])
        # zero-argument super() does not work in a dataclass with slots
        return ForwardReturn.label(self, bars.assign(contract=codes), bar=bar)


@dataclass(frozen=True, slots=True)
class LateReturn(ForwardReturn):
    """label_end says less than what is used: that of the next bar, for a longer horizon."""

    def label(self, bars: pd.DataFrame, *, bar: pd.Timedelta) -> Labels:
        """The outcome of the horizon with the end of one bar."""
        labels = ForwardReturn.label(self, bars, bar=bar)
        ends = ForwardReturn.label(replace(self, horizon=1), bars, bar=bar).label_end
        ends[np.isnat(labels.label_end)] = np.datetime64("NaT")
        return labels._replace(label_end=ends)


@dataclass(frozen=True, slots=True)
class TableScaler:
    """A step of a transform that scales by the table it is given, not by what it was fitted on."""

    names: int

    @classmethod
    def fit(cls, train: np.ndarray, *, names: list[str]) -> "TableScaler":  # noqa: ARG003
        """Nothing is learnt."""
        return cls(len(names))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Centre and scale."""
        return (x - x.mean(axis=0)) / x.std(axis=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """None to keep."""
        return {}


def last_close_upto(closes: pd.Series, trading_date: np.ndarray, *, days: int) -> np.ndarray:
    """Same-day VIX close: the last close up to each bar's own trading date."""
    dates = closes.index.to_numpy().astype("datetime64[D]")
    today = trading_date.astype("datetime64[D]")
    position = np.searchsorted(dates, today, side="right") - 1
    known = (position >= 0) & (today - dates[np.maximum(position, 0)] <= np.timedelta64(days, "D"))
    return np.where(known, closes.to_numpy()[np.maximum(position, 0)], np.nan)
