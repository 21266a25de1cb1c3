import numpy as np

from robust_fin.features.registry import compute_features
from tests.bars import hand_bars

NAN = float("nan")


def same(text: str, expected: list[float]) -> None:
    values = compute_features(hand_bars(text), ["vwap"])["vwap"]
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)


def test_typical_prices_are_weighed_by_volume() -> None:
    # typical prices 102 and 108
    same(
        """
        ESH24 2024-03-11T08:30 104 100 102 3
        ESH24 2024-03-11T08:31 110 105 109 1
        """,
        [0.0, (102 * 3 + 108 * 1) / 4 / 109 - 1],
    )


def test_it_restarts_at_1700_chicago_not_at_midnight() -> None:
    same(
        """
        ESH24 2024-03-11T15:59 100 100 100 5
        ESH24 2024-03-11T17:00 200 200 200 1
        ESH24 2024-03-11T23:59 300 300 300 1
        ESH24 2024-03-12T00:00 400 400 400 2
        """,
        [0.0, 0.0, 250 / 300 - 1, 325 / 400 - 1],
    )


def test_a_bar_in_the_half_hour_after_the_close_is_still_of_the_session() -> None:
    same(
        """
        ESH24 2024-03-11T15:59 100 100 100 1
        ESH24 2024-03-11T16:05 300 300 300 1
        ESH24 2024-03-11T17:00 500 500 500 1
        """,
        [0.0, 200 / 300 - 1, 0.0],
    )


def test_it_is_undefined_until_the_session_has_traded() -> None:
    same(
        """
        ESH24 2024-03-11T15:59 100 100 100 5
        ESH24 2024-03-11T17:00 200 200 200 0
        ESH24 2024-03-11T17:01 210 210 210 0
        ESH24 2024-03-11T17:02 220 220 220 2
        ESH24 2024-03-11T17:03 240 240 240 0
        """,
        [0.0, NAN, NAN, 0.0, 220 / 240 - 1],
    )


def test_a_roll_in_the_session_starts_it_anew_and_overlap_stays_apart() -> None:
    same(
        """
        ESH24 2024-03-11T08:30 100 100 100 5
        ESM24 2024-03-11T08:30 800 800 800 1
        ESH24 2024-03-11T08:31 110 110 110 5
        ESM24 2024-03-11T08:31 900 900 900 3
        """,
        [0.0, 0.0, 105 / 110 - 1, 875 / 900 - 1],
    )
