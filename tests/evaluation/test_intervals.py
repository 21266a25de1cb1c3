import numpy as np
import pytest
from arch.bootstrap import optimal_block_length
from scipy.stats import spearmanr

from robust_fin.evaluation.intervals import (
    COLUMNS,
    DateBootstrap,
    DatedRows,
    Interval,
    block_length,
    date_weights,
    expanded_tail,
    full_dates,
    rank_ic_of,
)
from tests.evaluation.tables import predictions


def persistent(size: int, *, memory: float, seed: int = 0) -> np.ndarray:
    shocks = np.random.default_rng(seed).normal(size=size)
    series = np.zeros(size)
    for at in range(1, size):
        series[at] = memory * series[at - 1] + shocks[at]
    return series


@pytest.mark.parametrize("size", [30, 176, 700])
@pytest.mark.parametrize("memory", [-0.5, 0.0, 0.3, 0.9, 0.99])
def test_block_length_matches_arch(size: int, memory: float) -> None:
    series = persistent(size, memory=memory, seed=size)
    expected = optimal_block_length(series)["stationary"].iloc[0]
    assert block_length(series) == pytest.approx(max(expected, 1.0), rel=1e-9)


@pytest.mark.parametrize("series", [[], [1.0], [2.0, 2.0, 2.0], [1.0, 2.0], [0.0] * 50])
def test_block_length_of_a_constant_is_1(series: list[float]) -> None:
    assert block_length(np.array(series)) == 1.0


def test_every_sample_has_the_full_number_of_dates() -> None:
    weights = date_weights(30, draws=500, seed=1)
    assert weights.shape == (500, 30)
    assert (weights.sum(axis=1) == 30).all()
    assert weights.mean() == 1
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.25  # circular: no date is favoured


def test_blocks_have_the_requested_mean_length() -> None:
    def neighbours(block: float) -> float:
        weights = date_weights(200, draws=400, seed=0, block=block)
        return float(np.mean((weights[:, :-1] > 0) & (weights[:, 1:] > 0)))

    assert neighbours(20.0) > neighbours(1.0) + 0.1


def test_most_persistent_series_sets_the_block_length() -> None:
    short, long = persistent(200, memory=0.0), persistent(200, memory=0.9)
    samples = DateBootstrap.for_series(short, long, draws=10, seed=0)
    assert samples.block == max(block_length(short), block_length(long)) > 3
    assert samples.weights.shape == (10, 200)


def test_interval_of_a_mean_matches_the_textbook() -> None:
    series = np.random.default_rng(0).normal(size=800)
    samples = DateBootstrap(date_weights(800, draws=4000, seed=0, block=1.0), 1.0)
    sums = np.stack([series, np.ones_like(series)], axis=1)
    result = samples.interval(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
    error = 1.96 * series.std() / np.sqrt(800)
    assert result.estimate == pytest.approx(series.mean(), rel=1e-9)
    assert result.high - result.low == pytest.approx(2 * error, rel=0.05)


@pytest.mark.parametrize(("blocks", "share"), [(10, 0.0085), (29, 0.0185), (100_000, 0.025)])
def test_few_blocks_widen_the_interval(blocks: float, share: float) -> None:
    assert expanded_tail(blocks) == pytest.approx(share, abs=2e-4)
    assert expanded_tail(1.0) == expanded_tail(2.0) < 1e-6


def test_long_blocks_widen_the_interval() -> None:
    series = np.random.default_rng(0).normal(size=60)
    sums, weights = series[:, None], date_weights(60, draws=2000, seed=0, block=5.0)
    result = DateBootstrap(weights, 5.0).interval(sums, lambda drawn: drawn[:, 0])
    plain = np.percentile(
        weights @ series, [100 * expanded_tail(12), 100 - 100 * expanded_tail(12)]
    )
    assert [result.low, result.high] == pytest.approx(plain.tolist())


def test_interval_of_few_dates_has_its_nominal_coverage() -> None:
    rng, held = np.random.default_rng(0), 0
    samples = DateBootstrap(date_weights(12, draws=1000, seed=0, block=1.0), 1.0)
    for _ in range(1000):
        sums = np.stack([rng.normal(size=12), np.ones(12)], axis=1)
        result = samples.interval(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
        held += result.low < 0 < result.high
    assert 930 <= held <= 968  # plain percentiles: 905


def test_interval_that_cannot_be_computed_is_nan() -> None:
    samples = DateBootstrap(date_weights(3, draws=50, seed=0, block=1.0), 1.0)
    result = samples.interval(np.ones((3, 1)), lambda drawn: np.full(len(drawn), np.nan))
    assert np.isnan([result.low, result.high]).all()
    assert not result.is_above(-1.0)
    assert not result.is_below(1.0)
    assert Interval(0.2, 0.1, 0.3).is_above(0.0)
    assert Interval(-0.2, -0.3, -0.1).is_below(0.0)


def test_date_is_short_below_a_quarter_of_the_rows_of_a_usual_date() -> None:
    assert full_dates(np.array([1380, 345, 344, 1380])).tolist() == [True, True, False, True]
    # many short dates do not make each other usual
    assert full_dates(np.array([3, 3, 3, 3, 60, 60, 3])).tolist() == [False] * 4 + [True] * 2 + [
        False
    ]
    assert full_dates(np.array([1, 1, 1])).tolist() == [True] * 3  # daily bars
    assert full_dates(np.zeros(0, dtype=np.int64)).size == 0


def test_short_date_has_no_daily_ic_and_is_resampled_with_its_neighbour() -> None:
    table = predictions(strength=0.3, dates=4, a_day=40)
    kept = table.drop(index=[*range(3, 40), *range(82, 120)])  # 3 rows of date 0, 2 of date 2
    rows = DatedRows.from_frame(kept, trivial=0.5)
    assert (rows.dates.size, rows.short_dates, int(rows.short.sum())) == (2, 2, 5)
    sums = rows.sums(kept["score"].to_numpy())
    assert sums[:, COLUMNS.index("n")].tolist() == [45.0, 40.0]
    expected = [
        spearmanr(day["score"], day["outcome"]).statistic
        for day in (table.iloc[40:80], table.iloc[120:])
    ]
    assert rows.daily_ic(kept["score"].to_numpy()) == pytest.approx(expected, rel=1e-12)
    whole = spearmanr(kept["score"], kept["outcome"]).statistic
    assert rank_ic_of(sums.sum(axis=0, keepdims=True))[0] == pytest.approx(whole, rel=1e-9)
