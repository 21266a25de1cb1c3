"""Losses by trading date."""

import numpy as np
import pandas as pd
import pytest

from robust_fin.bundle.predictions import DailyLosses
from robust_fin.metrics import Yardstick

MONDAY, TUESDAY = np.array(["2024-01-08", "2024-01-09"], dtype="datetime64[s]")


@pytest.fixture
def daily() -> DailyLosses:
    dates = np.array([TUESDAY, MONDAY, TUESDAY, TUESDAY])
    return DailyLosses(np.array([0.5, 1.0, 0.55, 0.0]), dates, train_median=0.5)


def test_losses_of_two_dates(daily: DailyLosses) -> None:
    assert daily.dates.tolist() == [MONDAY, TUESDAY]
    assert daily.rows.tolist() == [1, 3]
    # loss of an error of 0.5: 0.1 * (0.5 - 0.05) = 0.045; of 0.05: 0.05**2 / 2 = 0.00125
    assert daily.trivial == pytest.approx([0.045, (0 + 0.00125 + 0.045) / 3])
    exact = daily.losses(np.array([0.5, 1.0, 0.55, 0.0]))
    assert exact.tolist() == [0, 0]


def test_table_has_the_net_first_and_then_members_by_number(daily: DailyLosses) -> None:
    table = daily.table(np.array([0.1, 0.2]), {4: np.array([0.3, 0.4])}, fold=2)
    expected = pd.DataFrame(
        {
            "fold": np.array([2, 2, 2, 2], dtype=np.int32),
            "member": pd.array([None, None, 4, 4], dtype="Int32"),
            "trading_date": np.array([MONDAY, TUESDAY, MONDAY, TUESDAY]),
            "rows": [1, 3, 1, 3],
            "loss": [0.1, 0.2, 0.3, 0.4],
            "loss_trivial": [*daily.trivial, *daily.trivial],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


def test_weighted_mean_over_dates_matches_the_yardstick() -> None:
    draw = np.random.default_rng(0)
    target, score, outcome = draw.random(500), draw.random(500), draw.normal(size=500)
    dates = MONDAY + draw.integers(0, 9, 500) * np.timedelta64(1, "D")
    daily = DailyLosses(target, dates, train_median=0.4)
    figures = Yardstick(target, outcome, train_median=0.4, train_mean=0.5).metrics(score)
    assert np.average(daily.losses(score), weights=daily.rows) == pytest.approx(figures["loss"])
    assert np.average(daily.trivial, weights=daily.rows) == pytest.approx(figures["loss_trivial"])
