import numpy as np
import pandas as pd
import pytest

from robust_fin.features.history import chained_bars, contract_rows, take_rows
from tests.bars import close_bars


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    # M begins while H still trades; U follows M
    return close_bars("""
        ESH24 2024-02-05T12:00 100
        ESH24 2024-02-06T12:00 110
        ESM24 2024-02-06T13:00 1100
        ESH24 2024-02-06T13:00 120
        ESM24 2024-02-07T12:00 1210
        ESU24 2024-02-08T12:00 605
        ESU24 2024-02-09T12:00 660
    """)


def history(bars: pd.DataFrame, position: int, count: int, unit: str) -> pd.DataFrame:
    return chained_bars(bars, contract_rows(bars), position, count, unit)


def test_contract_rows_are_in_the_order_of_expiry(bars) -> None:
    assert [rows.tolist() for rows in contract_rows(bars)] == [[0, 1, 3], [2, 4], [5, 6]]


def test_contract_rows_omits_contracts_without_rows(bars) -> None:
    assert [rows.tolist() for rows in contract_rows(bars.iloc[4:])] == [[0], [1, 2]]


def test_consecutive_rows_are_a_view(bars) -> None:
    assert take_rows(bars, np.array([2, 3])).index.tolist() == [2, 3]
    assert take_rows(bars, np.array([0, 1, 3])).index.tolist() == [0, 1, 3]
    slice_of = take_rows(bars, np.array([2, 3]))["close"].to_numpy()
    assert np.shares_memory(slice_of, bars["close"].to_numpy())


@pytest.mark.parametrize(
    ("position", "count", "rows", "close"),
    [
        (0, 9, [0, 1, 3], [100, 110, 120]),
        (1, 0, [2, 4], [1100, 1210]),
        (1, 1, [1, 2, 4], [1100, 1100, 1210]),
        (1, 2, [0, 1, 2, 4], [1000, 1100, 1100, 1210]),
        (2, 1, [4, 5, 6], [605, 605, 660]),
        (2, 2, [2, 4, 5, 6], [550, 605, 605, 660]),
        (2, 3, [1, 2, 4, 5, 6], [550, 550, 605, 605, 660]),
        (2, 9, [0, 1, 2, 4, 5, 6], [500, 550, 550, 605, 605, 660]),
    ],
)
def test_earlier_contracts_are_rescaled_at_the_roll(
    bars, position: int, count: int, rows: list[int], close: list[float]
) -> None:
    got = history(bars, position, count, "bars")
    assert got.index.tolist() == rows
    assert got["close"].tolist() == pytest.approx(close)
    assert got["high"].tolist() == pytest.approx(close)


@pytest.mark.parametrize(
    ("count", "rows"),
    [(0, [5, 6]), (1, [4, 5, 6]), (2, [1, 2, 4, 5, 6]), (3, [0, 1, 2, 4, 5, 6])],
)
def test_history_dates_count_from_the_first_bar_of_the_contract(
    bars, count: int, rows: list[int]
) -> None:
    assert history(bars, 2, count, "trading dates").index.tolist() == rows


def test_chained_bars_does_not_modify_its_input(bars) -> None:
    before = bars.copy()
    history(bars, 2, 9, "bars")
    pd.testing.assert_frame_equal(bars, before)
