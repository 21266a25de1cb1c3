import numpy as np
import pytest

from robust_fin.data.targets import RankScale, RankTarget, ReturnScale, TargetScale
from robust_fin.errors import ConfigError
from tests.bars import config, instantiate


def returns(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


# of five returns 0 takes the places 1 and 2, so its rank is 1.5 of 4
TARGET = RankTarget.fit(returns(0.0003, 0.0, -0.0001, 0.0002, 0.0))


def test_ranks_are_trained_and_judged_as_they_are() -> None:
    scale, rank = RankScale(start=0.5), np.array([0.25, 0.5], dtype=np.float32)
    assert scale.training_target(outcome=returns(0.1, 0.2), rank=rank) is rank
    forecast = np.array([[0.4, 1.7]], dtype=np.float32)
    assert scale.to_rank(forecast, target=TARGET) is forecast


def test_a_return_is_trained_in_units() -> None:
    percent = ReturnScale(unit=0.01, start=0.0)
    got = percent.training_target(outcome=returns(0.0003, -0.02), rank=returns(1.0, 0.0))
    np.testing.assert_allclose(got, [0.03, -2.0], rtol=1e-15)


def test_a_forecast_return_has_the_rank_among_the_training_returns() -> None:
    percent = ReturnScale(unit=0.01, start=0.0)
    # the training returns' own ranks, half way between two of them, and beyond both ends
    forecast = returns(-0.01, 0.0, 0.02, 0.03, 0.01, 0.025, -0.005, -9.0, 9.0)
    expected = [0, 1.5 / 4, 3 / 4, 1, (1.5 / 4 + 3 / 4) / 2, 7 / 8, 1.5 / 8, 0, 1]
    np.testing.assert_allclose(percent.to_rank(forecast, target=TARGET), expected, rtol=1e-12)
    stacked = percent.to_rank(forecast.reshape(3, 3).astype(np.float32), target=TARGET)
    np.testing.assert_allclose(stacked.ravel(), expected, atol=1e-5)


def test_ranking_keeps_the_order_of_forecasts_within_a_tick() -> None:
    forecast = np.linspace(-9e-5, 9e-5, 101)
    assert (np.diff(TARGET.rank_of(forecast)) > 0).all()
    assert np.unique(TARGET.transform(forecast)).size == 3  # below, at and above 0


def test_the_rank_of_a_training_return_is_its_target() -> None:
    draw = np.random.default_rng(3)
    train = draw.integers(-40, 41, 5000) * 2.5e-5
    target = RankTarget.fit(train)
    assert np.array_equal(target.rank_of(train), target.transform(train))
    assert np.isnan(target.rank_of(returns(np.nan)))[0]


@pytest.mark.parametrize("unit", [0.0, -0.01, float("inf"), float("nan")])
def test_a_unit_is_a_size(unit: float) -> None:
    with pytest.raises(ConfigError, match=rf"^target_scale.unit={unit} must be a finite return"):
        ReturnScale(unit=unit, start=0.0)


@pytest.mark.parametrize(("choice", "start"), [("rank", 0.5), ("return", 0.0)])
def test_the_net_starts_where_the_scale_says(choice: str, start: float) -> None:
    settings = config(f"target_scale={choice}")
    assert isinstance(instantiate(settings.target_scale), TargetScale)
    assert instantiate(settings.model, features=5).head.bias.tolist() == [start]
    assert config(f"target_scale={choice}", "model.head_start=null").model.head_start is None
