"""Properties of every registered feature; a new feature is tested once it is registered."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robust_fin.data.targets import ForwardReturn
from robust_fin.features.registry import (
    BARS,
    FEATURES,
    SESSION,
    TRADING_DATES,
    compute_features,
    get_feature,
)
from tests.bars import LEVELS, MINUTE, file_bars, labelled, roll_rows, shocked, synthetic_bars
from tests.for_every import for_every

NAMES = sorted(FEATURES)
CLOCK = {"time_of_day_sin", "time_of_day_cos", "minutes_past_5min", "minutes_past_half_hour"}
WITHOUT_VIX = [name for name in NAMES if not name.startswith("vix")]
MANY_DATES = 5  # a longer lookback needs longer tables
TWO_CONTRACTS = 20_000  # eight trading dates of ESH22, then six and a half of ESM22
TWO_LONG_CONTRACTS = 44_000  # 23 trading dates of ESH22, then nine of ESM22
LONG = 180_000  # 130 trading dates, for features that change once a date
SAMPLE = "es_1m_sample_2013_2020.csv.gz"


def extent(name: str) -> tuple[int, str]:
    """Return the number of rows and first date of bars whose roll is well past the lookback."""
    lookback = get_feature(name).lookback
    if lookback.unit == TRADING_DATES and lookback.count > MANY_DATES:
        return TWO_LONG_CONTRACTS, "2022-02-09"
    return TWO_CONTRACTS, "2022-03-02"


def table(name: str) -> pd.DataFrame:
    rows, start = extent(name)
    return synthetic_bars(rows, start=start).table


@cache
def table_and_roll(name: str) -> tuple[pd.DataFrame, int]:
    """Return the bars of the feature and the first row of the second contract."""
    bars = table(name)
    (row,) = roll_rows(bars)
    return bars, row


def value(bars: pd.DataFrame, name: str) -> np.ndarray:
    return compute_features(bars, [name])[name].to_numpy()


@cache
def whole(name: str) -> np.ndarray:
    """Compute the feature on all of its bars."""
    return value(table(name), name)


def kept_history(bars: pd.DataFrame, row: int, name: str) -> pd.DataFrame:
    """Return exactly the lookback of the feature, up to and including `row`."""
    lookback = get_feature(name).lookback
    if lookback.unit == BARS:
        return bars.iloc[row - lookback.count : row + 1]
    upto = bars.iloc[: row + 1]
    return upto[upto["trading_day"] >= bars["trading_day"].iloc[row] - lookback.count]


def rows_past_lookback(bars: pd.DataFrame, name: str) -> np.ndarray:
    lookback = get_feature(name).lookback
    if lookback.unit == BARS:
        own = bars.groupby("contract", observed=True).cumcount().to_numpy()
        return np.flatnonzero(own >= lookback.count)
    day = bars["trading_day"].to_numpy()
    return np.flatnonzero(day >= day[0] + lookback.count)


@cache
def shocked_after(last: int, rows: int, start: str) -> pd.DataFrame:
    return shocked(synthetic_bars(rows, start=start).table, np.arange(last + 1, rows))


@for_every("name", NAMES)
def test_future_bars_do_not_change_features(name: str) -> None:
    _, roll = table_and_roll(name)
    for last in (700, roll - 2000, roll - 1, roll, roll + 1, roll + 4500):
        moved = value(shocked_after(last, *extent(name)), name)
        np.testing.assert_array_equal(moved[: last + 1], whole(name)[: last + 1])
        assert (name in CLOCK) == np.array_equal(moved, whole(name), equal_nan=True)


@for_every("name", NAMES)
def test_features_are_equal_without_future_bars(name: str) -> None:
    bars, roll = table_and_roll(name)
    for last in (700, roll - 1, roll, roll + 1, roll + 4500):
        np.testing.assert_array_equal(value(bars.iloc[: last + 1], name), whole(name)[: last + 1])


@for_every("name", NAMES)
def test_feature_needs_no_more_than_its_lookback(name: str) -> None:
    bars, roll = table_and_roll(name)
    past = rows_past_lookback(bars, name)
    draw = np.random.default_rng(0)
    near = past[(past >= roll) & (past < roll + 2000)]
    rows = [*past[:2], *near[:2], *draw.choice(past, 8), *draw.choice(near, 4), len(bars) - 1]
    for row in rows:
        history = kept_history(bars, row, name)
        assert len(history) <= row + 1
        np.testing.assert_allclose(value(history, name)[-1], whole(name)[row], rtol=1e-9)
        assert np.isfinite(whole(name)[row])


@for_every("name", [n for n in NAMES if get_feature(n).lookback.unit == BARS])
def test_row_with_fewer_bars_than_the_lookback_is_nan(name: str) -> None:
    bars, roll = table_and_roll(name)
    count = get_feature(name).lookback.count
    for first in (0, roll):
        values = whole(name)[first : first + count + 50]
        if first == 0 or not get_feature(name).chained:
            assert np.isnan(values[:count]).all()
            values = values[count:]
        assert np.isfinite(values).all()
    if count:
        assert np.isnan(value(bars.iloc[3000 - count + 1 : 3001], name)[-1])


@for_every("name", [n for n in NAMES if get_feature(n).lookback.unit == TRADING_DATES])
def test_row_with_fewer_dates_than_the_lookback_is_nan(name: str) -> None:
    bars, roll = table_and_roll(name)
    count, day = get_feature(name).lookback.count, bars["trading_day"].to_numpy()
    assert np.isnan(whole(name)[day < day[0] + count]).all()
    for row in (roll, roll + 900, len(bars) - 1):
        fewer = bars.iloc[: row + 1][day[: row + 1] > day[row] - count]
        assert np.isnan(value(fewer, name)[-1])


@for_every("name", [n for n in NAMES if get_feature(n).lookback.unit == SESSION])
def test_session_feature_needs_the_full_session(name: str) -> None:
    bars, _ = table_and_roll(name)
    moved = []
    for row in (6_000, 14_800, 15_500, 18_000):
        history = kept_history(bars, row, name)
        assert history["trading_day"].nunique() == 1
        cut = value(history.iloc[len(history) // 2 :], name)[-1]
        moved.append(abs(cut - whole(name)[row]) > 1e-6 * abs(whole(name)[row]))
    assert any(moved)


@for_every("name", NAMES)
def test_feature_is_finite_and_varies_after_its_lookback(name: str) -> None:
    bars = synthetic_bars(LONG, start="2021-12-14").table
    values = value(bars, name)[rows_past_lookback(bars, name)]
    assert np.isfinite(values).mean() >= 0.99
    assert np.unique(values[np.isfinite(values)]).size >= (5 if name in CLOCK else 50)


@cache
def overlapping() -> pd.DataFrame:
    """Create two contracts that overlap for eight dates; the second has another seed."""
    codes = ("ESH22", "ESM22")
    parts = [synthetic_bars(TWO_CONTRACTS, seed=seed).table for seed in (0, 1)]
    kept = [part[part["contract"] == "ESH22"] for part in parts]
    kept[1] = kept[1].iloc[3000:]  # the second contract is listed two dates later
    table = pd.concat(
        [part.astype({"contract": "str"}).assign(contract=code)
         for part, code in zip(kept, codes, strict=True)]
    )  # fmt: skip
    return labelled(table.sort_values(["time", "contract"], ignore_index=True))


def interleavings(bars: pd.DataFrame) -> dict[str, pd.DataFrame]:
    codes = bars["contract"].cat.codes.to_numpy()
    stamps = bars["time"].astype("int64").to_numpy()
    draw = np.random.default_rng(0)
    return {
        "later expiry first": bars.iloc[np.lexsort((-codes, stamps))],
        "one contract after the other": bars.iloc[np.lexsort((stamps, codes))],
        "ties in any order": bars.iloc[np.lexsort((draw.random(codes.size), stamps))],
    }


def assert_order_does_not_matter(
    bars: pd.DataFrame, others: dict[str, pd.DataFrame], name: str
) -> None:
    expected = value(bars, name)
    for order, mixed in others.items():
        assert not mixed.index.equals(bars.index), order
        got = pd.Series(value(mixed, name), mixed.index)
        np.testing.assert_array_equal(got.sort_index(), expected, err_msg=order)


@cache
def mixed_overlapping() -> dict[str, pd.DataFrame]:
    return interleavings(overlapping())


@cache
def mixed_file(path: Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    bars = file_bars(path).table
    return bars, interleavings(bars)


@for_every("name", NAMES)
def test_row_order_of_overlapping_contracts_does_not_matter(name: str) -> None:
    assert_order_does_not_matter(overlapping(), mixed_overlapping(), name)


@for_every("name", WITHOUT_VIX)
def test_row_order_of_real_contracts_does_not_matter(
    real_data: Callable[[str], Path], name: str
) -> None:
    bars, others = mixed_file(real_data(SAMPLE))
    assert bars["time"].duplicated().sum() > 4000
    assert_order_does_not_matter(bars, others, name)


@for_every("name", [n for n in NAMES if not get_feature(n).chained])
def test_unchained_features_do_not_depend_on_other_contracts(name: str) -> None:
    bars = overlapping()
    for code in ("ESH22", "ESM22"):
        rows = (bars["contract"] == code).to_numpy()
        np.testing.assert_array_equal(value(bars[rows], name), value(bars, name)[rows])


def with_roll_step(bars: pd.DataFrame, roll: int, *, step: float) -> pd.DataFrame:
    """Multiply the prices of the later contract by one factor."""
    moved = bars.copy()
    later = moved.index[roll:]
    moved.loc[later, LEVELS] = bars.loc[later, LEVELS] * step
    return moved


@for_every("name", NAMES)
def test_no_feature_contains_the_step_of_a_roll(name: str) -> None:
    bars, roll = table_and_roll(name)
    moved = with_roll_step(bars, roll, step=1.1)
    assert moved["close"].iloc[roll] / moved["close"].iloc[roll - 1] > 1.08
    expected = whole(name).copy()
    if get_feature(name).unit == "index points" and name in WITHOUT_VIX:
        expected[roll:] *= 1.1
    rounding = 1e-9 * np.nanstd(expected)
    np.testing.assert_allclose(value(moved, name), expected, rtol=1e-9, atol=rounding)


@for_every("horizon", [1, 3, 400])
def test_no_target_contains_the_step_of_a_roll(horizon: int) -> None:
    bars = synthetic_bars(TWO_CONTRACTS).table
    (roll,) = roll_rows(bars)
    target = ForwardReturn(horizon, None)
    before = target.label(bars, bar=MINUTE)
    after = target.label(with_roll_step(bars, roll, step=1.1), bar=MINUTE)
    np.testing.assert_allclose(after.outcome, before.outcome, rtol=1e-9, atol=1e-14)
    assert np.isnan(before.outcome[roll - horizon : roll]).all()
    assert np.isfinite(before.outcome[[roll - horizon - 1, roll]]).all()
    assert np.nanmax(np.abs(after.outcome)) < 0.08


def test_return_across_contracts_would_contain_the_step() -> None:
    """The changed bars contain a step, which a return across contracts would show."""
    bars = synthetic_bars(TWO_CONTRACTS).table
    (roll,) = roll_rows(bars)
    moved = with_roll_step(bars, roll, step=1.1)
    naive = [table["close"].pct_change() for table in (bars, moved)]
    assert naive[1].iloc[roll] - naive[0].iloc[roll] > 0.09


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_lookback_is_sufficient_at_many_rows_across_two_rolls(name: str) -> None:
    bars = synthetic_bars(LONG, start="2021-12-14").table
    expected, past = value(bars, name), rows_past_lookback(bars, name)
    rolls = roll_rows(bars)
    assert len(rolls) == 2
    near = [past[(past >= roll) & (past < roll + 8000)] for roll in rolls]
    draw = np.random.default_rng(1)
    for row in np.concatenate([draw.choice(some, 100) for some in (past, *near)]):
        got = value(kept_history(bars, row, name), name)[-1]
        np.testing.assert_allclose(got, expected[row], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_VIX)
def test_second_half_of_the_real_file_does_not_change_the_first(
    real_data: Callable[[str], Path], name: str
) -> None:
    bars = file_bars(real_data("es_1m_12contracts.parquet")).table
    half = len(bars) // 2
    expected = value(bars, name)
    assert np.isfinite(expected[rows_past_lookback(bars, name)]).mean() >= 0.99
    np.testing.assert_array_equal(value(bars.iloc[:half], name), expected[:half])
    moved = bars.copy()
    later = moved.index[half:]
    moved.loc[later, LEVELS] = bars.loc[later, LEVELS] * 1.5
    np.testing.assert_array_equal(value(moved, name)[:half], expected[:half])
