import numpy as np
import pytest

from robust_fin.evaluation.breakdowns import decile_index
from robust_fin.evaluation.significance import judge
from tests.evaluation.tables import predictions, with_models


def test_deciles_hold_a_tenth_each() -> None:
    assert decile_index(np.arange(20.0)).tolist() == np.repeat(np.arange(10), 2).tolist()


def test_equal_forecasts_share_a_decile() -> None:
    assert decile_index(np.array([1.0, 1.0, 1.0, 1.0, 2.0])).tolist() == [4, 4, 4, 4, 9]


def test_means_are_those_of_the_rows_in_a_decile() -> None:
    table = predictions(strength=0.3)
    found = judge(with_models(table, {})).calibration
    number = decile_index(table["score"].to_numpy())
    by_hand = table.groupby(number)[["score", "target", "outcome"]].mean()
    assert [one.rows for one in found.deciles] == [960] * 10
    for one, (_, mean) in zip(found.deciles, by_hand.iterrows(), strict=True):
        assert one.score == pytest.approx(mean["score"], rel=1e-9)
        assert one.target.estimate == pytest.approx(mean["target"], rel=1e-9)
        assert one.outcome_bp.estimate == pytest.approx(1e4 * mean["outcome"], rel=1e-9)
        assert one.target.low < one.target.estimate < one.target.high
    assert found.error == pytest.approx((by_hand["score"] - by_hand["target"]).abs().mean())


def test_a_constant_forecast_has_one_bin() -> None:
    found = judge(with_models(predictions(strength=0.1).assign(score=0.5), {})).calibration
    assert [one.rows for one in found.deciles] == [9600]
    assert found.deciles[0].target.estimate == pytest.approx(0.5)
