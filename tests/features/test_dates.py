import numpy as np
import pytest

from robust_fin.features.windows import first_rows, last_rows, repeat_per_bar, value_on_day
from tests.bars import close_bars

NAN = float("nan")


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


def test_the_bars_of_a_date_are_found_by_its_first_and_last(bars) -> None:
    assert first_rows(bars).tolist() == [0, 1, 3, 4]
    assert last_rows(bars).tolist() == [0, 2, 3, 4]
    assert first_rows(bars.iloc[2:]).tolist() == [0, 1, 2]


def test_a_value_of_a_date_stands_on_each_of_its_bars(bars) -> None:
    assert repeat_per_bar(bars, np.array([7, 8, 9, 10])).tolist() == [7, 8, 8, 9, 10]


def test_a_value_of_an_earlier_date_is_missing_where_that_date_is(bars) -> None:
    values = np.array([7.0, 8.0, 9.0, 10.0])
    for dates_ago, expected in (
        (0, [7, 8, 8, 9, 10]),
        (1, [NAN, 7, 7, 8, NAN]),
        (2, [NAN, NAN, NAN, 7, 9]),
        (4, [NAN, NAN, NAN, NAN, 7]),
    ):
        np.testing.assert_array_equal(value_on_day(bars, values, dates_ago=dates_ago), expected)
