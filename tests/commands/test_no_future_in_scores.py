"""Scores of a finished run do not change when the bars after them are cut off or changed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robust_fin import predict
from robust_fin.market.synthetic import synthetic_market
from tests.small_runs import run_training

PRICES = ["open", "high", "low", "close"]


def scores(run: Path, bars: pd.DataFrame, folder: Path, name: str) -> pd.DataFrame:
    bars.to_parquet(folder / f"{name}_bars.parquet")
    out = folder / f"{name}.parquet"
    words = [f"run={run}", f"source.path={folder / f'{name}_bars.parquet'}", f"out={out}"]
    assert predict.main([*words, "source.accept=[tick,scale]"]) == 0  # some bars are multiplied
    return pd.read_parquet(out).set_index(["time", "contract"])


def same_scores_without_the_future(run: Path, bars: pd.DataFrame, folder: Path) -> int:
    half = len(bars) // 2
    shocked = bars.copy()
    shocked.loc[shocked.index[half:], PRICES] *= 1.5
    whole = scores(run, bars, folder, "whole")
    for name, other in (("cut", bars.iloc[:half]), ("shocked", shocked)):
        found = scores(run, other, folder, name)
        known = found[found.index.get_level_values("time") <= bars.iloc[half - 1, 0]]
        assert np.array_equal(known["score"], whole["score"].loc[known.index]), name
    return len(known)


def test_scores_on_synthetic_bars_do_not_depend_on_later_bars(
    smoke_run: Path, tmp_path: Path
) -> None:
    bars = synthetic_market(40_000, seed=7).bars
    assert same_scores_without_the_future(smoke_run, bars, tmp_path) > 10_000


@pytest.mark.slow
def test_scores_on_the_es_file_do_not_depend_on_later_bars(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    path = real_data("es_1m_12contracts.parquet")
    run_training(tmp_path / "run", f"source.path={path}", experiment="top5")
    bars = pd.read_parquet(path)
    assert same_scores_without_the_future(tmp_path / "run", bars, tmp_path) > 500_000
