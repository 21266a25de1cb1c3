"""Mean and spread over members, and the table they end in."""

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


@pytest.mark.parametrize("cuts", [[37], [16, 16, 5], [1] * 37])
def test_mean_and_spread_are_numpys_whatever_the_blocks(cuts: list[int]) -> None:
    whole = scores(37)
    found = mean_forecast(iter(np.split(whole, np.cumsum(cuts)[:-1])))
    wanted = whole.astype(np.float64)
    np.testing.assert_allclose(found.score, wanted.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.std, wanted.std(axis=0, ddof=1), rtol=1e-12)


def test_a_small_spread_on_a_large_level_is_not_lost() -> None:
    whole = scores(64, level=1000.0, scale=1e-3)
    found = mean_forecast([whole])
    np.testing.assert_allclose(found.std, whole.astype(np.float64).std(axis=0, ddof=1), rtol=1e-9)


def test_members_that_agree_have_no_spread() -> None:
    whole = np.repeat(scores(1), 20, axis=0)
    found = mean_forecast([whole])
    assert np.array_equal(found.score, whole[0])
    assert (found.std == 0).all()


def test_one_member_has_its_own_scores_and_no_spread() -> None:
    mean = MemberMean()
    mean.add(scores(1))
    found = mean.forecast()
    assert np.array_equal(found.score, scores(1)[0])
    assert np.isnan(found.std).all()
    assert np.isnan(Forecast.single(np.zeros(3)).std).all()


def test_the_table_has_mean_and_spread_and_null_where_there_is_one_model(tmp_path: Path) -> None:
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
    kept = pq.read_table(tmp_path / "table.parquet")
    assert kept["score_std"].null_count == 50
    assert kept["score"].null_count == 0
