import numpy as np
import pytest

from robust_fin.features.registry import compute_features
from tests.bars import close_bars, hand_bars

NAN = float("nan")


def values(bars, name: str) -> list[float]:
    return compute_features(bars, [name])[name].tolist()


def same(bars, name: str, expected: list[float]) -> None:
    np.testing.assert_allclose(values(bars, name), expected, rtol=1e-12, atol=1e-15)


# the roll comes in the middle of a session, 100 points higher
ROLL = """
ESH24 2024-03-11T08:30 100
ESH24 2024-03-11T08:31 101
ESH24 2024-03-11T08:32 102
ESH24 2024-03-11T08:33 103
ESM24 2024-03-11T08:34 200
ESM24 2024-03-11T08:35 204
ESM24 2024-03-11T08:36 206
ESM24 2024-03-11T08:37 208
ESM24 2024-03-11T08:38 210
ESM24 2024-03-11T08:39 212
"""


def test_the_change_is_over_one_bar_of_the_contract() -> None:
    expected = [NAN, 1 / 100, 1 / 101, 1 / 102, NAN, 4 / 200, 2 / 204, 2 / 206, 2 / 208, 2 / 210]
    same(close_bars(ROLL), "close_change_pct", expected)


def test_bar_momentum_starts_anew_at_a_roll() -> None:
    bars = close_bars(ROLL)
    same(bars, "price_mom_3bar", [NAN] * 3 + [3 / 100] + [NAN] * 3 + [8 / 200, 6 / 204, 6 / 206])
    same(bars, "price_mom_5bar", [NAN] * 9 + [12 / 200])


def test_range_and_typical_price_are_of_the_bar_alone() -> None:
    bars = hand_bars("""
        ESH24 2024-03-11T08:30 104 100 102 7
        ESM24 2024-03-11T08:31 212 200 206 0
    """)
    same(bars, "price_range", [4 / 102, 12 / 206])
    same(bars, "typical_price", [306 / 3, 618 / 3])


# one bar at noon of each trading date, Monday to Monday; last of the date where there are two
WEEK = """
ESH24 2024-02-05T12:00 100
ESH24 2024-02-05T15:59 110
ESH24 2024-02-06T12:00 120
ESH24 2024-02-07T12:00 130
ESH24 2024-02-07T17:00 140
ESH24 2024-02-08T12:00 150
ESH24 2024-02-09T12:00 160
ESH24 2024-02-12T12:00 170
"""


def test_date_momentum_is_over_the_last_bar_of_the_date() -> None:
    # 17:00 on the 7th is the 8th's session: both of the 8th's bars look at 15:59 of the 5th
    bars = close_bars(WEEK)
    three = [NAN] * 4 + [140 / 110, 150 / 110, 160 / 120, 170 / 130]
    same(bars, "price_mom_3d", (np.array(three) - 1).tolist())
    same(bars, "price_mom_5d", [NAN] * 7 + [170 / 110 - 1])


def test_a_trading_date_without_bars_leaves_its_momentum_undefined() -> None:
    bars = close_bars("""
        ESH24 2024-02-05T12:00 100
        ESH24 2024-02-07T12:00 130
        ESH24 2024-02-08T12:00 150
        ESH24 2024-02-09T12:00 160
        ESH24 2024-02-12T12:00 170
    """)
    same(bars, "price_mom_3d", [NAN, NAN, 0.5, NAN, 170 / 130 - 1])


def test_a_holiday_is_no_trading_date() -> None:
    # three dates before Friday the 27th is Monday the 23rd, because the 25th was closed
    bars = close_bars("""
        ESH25 2024-12-23T12:00 100
        ESH25 2024-12-24T12:00 110
        ESH25 2024-12-26T12:00 120
        ESH25 2024-12-27T12:00 130
    """)
    same(bars, "price_mom_3d", [NAN, NAN, NAN, 0.3])


TWO_ROLLS = """
ESH24 2024-02-05T12:00 100
ESH24 2024-02-06T12:00 110
ESM24 2024-02-06T13:00 1100
ESM24 2024-02-07T12:00 1210
ESU24 2024-02-07T13:00 50
ESU24 2024-02-08T12:00 55
ESU24 2024-02-09T12:00 66
"""


def test_date_momentum_is_chained_across_two_rolls_and_a_short_contract() -> None:
    # bar returns since the 5th: 1.1, roll, 1.1, roll, 1.1, then 1.2
    bars = close_bars(TWO_ROLLS)
    same(bars, "price_mom_3d", [NAN] * 5 + [1.1**3 - 1, 1.1 * 1.1 * 1.2 - 1])


def test_a_roll_in_the_middle_of_a_session_costs_no_row_of_date_momentum() -> None:
    bars = close_bars("""
        ESH24 2024-03-07T12:00 100
        ESH24 2024-03-08T12:00 105
        ESH24 2024-03-11T12:00 110
        ESH24 2024-03-12T08:30 120
        ESM24 2024-03-12T08:31 500
        ESM24 2024-03-12T08:32 510
    """)
    roll = [120 / 100 - 1, 120 / 100 - 1, 120 / 100 * 510 / 500 - 1]
    same(bars, "price_mom_3d", [NAN] * 3 + roll)


def test_overlapping_contracts_keep_their_own_closes() -> None:
    # M trades beside H: only before its own first bar does H stand in for it
    bars = close_bars("""
        ESH24 2024-02-05T12:00 100
        ESM24 2024-02-06T12:00 1000
        ESH24 2024-02-06T12:00 150
        ESH24 2024-02-07T12:00 200
        ESM24 2024-02-07T12:00 1100
        ESM24 2024-02-08T12:00 1300
        ESH24 2024-02-08T12:00 250
        ESM24 2024-02-09T12:00 1500
    """)
    # on the 8th M looks at the 5th: H's 100, times 1000/100 at the splice
    expected = [NAN, NAN, NAN, NAN, NAN, 1300 / 1000 - 1, 250 / 100 - 1, 1500 / 1000 - 1]
    same(bars, "price_mom_3d", expected)


def test_a_date_the_earlier_contract_missed_is_not_taken_from_an_older_one() -> None:
    # U's history is M's, whose own bars begin on the 2nd and skip the 6th; H traded on the 6th
    bars = close_bars("""
        ESH24 2024-02-02T11:00 100
        ESM24 2024-02-02T12:00 1000
        ESH24 2024-02-06T12:00 150
        ESM24 2024-02-07T12:00 1100
        ESU24 2024-02-08T12:00 70
        ESU24 2024-02-09T12:00 77
    """)
    assert np.isnan(values(bars, "price_mom_3d")[-1])


def test_a_contract_of_a_single_bar_is_chained_through() -> None:
    bars = close_bars("""
        ESH24 2024-02-05T12:00 100
        ESM24 2024-02-06T12:00 900
        ESU24 2024-02-07T12:00 40
        ESU24 2024-02-08T12:00 44
    """)
    assert values(bars, "price_mom_3d")[-1] == pytest.approx(0.1)
