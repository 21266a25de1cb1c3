import numpy as np

from robust_fin.features.registry import compute_features
from tests.bars import hand_bars

NAN = float("nan")


def same(text: str, name: str, expected: list[float]) -> None:
    found = compute_features(hand_bars(text), [name])[name]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


# a bar opens at its low; 17:00 begins the next trading date; M is twice H, rolled at midday
DAYS = """
ESH24 2024-02-06T12:00 110 100 105 1
ESH24 2024-02-06T12:01 108 90 100 1
ESH24 2024-02-06T12:02 120 95 110 1
ESH24 2024-02-06T17:00 115 112 114 1
ESH24 2024-02-07T12:00 114 113 113 1
ESM24 2024-02-07T12:01 226 224 226 1
ESM24 2024-02-07T12:02 240 220 230 1
"""


def test_the_high_of_the_session_so_far_goes_on_across_a_roll() -> None:
    expected = [110 / 105, 1.1, 120 / 110, 115 / 114, 115 / 113, 230 / 226, 240 / 230]
    same(DAYS, "session_high", [value - 1 for value in expected])


def test_the_low_of_the_session_so_far_goes_on_across_a_roll() -> None:
    expected = [100 / 105, 0.9, 90 / 110, 112 / 114, 112 / 113, 224 / 226, 220 / 230]
    same(DAYS, "session_low", [value - 1 for value in expected])


def test_the_gap_is_from_the_last_close_to_the_first_open_of_the_date() -> None:
    same(DAYS, "opening_gap", [NAN] * 3 + [112 / 110 - 1] * 4)


def test_no_gap_is_known_across_a_date_without_bars() -> None:
    same(
        """
        ESH24 2024-02-06T12:00 100 100 100 1
        ESH24 2024-02-08T12:00 110 110 110 1
        ESH24 2024-02-09T12:00 121 121 121 1
        """,
        "opening_gap",
        [NAN, NAN, 0.1],
    )
