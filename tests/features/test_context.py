import numpy as np

from robust_fin.features.registry import compute_features
from tests.bars import close_bars

NAN = float("nan")


def test_vix_changes_by_trading_date() -> None:
    bars = close_bars("""
        ESH24 2024-02-06T12:00 100
        ESH24 2024-02-06T15:59 100
        ESH24 2024-02-06T17:00 100
        ESH24 2024-02-07T12:00 100
        ESM24 2024-02-07T12:01 500
        ESM24 2024-02-08T12:00 500
        ESM24 2024-02-12T12:00 500
    """).assign(vix=[20.0, 20.0, 25.0, 25.0, 25.0, 15.0, 18.0])
    found = compute_features(bars, ["vix", "vix_change_1d"])
    assert found["vix"].tolist() == [20, 20, 25, 25, 25, 15, 18]
    expected = [NAN, NAN, 0.25, 0.25, 0.25, -0.4, NAN]  # the 9th has no bar
    np.testing.assert_allclose(found["vix_change_1d"], expected, rtol=1e-12)
