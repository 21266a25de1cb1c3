"""Features block by block are those of all bars at once, to the last bit."""

import numpy as np
import pandas as pd
import pytest

from robust_fin.features.registry import (
    BARS,
    FEATURES,
    SESSION,
    TRADING_DATES,
    Feature,
    FeatureStream,
    Lookback,
    compute_features,
)
from tests.bars import close_bars, roll_rows, synthetic_bars

ROWS = 16_000  # rolls after 11,000
LONG_ROWS = 44_000  # from 2022-02-09 on, which rolls after 23 trading dates
MANY_DATES = 5


def chained_log_return(bars: pd.DataFrame) -> pd.Series:
    return np.log(bars["close"]) - np.log(bars["close"].shift(7))


def volume_since_open(bars: pd.DataFrame) -> pd.Series:
    return bars.groupby(bars["trading_day"].to_numpy())["volume"].cumsum()


def highest_over_dates(bars: pd.DataFrame) -> pd.Series:
    """The highest high of this trading date so far and of the two before it."""
    day, high = bars["trading_day"].to_numpy(), bars["high"].to_numpy()
    first = np.searchsorted(day, day - 2)
    return pd.Series([high[a : t + 1].max() for t, a in enumerate(first)], index=bars.index)


OWN = [
    Feature("chained_7bar", Lookback(7, BARS), "", chained_log_return, chained=True),
    Feature("chained_session", Lookback(0, SESSION), "", volume_since_open, chained=True),
    Feature("highest_2d", Lookback(2, TRADING_DATES), "", highest_over_dates, chained=True),
    Feature("own_highest_2d", Lookback(2, TRADING_DATES), "", highest_over_dates, chained=False),
]


@pytest.fixture(autouse=True)
def features(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in OWN:
        monkeypatch.setitem(FEATURES, one.name, one)


def assert_same(bars: pd.DataFrame, cuts: list[int], names: list[str]) -> None:
    stream = FeatureStream(names)
    blocks = np.split(np.arange(len(bars)), cuts)
    parts = [stream.push(bars.iloc[rows].reset_index(drop=True)) for rows in blocks if rows.size]
    whole = compute_features(bars, names).reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole, check_exact=True)


def long_lookbacks() -> list[str]:
    found = [one for one in FEATURES.values() if one.lookback.unit == TRADING_DATES]
    return sorted(one.name for one in found if one.lookback.count > MANY_DATES)


@pytest.mark.parametrize("name", sorted(FEATURES) + [one.name for one in OWN])
@pytest.mark.parametrize("size", [1_499])
def test_every_feature_is_equal_in_blocks(name: str, size: int) -> None:
    bars = synthetic_bars(ROWS).table.iloc[6_000:14_000].reset_index(drop=True)
    assert_same(bars, list(range(size, len(bars), size)), [name])


def test_blocks_may_start_around_a_roll() -> None:
    bars = synthetic_bars(ROWS).table
    roll = roll_rows(bars)[0]
    names = sorted(FEATURES)
    for around in (-1, 0, 1, 6):
        assert_same(bars, [roll + around], names)
    assert_same(bars, [roll - 3, roll - 1, roll, roll + 1, roll + 2, roll + 1400], names)


def test_blocks_may_be_shorter_than_the_lookback() -> None:
    bars, names = synthetic_bars(LONG_ROWS, start="2022-02-09").table, long_lookbacks()
    roll = roll_rows(bars)[0]
    assert len(names) >= 2
    assert compute_features(bars.iloc[: roll + 1], names).iloc[-1].notna().all()
    assert_same(bars, [*range(7_001, roll, 7_001), roll - 1, roll, roll + 1, roll + 5_000], names)


def overlapping(seed: int) -> pd.DataFrame:
    """Five contracts that begin and go silent at random while others trade, over ten dates."""
    draw = np.random.default_rng(seed)
    codes = ["ESH24", "ESM24", "ESU24", "ESZ24", "ESH25"]
    minutes = pd.date_range("2024-01-02 09:00", periods=10, freq="1D")
    lines = []
    alive = np.zeros(5, dtype=bool)
    for day in minutes[minutes.day_of_week < 5]:
        for minute in range(0, 12):
            flips = draw.random(5) < 0.15
            alive ^= flips
            for code in np.flatnonzero(alive):
                stamp = (day + pd.Timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M")
                lines.append(f"{codes[code]} {stamp} {4000 + 10 * code + draw.integers(-8, 9)}")
    return close_bars("\n".join(lines))


def without_vix() -> list[str]:
    return sorted(name for name in FEATURES if not name.startswith("vix"))


@pytest.mark.parametrize("seed", range(2))
def test_overlapping_contracts_are_equal_in_blocks(seed: int) -> None:
    bars = overlapping(seed)
    assert bars["contract"].nunique() == 5
    draw = np.random.default_rng(seed)
    assert_same(bars, sorted(draw.choice(len(bars), 40, replace=False).tolist()), without_vix())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_overlapping_contracts_are_equal_row_by_row(seed: int) -> None:
    bars = overlapping(seed)
    assert_same(bars, list(range(1, len(bars))), without_vix())


def test_held_history_does_not_grow_with_the_file() -> None:
    bars = synthetic_bars(ROWS).table
    stream = FeatureStream(["close_change_pct", "vwap", "price_mom_5d"])
    held = []
    for first in range(0, ROWS, 2_000):
        stream.push(bars.iloc[first : first + 2_000].reset_index(drop=True))
        held.append(len(stream._held))
    assert held[4] < 6 * 1_380 + 2  # the date and the five before it
    assert max(held) < 11 * 1_380 + 4  # of a young contract those before its first bar too
