import numpy as np
import pytest
from safetensors.numpy import load, save
from scipy.stats import rankdata

from robust_fin.data.targets import RankTarget
from robust_fin.errors import TransformError


def tied_returns(rows: int, *, seed: int) -> np.ndarray:
    """Returns of ticks on a wandering price: a sixth of them 0, the others in clusters."""
    draw = np.random.default_rng(seed)
    price = 4000 + np.cumsum(draw.integers(-3, 4, rows + 1)) * 0.25
    return price[1:] / price[:-1] - 1


def returns(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_ranks_by_hand() -> None:
    # five returns: the two 0s share the places 1 and 2
    target = RankTarget.fit(returns(0.3, 0.0, -0.1, 0.2, 0.0))
    got = target.transform(returns(-0.1, 0.0, 0.2, 0.3))
    np.testing.assert_allclose(got, [0, 1.5 / 4, 3 / 4, 1], rtol=1e-15)


@pytest.mark.parametrize("rows", [2, 3, 10, 1000, 200_001])
def test_training_rows_get_the_mean_rank_of_scipy(rows: int) -> None:
    train = tied_returns(rows, seed=rows)
    expected = (rankdata(train) - 1) / (rows - 1)
    np.testing.assert_allclose(RankTarget.fit(train).transform(train), expected, rtol=1e-14)


@pytest.mark.parametrize("rows", [2, 3, 4, 77, 5000, 200_001])
def test_the_inverse_is_exact_on_training_rows(rows: int) -> None:
    train = tied_returns(rows, seed=rows)
    target = RankTarget.fit(train)
    assert np.array_equal(target.inverse(target.transform(train)), train)


def test_the_unseen_is_clipped_outside_and_halfway_between() -> None:
    target = RankTarget.fit(returns(-0.1, 0.0, 0.0, 0.2, 0.3))
    got = target.transform(returns(-9, -0.05, 0.1, 0.25, 9))
    np.testing.assert_allclose(got, [0, 0.5 / 4, 2.5 / 4, 3.5 / 4, 1], rtol=1e-15)


def test_a_rank_between_two_rows_is_interpolated() -> None:
    target = RankTarget.fit(returns(0, 1, 3, 3))
    got = target.inverse(returns(-1, 0, 0.25 / 3, 0.5, 0.75, 1, 2))
    np.testing.assert_allclose(got, [0, 0, 0.25, 2, 3, 3, 3], rtol=1e-12)


def test_an_unknown_return_has_no_rank() -> None:
    target = RankTarget.fit(returns(0, 1, 3))
    assert np.isnan(target.transform(returns(np.nan, 1))).tolist() == [True, False]


def test_ranks_never_fall_as_returns_rise() -> None:
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
def test_median_and_mean_are_those_of_the_training_targets(train: np.ndarray) -> None:
    target = RankTarget.fit(train)
    ranks = (rankdata(train) - 1) / (train.size - 1)
    assert target.rows == train.size
    assert target.median == pytest.approx(np.median(ranks), rel=1e-12)
    assert target.mean == pytest.approx(np.mean(ranks), rel=1e-12)


def test_the_median_is_the_best_constant_under_absolute_loss() -> None:
    train = np.concatenate([tied_returns(999, seed=5), np.zeros(700)])
    target = RankTarget.fit(train)
    ranks = target.transform(train)
    loss = [np.abs(ranks - c).mean() for c in (target.median, *np.linspace(0, 1, 1001))]
    assert loss[0] <= min(loss) + 1e-12


def test_distinct_values_and_counts_are_all_it_keeps() -> None:
    target = RankTarget.fit(returns(0.5, -0.5, 0.5, 0))
    assert target.arrays()["values"].tolist() == [-0.5, 0, 0.5]
    assert target.arrays()["counts"].tolist() == [1, 1, 2]


def test_the_round_trip_through_safetensors_is_exact() -> None:
    target = RankTarget.fit(tied_returns(5000, seed=6))
    again = RankTarget.from_arrays(load(save(target.arrays())))
    fresh = tied_returns(5000, seed=7) * 1.3
    assert np.array_equal(again.transform(fresh), target.transform(fresh))
    assert (again.median, again.mean) == (target.median, target.mean)


def test_a_constant_return_has_no_ranks() -> None:
    words = r"takes 1 distinct value on 3 training rows; there is nothing to rank"
    with pytest.raises(TransformError, match=words):
        RankTarget.fit(np.zeros(3))
