import numpy as np
import pytest

from robust_fin.features.registry import compute_features
from tests.bars import hand_bars, zigzag

NAN = float("nan")
UP, DOWN = 0.01, 1 / 1.01 - 1
HOUR = ((UP**2 + DOWN**2) / 2) ** 0.5


def location(text: str, span: int) -> list[float]:
    name = f"close_location_{span}bar"
    return compute_features(hand_bars(text), [name])[name].tolist()


LOW_MIDDLE_HIGH = """
ESH24 2024-03-11T08:30 104 100 100 7
ESH24 2024-03-11T08:31 104 100 102 7
ESH24 2024-03-11T08:32 106 102 106 7
ESH24 2024-03-11T08:33 103 102 102.25 7
ESH24 2024-03-11T08:34 103 103 103 7
"""


def test_the_close_lies_between_low_and_high_of_its_bar() -> None:
    assert location(LOW_MIDDLE_HIGH, 1) == [-1, 0, 1, -0.5, 0]


def test_the_close_lies_between_the_extremes_of_three_bars() -> None:
    expected = [NAN, NAN, 1, 2 * 2.25 / 6 - 1, 2 * 1 / 4 - 1]
    assert location(LOW_MIDDLE_HIGH, 3) == pytest.approx(expected, nan_ok=True)


def test_the_close_lies_between_the_extremes_of_ten_bars() -> None:
    bars = zigzag(12)
    bars["high"], bars["low"] = bars["close"] + 1, bars["close"] - 1
    bars.loc[1, "high"], bars.loc[2, "low"] = 110, 90
    found = compute_features(bars, ["close_location_10bar"])["close_location_10bar"].tolist()
    # rows 1 and 2 leave the last ten bars after rows 10 and 11
    expected = [2 * 11 / 20 - 1, 2 * 10 / 20 - 1, 2 * 11 / 12 - 1]
    assert found == pytest.approx([NAN] * 9 + expected, nan_ok=True)


def test_a_still_market_is_in_the_middle_on_both_sides_of_a_roll() -> None:
    found = compute_features(zigzag(30, step=0, roll=15), ["close_location_10bar"])
    assert found["close_location_10bar"].tolist()[9:] == [0] * 21


def test_range_and_shadows_are_in_volatilities_of_the_hour() -> None:
    bars = zigzag(61)
    last = bars.index[-1]
    names = ["range_1bar", "upper_shadow_1bar", "lower_shadow_1bar"]
    for opened, shadows in ((101, (2, 3)), (98, (3, 1))):
        bars.loc[last, ["open", "high", "low", "close"]] = [opened, 103, 97, 100]
        found = compute_features(bars, names)
        assert found.iloc[:-1].isna().all(axis=None)
        in_points = found.iloc[-1] * HOUR * 100
        assert in_points.tolist() == pytest.approx([6, *shadows])


def test_a_roll_costs_none_of_them_a_row() -> None:
    names = ["range_1bar", "upper_shadow_1bar", "lower_shadow_1bar", "close_location_3bar"]
    assert np.isfinite(compute_features(zigzag(70, roll=65), names).iloc[60:]).all(axis=None)
