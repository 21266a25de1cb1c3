import math

import numpy as np
import pytest

from robust_fin.features.registry import compute_features
from robust_fin.features.session import BIN, binned_volume, value_area, volume_profile
from tests.bars import hand_bars

NAN = float("nan")
NAMES = ["point_of_control_1d", "value_area_high_1d", "value_area_low_1d"]


def at(place: float) -> float:
    """The price so many bins above 5000."""
    return 5000 * math.exp(place * BIN)


def areas(rows: list[list[float]], control: list[int]) -> list[list[int]]:
    found = value_area(np.array(rows, dtype=np.float64), np.array(control))
    return [edge.tolist() for edge in found]


def test_the_value_area_takes_the_richer_neighbour_until_it_holds_70_percent() -> None:
    # goal 70: 40, then 20 above, then 15 below makes 75
    assert areas([[5, 15, 40, 20, 10, 10]], [2]) == [[1], [3]]
    # goal 70: the control alone; and all of it upwards, then downwards
    assert areas([[10, 80, 10], [40, 30, 30], [30, 30, 40]], [1, 0, 2]) == [[1, 0, 1], [1, 1, 2]]


def test_of_equal_neighbours_the_upper_one_joins_first() -> None:
    assert areas([[20, 50, 20, 10]], [1]) == [[1], [2]]


def test_empty_bins_are_walked_through() -> None:
    assert areas([[0, 50, 0, 0, 50]], [1]) == [[1], [4]]


def test_bins_that_only_other_dates_reached_are_no_neighbours() -> None:
    assert areas([[30, 0, 60, 0, 0], [0, 0, 60, 0, 30]], [2, 2]) == [[0, 2], [2, 4]]


def test_a_date_without_volume_has_an_area_of_one_bin() -> None:
    assert areas([[0, 0, 0]], [0]) == [[0], [0]]


def test_volume_is_spread_evenly_over_the_bins_a_bar_touched() -> None:
    # the second bar touches bins 0 to 3, the third bin 2 alone; the date after it begins anew
    bars = hand_bars(f"""
        ESH24 2024-02-06T12:00 {at(0)} {at(0)} {at(0)} 5
        ESH24 2024-02-06T12:01 {at(3.5)} {at(0.5)} {at(1)} 8
        ESH24 2024-02-06T12:02 {at(2.9)} {at(2.1)} {at(2.5)} 3
        ESH24 2024-02-07T12:00 {at(7.2)} {at(6)} {at(7)} 2
    """)
    volume = binned_volume(bars, np.array([at(0), at(6)]))
    assert volume.tolist() == [[7, 2, 5, 2], [1, 1, 0, 0]]


def test_the_profile_of_a_date_is_made_of_prices() -> None:
    bars = hand_bars(f"""
        ESH24 2024-02-06T12:00 {at(0)} {at(0)} {at(0)} 10
        ESH24 2024-02-06T12:01 {at(4.5)} {at(4.5)} {at(4.5)} 50
        ESH24 2024-02-06T12:02 {at(5.5)} {at(5.5)} {at(5.5)} 40
        ESH24 2024-02-07T12:00 {at(0)} {at(0)} {at(0)} 0
    """)
    profile = volume_profile(bars)
    assert profile.control.tolist() == pytest.approx([at(4.5), NAN], nan_ok=True)
    assert profile.high.tolist() == pytest.approx([at(6), NAN], nan_ok=True)
    assert profile.low.tolist() == pytest.approx([at(4), NAN], nan_ok=True)


def test_the_features_are_of_the_previous_trading_date_alone() -> None:
    bars = hand_bars(f"""
        ESH24 2024-02-06T12:00 {at(0)} {at(0)} {at(0)} 30
        ESH24 2024-02-06T12:01 {at(9.5)} {at(9.5)} {at(9.5)} 70
        ESH24 2024-02-06T17:00 5100 5100 5100 1000
        ESH24 2024-02-07T12:00 4900 4900 4900 1
        ESH24 2024-02-09T12:00 5000 5000 5000 1
    """)
    found = compute_features(bars, NAMES)
    for name, place in zip(NAMES, (9.5, 10, 9), strict=True):
        expected = [NAN, NAN, at(place) / 5100 - 1, at(place) / 4900 - 1, NAN]
        np.testing.assert_allclose(found[name], expected, rtol=1e-9)


def test_a_roll_moves_the_levels_with_the_prices() -> None:
    bars = hand_bars(f"""
        ESH24 2024-02-06T12:00 {at(0)} {at(0)} {at(0)} 9
        ESH24 2024-02-06T12:01 {at(2)} {at(2)} {at(2)} 1
        ESM24 2024-02-06T12:02 {2 * at(2)} {2 * at(2)} {2 * at(2)} 1
        ESM24 2024-02-07T12:00 {2 * at(3)} {2 * at(3)} {2 * at(3)} 1
    """)
    found = compute_features(bars, NAMES)["point_of_control_1d"]
    np.testing.assert_allclose(found, [NAN] * 3 + [math.exp(-2.5 * BIN) - 1], rtol=1e-9)
