import numpy as np
import pytest

from robust_fin.features.prices import ratio, realised_volatility
from robust_fin.features.registry import compute_features
from tests.bars import close_bars, hand_bars, zigzag

NAN = float("nan")


def feature_values(bars, name: str) -> list[float]:
    return compute_features(bars, [name])[name].tolist()


def assert_feature(bars, name: str, expected: list[float]) -> None:
    np.testing.assert_allclose(feature_values(bars, name), expected, rtol=1e-12, atol=1e-15)


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


def test_close_change_is_within_the_contract() -> None:
    expected = [NAN, 1 / 100, 1 / 101, 1 / 102, NAN, 4 / 200, 2 / 204, 2 / 206, 2 / 208, 2 / 210]
    assert_feature(close_bars(ROLL), "close_change_pct", expected)


def test_bar_momentum_restarts_at_a_roll() -> None:
    bars = close_bars(ROLL)
    assert_feature(
        bars, "price_mom_3bar", [NAN] * 3 + [3 / 100] + [NAN] * 3 + [8 / 200, 6 / 204, 6 / 206]
    )
    assert_feature(bars, "price_mom_5bar", [NAN] * 9 + [12 / 200])


def test_range_and_typical_price_use_only_the_current_bar() -> None:
    bars = hand_bars("""
        ESH24 2024-03-11T08:30 104 100 102 7
        ESM24 2024-03-11T08:31 212 200 206 0
    """)
    assert_feature(bars, "price_range", [4 / 102, 12 / 206])
    assert_feature(bars, "typical_price", [306 / 3, 618 / 3])


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


def test_date_momentum_uses_the_last_bar_of_the_date() -> None:
    # 17:00 on the 7th is the 8th's session: both of the 8th's bars look at 15:59 of the 5th
    bars = close_bars(WEEK)
    three = [NAN] * 4 + [140 / 110, 150 / 110, 160 / 120, 170 / 130]
    assert_feature(bars, "price_mom_3d", (np.array(three) - 1).tolist())
    assert_feature(bars, "price_mom_5d", [NAN] * 7 + [170 / 110 - 1])


def test_date_momentum_is_nan_if_the_earlier_date_has_no_bars() -> None:
    bars = close_bars("""
        ESH24 2024-02-05T12:00 100
        ESH24 2024-02-07T12:00 130
        ESH24 2024-02-08T12:00 150
        ESH24 2024-02-09T12:00 160
        ESH24 2024-02-12T12:00 170
    """)
    assert_feature(bars, "price_mom_3d", [NAN, NAN, 0.5, NAN, 170 / 130 - 1])


def test_a_holiday_does_not_count_as_a_trading_date() -> None:
    # three dates before Friday the 27th is Monday the 23rd, because the 25th was closed
    bars = close_bars("""
        ESH25 2024-12-23T12:00 100
        ESH25 2024-12-24T12:00 110
        ESH25 2024-12-26T12:00 120
        ESH25 2024-12-27T12:00 130
    """)
    assert_feature(bars, "price_mom_3d", [NAN, NAN, NAN, 0.3])


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
    assert_feature(bars, "price_mom_3d", [NAN] * 5 + [1.1**3 - 1, 1.1 * 1.1 * 1.2 - 1])


def test_date_momentum_is_defined_across_a_roll_within_a_session() -> None:
    bars = close_bars("""
        ESH24 2024-03-07T12:00 100
        ESH24 2024-03-08T12:00 105
        ESH24 2024-03-11T12:00 110
        ESH24 2024-03-12T08:30 120
        ESM24 2024-03-12T08:31 500
        ESM24 2024-03-12T08:32 510
    """)
    roll = [120 / 100 - 1, 120 / 100 - 1, 120 / 100 * 510 / 500 - 1]
    assert_feature(bars, "price_mom_3d", [NAN] * 3 + roll)


def test_overlapping_contracts_use_their_own_closes() -> None:
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
    assert_feature(bars, "price_mom_3d", expected)


def test_a_date_missing_in_the_previous_contract_stays_nan() -> None:
    # U's history is M's, whose own bars begin on the 2nd and skip the 6th; H traded on the 6th
    bars = close_bars("""
        ESH24 2024-02-02T11:00 100
        ESM24 2024-02-02T12:00 1000
        ESH24 2024-02-06T12:00 150
        ESM24 2024-02-07T12:00 1100
        ESU24 2024-02-08T12:00 70
        ESU24 2024-02-09T12:00 77
    """)
    assert np.isnan(feature_values(bars, "price_mom_3d")[-1])


def test_chaining_passes_through_a_contract_of_a_single_bar() -> None:
    bars = close_bars("""
        ESH24 2024-02-05T12:00 100
        ESM24 2024-02-06T12:00 900
        ESU24 2024-02-07T12:00 40
        ESU24 2024-02-08T12:00 44
    """)
    assert feature_values(bars, "price_mom_3d")[-1] == pytest.approx(0.1)


SPANS = [1, 2, 3, 5, 10, 30, 60]
NAMES = [f"return_{span}bar" for span in SPANS]
UP, DOWN = 0.01, 1 / 1.01 - 1
HOUR = ((UP**2 + DOWN**2) / 2) ** 0.5  # volatility of the last 60 bars


def test_returns_of_an_alternating_market() -> None:
    found = compute_features(zigzag(62), NAMES)
    assert found.isna().all(axis=1).tolist() == [True] * 60 + [False] * 2
    down, up = found.iloc[60] * HOUR, found.iloc[61] * HOUR
    for name, span in zip(NAMES, SPANS, strict=True):
        odd = span % 2
        assert down[name] == pytest.approx(DOWN if odd else 0, abs=1e-15)
        assert up[name] == pytest.approx(UP if odd else 0, abs=1e-15)


def test_return_features_use_their_spans() -> None:
    bars = zigzag(62)
    bars["close"] = [100 * 1.001**n for n in range(62)]
    found = compute_features(bars, NAMES).iloc[-1]
    assert found.tolist() == pytest.approx([(1.001**span - 1) / 0.001 for span in SPANS])


def test_return_features_are_chained_across_a_roll() -> None:
    # row 65 is the first of the new contract, ten times as high; the step to it counts as 0
    found = compute_features(zigzag(70, roll=65), NAMES)
    up = ((29 * UP**2 + 30 * DOWN**2) / 60) ** 0.5
    assert found["return_1bar"].iloc[65] == pytest.approx(0, abs=1e-9)
    assert found["return_2bar"].iloc[65] * up == pytest.approx(DOWN)
    assert found["return_3bar"].iloc[65] * up == pytest.approx(0, abs=1e-12)
    assert np.abs(found.iloc[60:].to_numpy()).max() < 2


def test_return_features_are_nan_in_a_flat_market() -> None:
    assert compute_features(zigzag(65, step=0), NAMES).isna().all(axis=None)


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


def test_ratio_is_nan_for_a_zero_denominator() -> None:
    above, below = np.array([1.0, 1.0, 0.0, NAN, 1.0]), np.array([2.0, 0.0, 0.0, 1.0, NAN])
    np.testing.assert_array_equal(ratio(above, below), [0.5, NAN, NAN, NAN, NAN])


def test_volatilities_of_an_alternating_market() -> None:
    found = compute_features(zigzag(62), ["volatility_60bar", "volatility_5bar"])
    assert found.isna().all(axis=1).tolist() == [True] * 60 + [False] * 2
    up, down = 0.01, 1 - 1 / 1.01
    hour = ((up**2 + down**2) / 2) ** 0.5
    assert found["volatility_60bar"].iloc[-2:].tolist() == pytest.approx([hour] * 2)
    five = [((2 * up**2 + 3 * down**2) / 5) ** 0.5, ((3 * up**2 + 2 * down**2) / 5) ** 0.5]
    assert found["volatility_5bar"].iloc[-2:].tolist() == pytest.approx([v / hour for v in five])


def test_volatility_ratio_is_nan_in_a_flat_market() -> None:
    found = compute_features(zigzag(62, step=0), ["volatility_60bar", "volatility_5bar"])
    assert found["volatility_60bar"].iloc[-2:].tolist() == [0, 0]
    assert found["volatility_5bar"].isna().all()


def test_volatility_counts_the_step_across_a_roll_as_zero() -> None:
    found = compute_features(zigzag(70, roll=65), ["volatility_60bar"])["volatility_60bar"]
    up, down = 0.01, 1 - 1 / 1.01
    assert found.iloc[64] == pytest.approx(((30 * up**2 + 30 * down**2) / 60) ** 0.5)
    assert found.iloc[65] == pytest.approx(((29 * up**2 + 30 * down**2) / 60) ** 0.5)


UP, DOWN = 0.01, 1 / 1.01 - 1


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


def test_close_location_in_a_bar() -> None:
    assert location(LOW_MIDDLE_HIGH, 1) == [-1, 0, 1, -0.5, 0]


def test_close_location_in_three_bars() -> None:
    expected = [NAN, NAN, 1, 2 * 2.25 / 6 - 1, 2 * 1 / 4 - 1]
    assert location(LOW_MIDDLE_HIGH, 3) == pytest.approx(expected, nan_ok=True)


def test_close_location_in_ten_bars() -> None:
    bars = zigzag(12)
    bars["high"], bars["low"] = bars["close"] + 1, bars["close"] - 1
    bars.loc[1, "high"], bars.loc[2, "low"] = 110, 90
    found = compute_features(bars, ["close_location_10bar"])["close_location_10bar"].tolist()
    # rows 1 and 2 leave the last ten bars after rows 10 and 11
    expected = [2 * 11 / 20 - 1, 2 * 10 / 20 - 1, 2 * 11 / 12 - 1]
    assert found == pytest.approx([NAN] * 9 + expected, nan_ok=True)


def test_close_location_is_zero_in_a_flat_market_across_a_roll() -> None:
    found = compute_features(zigzag(30, step=0, roll=15), ["close_location_10bar"])
    assert found["close_location_10bar"].tolist()[9:] == [0] * 21


def test_range_and_shadows_are_scaled_by_60_bar_volatility() -> None:
    bars = zigzag(61)
    last = bars.index[-1]
    names = ["range_1bar", "upper_shadow_1bar", "lower_shadow_1bar"]
    for opened, shadows in ((101, (2, 3)), (98, (3, 1))):
        bars.loc[last, ["open", "high", "low", "close"]] = [opened, 103, 97, 100]
        found = compute_features(bars, names)
        assert found.iloc[:-1].isna().all(axis=None)
        in_points = found.iloc[-1] * HOUR * 100
        assert in_points.tolist() == pytest.approx([6, *shadows])


def test_location_features_are_defined_across_a_roll() -> None:
    names = ["range_1bar", "upper_shadow_1bar", "lower_shadow_1bar", "close_location_3bar"]
    assert np.isfinite(compute_features(zigzag(70, roll=65), names).iloc[60:]).all(axis=None)
