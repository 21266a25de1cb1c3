import numpy as np
import pandas as pd
import pytest

from robust_fin.features.history import (
    first_rows,
    lagged,
    last_rows,
    repeat_per_bar,
    trailing_max,
    trailing_mean,
    trailing_min,
    trailing_sum,
    value_on_day,
)
from tests.bars import close_bars

NAN = float("nan")
SPANS = [1, 2, 3, 5, 10, 20, 59, 60, 64]


def noise(rows: int = 300) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=1e6, size=rows)


def test_small_windows_by_hand() -> None:
    values = np.array([1.0, 5.0, 2.0, 4.0, 3.0])
    same = np.testing.assert_array_equal
    same(lagged(values, 0), values)
    same(lagged(values, 2), [NAN, NAN, 1, 5, 2])
    same(lagged(values, 9), [NAN] * 5)
    same(trailing_sum(values, 3), [NAN, NAN, 8, 11, 9])
    same(trailing_mean(values, 2), [NAN, 3, 3.5, 3, 3.5])
    same(trailing_max(values, 3), [NAN, NAN, 5, 5, 4])
    same(trailing_min(values, 3), [NAN, NAN, 1, 2, 2])
    same(trailing_sum(values, 6), [NAN] * 5)


@pytest.mark.parametrize("span", SPANS)
def test_windows_equal_pandas_rolling(span: int) -> None:
    values = noise()
    rolling = pd.Series(values).rolling(span)
    np.testing.assert_allclose(trailing_sum(values, span), rolling.sum(), rtol=1e-9, atol=1e-3)
    np.testing.assert_array_equal(trailing_max(values, span), rolling.max())
    np.testing.assert_array_equal(trailing_min(values, span), rolling.min())


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("window", [trailing_sum, trailing_mean, trailing_max, trailing_min])
def test_windows_do_not_depend_on_earlier_rows(window, span: int) -> None:
    values = noise()
    whole = window(values, span)
    for row in (span - 1, 100, 299):
        assert window(values[row - span + 1 : row + 1], span)[-1] == whole[row]
    before = np.concatenate([noise(77) * 1e9, values])
    np.testing.assert_array_equal(window(before, span)[77 + span - 1 :], whole[span - 1 :])


def test_trailing_sum_of_a_table_is_along_rows() -> None:
    table = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(trailing_sum(table, 2), [[NAN, NAN], [2, 4], [6, 8]])


@pytest.fixture(scope="module")
def bars():
    # 17:00 begins the next trading date; the 9th has no bar
    return close_bars("""
        ESH24 2024-02-06T12:00 100
        ESH24 2024-02-06T17:00 110
        ESH24 2024-02-07T12:00 120
        ESH24 2024-02-08T12:00 130
        ESH24 2024-02-12T12:00 140
    """)


def test_first_and_last_rows_of_each_date(bars) -> None:
    assert first_rows(bars).tolist() == [0, 1, 3, 4]
    assert last_rows(bars).tolist() == [0, 2, 3, 4]
    assert first_rows(bars.iloc[2:]).tolist() == [0, 1, 2]


def test_date_values_are_repeated_per_bar(bars) -> None:
    assert repeat_per_bar(bars, np.array([7, 8, 9, 10])).tolist() == [7, 8, 8, 9, 10]


def test_value_on_day_is_nan_if_that_date_has_no_bars(bars) -> None:
    values = np.array([7.0, 8.0, 9.0, 10.0])
    for dates_ago, expected in (
        (0, [7, 8, 8, 9, 10]),
        (1, [NAN, 7, 7, 8, NAN]),
        (2, [NAN, NAN, NAN, 7, 9]),
        (4, [NAN, NAN, NAN, NAN, 7]),
    ):
        np.testing.assert_array_equal(value_on_day(bars, values, dates_ago=dates_ago), expected)
