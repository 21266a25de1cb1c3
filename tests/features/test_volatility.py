import numpy as np
import pytest

from robust_fin.features.prices import ratio, realised_volatility
from robust_fin.features.registry import compute_features
from tests.bars import close_bars, zigzag

NAN = float("nan")


def test_realised_volatility_is_the_root_mean_square_of_bar_returns() -> None:
    bars = close_bars("""
        ESH24 2024-02-06T12:00 100
        ESH24 2024-02-06T12:01 110
        ESH24 2024-02-06T12:02 110
        ESH24 2024-02-06T12:03 99
    """)
    two = [NAN, NAN, (0.1**2 / 2) ** 0.5, (0.1**2 / 2) ** 0.5]
    np.testing.assert_allclose(realised_volatility(bars, span=2), two, rtol=1e-12)
    np.testing.assert_allclose(realised_volatility(bars, span=1), [NAN, 0.1, 0, 0.1], rtol=1e-12)


def test_a_ratio_to_nothing_is_undefined() -> None:
    above, below = np.array([1.0, 1.0, 0.0, NAN, 1.0]), np.array([2.0, 0.0, 0.0, 1.0, NAN])
    np.testing.assert_array_equal(ratio(above, below), [0.5, NAN, NAN, NAN, NAN])


def test_both_spans_of_a_market_that_goes_up_and_down_by_1_percent() -> None:
    found = compute_features(zigzag(62), ["volatility_60bar", "volatility_5bar"])
    assert found.isna().all(axis=1).tolist() == [True] * 60 + [False] * 2
    up, down = 0.01, 1 - 1 / 1.01
    hour = ((up**2 + down**2) / 2) ** 0.5
    assert found["volatility_60bar"].iloc[-2:].tolist() == pytest.approx([hour] * 2)
    five = [((2 * up**2 + 3 * down**2) / 5) ** 0.5, ((3 * up**2 + 2 * down**2) / 5) ** 0.5]
    assert found["volatility_5bar"].iloc[-2:].tolist() == pytest.approx([v / hour for v in five])


def test_a_market_that_stood_still_for_an_hour_has_no_ratio() -> None:
    found = compute_features(zigzag(62, step=0), ["volatility_60bar", "volatility_5bar"])
    assert found["volatility_60bar"].iloc[-2:].tolist() == [0, 0]
    assert found["volatility_5bar"].isna().all()


def test_the_step_across_a_roll_counts_as_a_return_of_nothing() -> None:
    found = compute_features(zigzag(70, roll=65), ["volatility_60bar"])["volatility_60bar"]
    up, down = 0.01, 1 - 1 / 1.01
    assert found.iloc[64] == pytest.approx(((30 * up**2 + 30 * down**2) / 60) ** 0.5)
    assert found.iloc[65] == pytest.approx(((29 * up**2 + 30 * down**2) / 60) ** 0.5)
