"""source.block_rows and the cache do not change the results of a run."""

import json
from pathlib import Path

import pandas as pd

from robust_fin import predict
from robust_fin.market.synthetic import synthetic_market
from tests.small_runs import run_training

UNLIKE = {"fit_seconds", "steps_per_second"}


def test_reading_in_blocks_or_from_the_cache_does_not_change_a_run(tmp_path: Path) -> None:
    path = tmp_path / "es.parquet"
    synthetic_market(12_000, seed=0, signal=0.2, start="2022-03-02").bars.to_parquet(path)
    words = [f"source.path={path}", "trainer.max_epochs=1", f"cache.folder={tmp_path / 'kept'}"]
    ways = {
        "whole": ["cache.folder=null"],
        "blocks": ["cache.folder=null", "source.block_rows=1700"],
        "cold": ["source.block_rows=2300"],
        "warm": [],
    }
    found = {way: run_training(tmp_path / way, *words, *more) for way, more in ways.items()}
    figures = [{k: v for k, v in one.items() if k not in UNLIKE} for one in found.values()]
    assert all(one == figures[0] for one in figures)
    tables = [pd.read_parquet(tmp_path / way / "predictions.parquet") for way in ways]
    assert all(one.equals(tables[0]) for one in tables)
    about = [json.loads((tmp_path / w / "bundle" / "provenance.json").read_text()) for w in ways]
    kept = ("data", "data_sha256", "rows_in", "first_bar", "last_bar")
    assert len({tuple(one[name] for name in kept) for one in about}) == 1
    rows = {(tmp_path / way / "rows.json").read_text() for way in ways}
    assert len(rows) == 1

    run = tmp_path / "whole"
    for out, more in (("a.parquet", []), ("b.parquet", ["source.block_rows=999"])):
        given = [f"run={run}", f"source.path={path}", f"out={tmp_path / out}", *more]
        assert predict.main(given) == 0
    a, b = (pd.read_parquet(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert len(a) > 4_000
    assert a.equals(b)
