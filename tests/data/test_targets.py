import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load, save
from scipy.stats import rankdata

from robust_fin.data.targets import (
    ForwardReturn,
    Labels,
    RankScale,
    RankTarget,
    ReturnScale,
    TargetScale,
    apply_label_control,
)
from robust_fin.errors import ConfigError, TransformError
from tests.bars import MINUTE, close_bars, config, instantiate

NAN, NAT = float("nan"), "NaT"

# M overlaps H at 08:31 and 08:32; the minute 08:33 is missing, and a gap of hours follows
OVERLAP = """
ESH24 2024-03-11T08:30 100
ESH24 2024-03-11T08:31 110
ESM24 2024-03-11T08:31 1000
ESH24 2024-03-11T08:32 121
ESM24 2024-03-11T08:32 1200
ESM24 2024-03-11T08:34 1500
ESM24 2024-03-11T17:00 1800
"""


def label(text: str, *, horizon: int, max_gap: float | None = None) -> Labels:
    return ForwardReturn(horizon, max_gap).label(close_bars(text), bar=MINUTE)


def clock(label_end: np.ndarray) -> list[str]:
    chicago = pd.DatetimeIndex(label_end, tz="UTC").tz_convert("America/Chicago")
    return [NAT if pd.isna(stamp) else f"{stamp:%H:%M}" for stamp in chicago]


def test_next_return_is_within_the_contract() -> None:
    labels = label(OVERLAP, horizon=1)
    expected = [0.1, 0.1, 0.2, NAN, 0.25, 0.2, NAN]
    np.testing.assert_allclose(labels.outcome, expected, rtol=1e-12)
    assert clock(labels.label_end) == ["08:32", "08:33", "08:33", NAT, "08:35", "17:01", NAT]
    assert not labels.over_gap.any()


def test_horizon_counts_bars_of_the_contract() -> None:
    labels = label(OVERLAP, horizon=3)
    np.testing.assert_allclose(labels.outcome, [NAN, NAN, 0.8, NAN, NAN, NAN, NAN], rtol=1e-12)
    assert clock(labels.label_end) == [NAT, NAT, "17:01", NAT, NAT, NAT, NAT]


def test_label_end_is_the_end_of_its_last_bar() -> None:
    labels = ForwardReturn(2, None).label(close_bars(OVERLAP), bar=pd.Timedelta("5min"))
    assert clock(labels.label_end) == ["08:37", NAT, "08:39", NAT, "17:05", NAT, NAT]


@pytest.mark.parametrize(
    ("max_gap", "over"),
    [
        (None, []),
        (1, [4, 5]),
        (2, [5]),
        (1.5, [4, 5]),
        (506, []),
    ],
)
def test_gap_longer_than_max_gap_drops_the_label(max_gap, over: list[int]) -> None:
    labels = label(OVERLAP, horizon=1, max_gap=max_gap)
    assert np.flatnonzero(labels.over_gap).tolist() == over
    assert np.flatnonzero(np.isnan(labels.outcome)).tolist() == sorted([3, 6, *over])
    assert np.flatnonzero(np.isnat(labels.label_end)).tolist() == sorted([3, 6, *over])


def test_gap_anywhere_within_the_horizon_drops_the_label() -> None:
    labels = label(OVERLAP, horizon=2, max_gap=1)
    assert np.flatnonzero(labels.over_gap).tolist() == [2, 4]
    np.testing.assert_allclose(labels.outcome, [0.21] + [NAN] * 6, rtol=1e-12)


def test_horizon_as_long_as_the_contract_gives_no_labels() -> None:
    labels = label(OVERLAP, horizon=4, max_gap=1)
    assert np.isnan(labels.outcome).all()
    assert not labels.over_gap.any()


@pytest.mark.parametrize("horizon", [0, -1])
def test_horizon_below_1_raises(horizon: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"target\.horizon={horizon} must be an integer number of bars, >= 1"
    ):
        ForwardReturn(horizon, None)


@pytest.mark.parametrize("max_gap", [0.0, -5.0])
def test_max_gap_not_above_0_raises(max_gap: float) -> None:
    with pytest.raises(ConfigError, match=rf"target\.max_gap={max_gap} must be > 0 minutes"):
        ForwardReturn(1, max_gap)


def tied_returns(rows: int, *, seed: int) -> np.ndarray:
    """Return the returns of a random walk in ticks; about a seventh are 0."""
    draw = np.random.default_rng(seed)
    price = 4000 + np.cumsum(draw.integers(-3, 4, rows + 1)) * 0.25
    return price[1:] / price[:-1] - 1


def returns(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_ranks_of_five_returns() -> None:
    # the two zeros share the positions 1 and 2
    target = RankTarget.fit(returns(0.3, 0.0, -0.1, 0.2, 0.0))
    got = target.transform(returns(-0.1, 0.0, 0.2, 0.3))
    np.testing.assert_allclose(got, [0, 1.5 / 4, 3 / 4, 1], rtol=1e-15)


@pytest.mark.parametrize("rows", [2, 3, 10, 1000, 200_001])
def test_ranks_of_training_rows_match_scipy(rows: int) -> None:
    train = tied_returns(rows, seed=rows)
    expected = (rankdata(train) - 1) / (rows - 1)
    np.testing.assert_allclose(RankTarget.fit(train).transform(train), expected, rtol=1e-14)


@pytest.mark.parametrize("rows", [2, 3, 4, 77, 5000, 200_001])
def test_inverse_is_exact_on_training_rows(rows: int) -> None:
    train = tied_returns(rows, seed=rows)
    target = RankTarget.fit(train)
    assert np.array_equal(target.inverse(target.transform(train)), train)


def test_unseen_returns_are_clipped_or_halfway_between_ranks() -> None:
    target = RankTarget.fit(returns(-0.1, 0.0, 0.0, 0.2, 0.3))
    got = target.transform(returns(-9, -0.05, 0.1, 0.25, 9))
    np.testing.assert_allclose(got, [0, 0.5 / 4, 2.5 / 4, 3.5 / 4, 1], rtol=1e-15)


def test_inverse_interpolates_between_training_rows() -> None:
    target = RankTarget.fit(returns(0, 1, 3, 3))
    got = target.inverse(returns(-1, 0, 0.25 / 3, 0.5, 0.75, 1, 2))
    np.testing.assert_allclose(got, [0, 0, 0.25, 2, 3, 3, 3], rtol=1e-12)


def test_rank_of_nan_is_nan() -> None:
    target = RankTarget.fit(returns(0, 1, 3))
    assert np.isnan(target.transform(returns(np.nan, 1))).tolist() == [True, False]


def test_ranks_increase_with_returns() -> None:
    target = RankTarget.fit(tied_returns(1000, seed=1))
    ranks = target.transform(np.sort(tied_returns(5000, seed=2) * 1.7))
    assert (np.diff(ranks) >= 0).all()
    assert ranks.min() == 0.0
    assert ranks.max() == 1.0


@pytest.mark.parametrize(
    "train",
    [
        returns(1, 1, 1, 2, 3, 3),
        returns(1, 2, 2, 2),
        returns(5, 1, 2, 3),
        returns(2, 1, 3),
        tied_returns(10_000, seed=3),
        tied_returns(10_001, seed=4),
    ],
)
def test_median_and_mean_match_the_training_ranks(train: np.ndarray) -> None:
    target = RankTarget.fit(train)
    ranks = (rankdata(train) - 1) / (train.size - 1)
    assert target.rows == train.size
    assert target.median == pytest.approx(np.median(ranks), rel=1e-12)
    assert target.mean == pytest.approx(np.mean(ranks), rel=1e-12)


def test_median_is_the_best_constant_for_absolute_loss() -> None:
    train = np.concatenate([tied_returns(999, seed=5), np.zeros(700)])
    target = RankTarget.fit(train)
    ranks = target.transform(train)
    loss = [np.abs(ranks - c).mean() for c in (target.median, *np.linspace(0, 1, 1001))]
    assert loss[0] <= min(loss) + 1e-12


def test_rank_target_stores_distinct_values_and_counts() -> None:
    target = RankTarget.fit(returns(0.5, -0.5, 0.5, 0))
    assert target.arrays()["values"].tolist() == [-0.5, 0, 0.5]
    assert target.arrays()["counts"].tolist() == [1, 1, 2]


def test_rank_target_safetensors_round_trip_is_exact() -> None:
    target = RankTarget.fit(tied_returns(5000, seed=6))
    again = RankTarget.from_arrays(load(save(target.arrays())))
    fresh = tied_returns(5000, seed=7) * 1.3
    assert np.array_equal(again.transform(fresh), target.transform(fresh))
    assert (again.median, again.mean) == (target.median, target.mean)


def test_constant_returns_raise() -> None:
    message = r"takes 1 distinct value on 3 training rows; there is nothing to rank"
    with pytest.raises(TransformError, match=message):
        RankTarget.fit(np.zeros(3))


# the two zeros share the positions 1 and 2, so their rank is 1.5 / 4
TARGET = RankTarget.fit(returns(0.0003, 0.0, -0.0001, 0.0002, 0.0))


def test_rank_scale_leaves_ranks_and_forecasts_unchanged() -> None:
    scale, rank = RankScale(start=0.5), np.array([0.25, 0.5], dtype=np.float32)
    assert scale.training_target(outcome=returns(0.1, 0.2), rank=rank) is rank
    forecast = np.array([[0.4, 1.7]], dtype=np.float32)
    assert scale.to_rank(forecast, target=TARGET) is forecast


def test_return_scale_divides_returns_by_the_unit() -> None:
    percent = ReturnScale(unit=0.01, start=0.0)
    got = percent.training_target(outcome=returns(0.0003, -0.02), rank=returns(1.0, 0.0))
    np.testing.assert_allclose(got, [0.03, -2.0], rtol=1e-15)


def test_forecast_return_is_ranked_among_the_training_returns() -> None:
    percent = ReturnScale(unit=0.01, start=0.0)
    # training returns, values halfway between two of them, and values beyond both ends
    forecast = returns(-0.01, 0.0, 0.02, 0.03, 0.01, 0.025, -0.005, -9.0, 9.0)
    expected = [0, 1.5 / 4, 3 / 4, 1, (1.5 / 4 + 3 / 4) / 2, 7 / 8, 1.5 / 8, 0, 1]
    np.testing.assert_allclose(percent.to_rank(forecast, target=TARGET), expected, rtol=1e-12)
    stacked = percent.to_rank(forecast.reshape(3, 3).astype(np.float32), target=TARGET)
    np.testing.assert_allclose(stacked.ravel(), expected, atol=1e-5)


def test_rank_of_keeps_the_order_of_forecasts_within_a_tick() -> None:
    forecast = np.linspace(-9e-5, 9e-5, 101)
    assert (np.diff(TARGET.rank_of(forecast)) > 0).all()
    assert np.unique(TARGET.transform(forecast)).size == 3  # below, at and above 0


def test_rank_of_a_training_return_is_its_target() -> None:
    draw = np.random.default_rng(3)
    train = draw.integers(-40, 41, 5000) * 2.5e-5
    target = RankTarget.fit(train)
    assert np.array_equal(target.rank_of(train), target.transform(train))
    assert np.isnan(target.rank_of(returns(np.nan)))[0]


@pytest.mark.parametrize("unit", [0.0, -0.01, float("inf"), float("nan")])
def test_unit_that_is_not_positive_and_finite_raises(unit: float) -> None:
    with pytest.raises(ConfigError, match=rf"^target_scale.unit={unit} must be a finite return"):
        ReturnScale(unit=unit, start=0.0)


@pytest.mark.parametrize(("choice", "start"), [("rank", 0.5), ("return", 0.0)])
def test_net_starts_at_the_start_of_the_scale(choice: str, start: float) -> None:
    settings = config(f"target_scale={choice}")
    assert isinstance(instantiate(settings.target_scale), TargetScale)
    assert instantiate(settings.model, features=5).head.bias.tolist() == [start]
    assert config(f"target_scale={choice}", "model.head_start=null").model.head_start is None


RANK, OUTCOME = np.array([0.0, 0.25, 1.0]), np.array([-2e-4, 0.0, 3e-4])


def test_kept_labels_are_the_same_arrays() -> None:
    rank, outcome = apply_label_control(RANK, OUTCOME, labels="kept", seed=0)
    assert rank is RANK
    assert outcome is OUTCOME


def test_shuffled_labels_keep_rank_and_outcome_together() -> None:
    rank, outcome = np.arange(1000.0), -np.arange(1000.0)
    mixed, moved = apply_label_control(rank, outcome, labels="shuffled", seed=3)
    assert sorted(mixed) == rank.tolist()
    assert moved.tolist() == (-mixed).tolist()
    assert abs(np.corrcoef(mixed, rank)[0, 1]) < 0.1
    assert (apply_label_control(rank, outcome, labels="shuffled", seed=3)[0] == mixed).all()
    assert (apply_label_control(rank, outcome, labels="shuffled", seed=4)[0] != mixed).any()


def test_swapped_labels_are_reversed() -> None:
    rank, outcome = apply_label_control(RANK, OUTCOME, labels="swapped", seed=0)
    assert rank.tolist() == [1.0, 0.75, 0.0]
    assert outcome.tolist() == [2e-4, 0.0, -3e-4]


def test_unknown_label_control_raises() -> None:
    with pytest.raises(
        ConfigError, match=r"debug.labels=mixed must be one of kept, shuffled, swapped"
    ):
        apply_label_control(RANK, OUTCOME, labels="mixed", seed=0)
