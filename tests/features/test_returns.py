import numpy as np
import pytest

from robust_fin.features.registry import compute_features
from tests.bars import zigzag

SPANS = [1, 2, 3, 5, 10, 30, 60]
NAMES = [f"return_{span}bar" for span in SPANS]
UP, DOWN = 0.01, 1 / 1.01 - 1
HOUR = ((UP**2 + DOWN**2) / 2) ** 0.5  # volatility of the last 60 bars


def test_returns_of_a_market_that_goes_up_and_down_by_1_percent() -> None:
    found = compute_features(zigzag(62), NAMES)
    assert found.isna().all(axis=1).tolist() == [True] * 60 + [False] * 2
    down, up = found.iloc[60] * HOUR, found.iloc[61] * HOUR
    for name, span in zip(NAMES, SPANS, strict=True):
        odd = span % 2
        assert down[name] == pytest.approx(DOWN if odd else 0, abs=1e-15)
        assert up[name] == pytest.approx(UP if odd else 0, abs=1e-15)


def test_each_span_is_its_own() -> None:
    bars = zigzag(62)
    bars["close"] = [100 * 1.001**n for n in range(62)]
    found = compute_features(bars, NAMES).iloc[-1]
    assert found.tolist() == pytest.approx([(1.001**span - 1) / 0.001 for span in SPANS])


def test_they_are_chained_across_a_roll() -> None:
    # row 65 is the first of the new contract, ten times as high; the step to it counts as 0
    found = compute_features(zigzag(70, roll=65), NAMES)
    up = ((29 * UP**2 + 30 * DOWN**2) / 60) ** 0.5
    assert found["return_1bar"].iloc[65] == pytest.approx(0, abs=1e-9)
    assert found["return_2bar"].iloc[65] * up == pytest.approx(DOWN)
    assert found["return_3bar"].iloc[65] * up == pytest.approx(0, abs=1e-12)
    assert np.abs(found.iloc[60:].to_numpy()).max() < 2


def test_a_market_that_stood_still_has_no_returns_in_volatilities() -> None:
    assert compute_features(zigzag(65, step=0), NAMES).isna().all(axis=None)
