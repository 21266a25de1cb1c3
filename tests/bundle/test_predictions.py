"""Mean and standard deviation over members, and the predictions table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from robust_fin.bundle.predictions import Forecast, MemberMean, mean_forecast, predictions_table
from robust_fin.data.examples import make_examples
from robust_fin.data.targets import ForwardReturn, RankTarget
from tests.bars import synthetic_bars


def scores(members: int, rows: int = 50, *, level: float = 0.5, scale: float = 0.1) -> np.ndarray:
    draw = np.random.default_rng(members)
    return (level + scale * draw.standard_normal((members, rows))).astype(np.float32)


@pytest.mark.parametrize("sizes", [[37], [16, 16, 5], [1] * 37])
def test_mean_and_std_match_numpy_for_any_blocks(sizes: list[int]) -> None:
    all_scores = scores(37)
    result = mean_forecast(iter(np.split(all_scores, np.cumsum(sizes)[:-1])))
    expected = all_scores.astype(np.float64)
    np.testing.assert_allclose(result.score, expected.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(result.std, expected.std(axis=0, ddof=1), rtol=1e-12)


def test_small_std_of_large_scores_is_accurate() -> None:
    all_scores = scores(64, level=1000.0, scale=1e-3)
    result = mean_forecast([all_scores])
    np.testing.assert_allclose(
        result.std, all_scores.astype(np.float64).std(axis=0, ddof=1), rtol=1e-9
    )


def test_equal_members_have_std_0() -> None:
    all_scores = np.repeat(scores(1), 20, axis=0)
    result = mean_forecast([all_scores])
    assert np.array_equal(result.score, all_scores[0])
    assert (result.std == 0).all()


def test_single_member_has_its_scores_and_std_nan() -> None:
    mean = MemberMean()
    mean.add(scores(1))
    result = mean.forecast()
    assert np.array_equal(result.score, scores(1)[0])
    assert np.isnan(result.std).all()
    assert np.isnan(Forecast.single(np.zeros(3)).std).all()


def test_table_has_mean_and_std_and_null_std_for_a_single_model(tmp_path: Path) -> None:
    bars = synthetic_bars(2000)
    examples = make_examples(bars, names=["close_change_pct"], target=ForwardReturn(1, None))
    rows = np.flatnonzero(~np.isnan(examples.outcome))[:50]
    target = RankTarget.fit(examples.outcome[rows])
    many, one = mean_forecast([scores(5)]), Forecast.single(np.full(50, 0.5))
    table = predictions_table(examples, rows, {"net": many, "constant": one}, target=target, fold=3)
    net, constant = (table[table["model"] == name] for name in ("net", "constant"))
    np.testing.assert_array_equal(net["score"], many.score.astype(np.float32))
    np.testing.assert_array_equal(net["score_std"], many.std.astype(np.float32))
    assert (constant["score"] == 0.5).all()
    assert constant["score_std"].isna().all()
    assert (table["fold"] == 3).all()
    np.testing.assert_array_equal(net["target"], target.transform(examples.outcome[rows]))
    pd.testing.assert_series_equal(
        net["outcome"], constant["outcome"].set_axis(net.index), check_exact=True
    )
    table.to_parquet(tmp_path / "table.parquet", index=False)
    stored = pq.read_table(tmp_path / "table.parquet")
    assert stored["score_std"].null_count == 50
    assert stored["score"].null_count == 0
