import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robust_fin import select
from robust_fin.market.synthetic import synthetic_market
from tests.bars import config

QUICK = ("cache.folder=null", "select.draws=50", "select.repeats=2", "select.parts=3")


def run_select(folder: Path, *words: str) -> dict[str, Any]:
    """Return select.json of a run on a few synthetic bars."""
    assert select.main(["+experiment=smoke", f"hydra.run.dir={folder}", *QUICK, *words]) == 0
    return json.loads((folder / "select.json").read_text())


def test_bars_after_the_training_span_do_not_affect_the_ranking(tmp_path: Path) -> None:
    bars = synthetic_market(20_000, seed=4, signal=0.2).bars
    bars.to_parquet(tmp_path / "whole.parquet")
    whole = run_select(tmp_path / "a", f"source.path={tmp_path / 'whole.parquet'}")
    last = pd.Timestamp(whole["folds"][0]["scored"][-1]["last_date"], tz="UTC")
    later = bars["time"] > last + pd.Timedelta("2D")
    assert later.sum() > 2_000
    shocked = bars.copy()
    shocked.loc[later, ["open", "high", "low", "close"]] *= 1.5
    shocked.loc[later, "volume"] += 7
    shocked.to_parquet(tmp_path / "shocked.parquet")
    words = [f"source.path={tmp_path / 'shocked.parquet'}", "source.accept=[tick,scale]"]
    other = run_select(tmp_path / "b", *words)
    assert whole["data_sha256"] != other["data_sha256"]
    assert whole["folds"] == other["folds"]


def test_run_folder_and_console_contain_the_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run_select(tmp_path / "r", "select.k=2")
    text = capsys.readouterr().out
    (fold,) = answer["folds"]
    assert fold["proposed"][0] == "close_change_pct"  # the bounce that synthetic bars have
    assert fold["train_rows_judged_elsewhere"] == 0
    assert len(fold["scored"]) == 3
    assert {c["name"] for c in fold["candidates"]} == set(config("features=top5").features.names)
    words = (tmp_path / "r" / "features.txt").read_text().strip()
    assert words == answer["override"] == f"features.names=[{','.join(fold['proposed'])}]"
    assert config("+experiment=top5", words).features.names == fold["proposed"]
    assert words in text
    assert "of the 2 proposed have an interval above 0" in text
    assert all(c["name"] in text for c in fold["candidates"])
    assert "val or test rows of another fold" not in text
    assert np.isfinite(fold["learner"]["all"]["rank_ic"]["low"])


@pytest.mark.slow
def test_every_fold_is_ranked_and_rows_judged_elsewhere_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("split=purged_kfold", "split.k=2", "split.refit=false", "features=study")
    answer = run_select(tmp_path / "r", *words)
    assert [fold["fold"] for fold in answer["folds"]] == [0, 1]
    first = answer["folds"][0]
    assert first["train_rows_judged_elsewhere"] == first["train_rows"]
    text = capsys.readouterr().out
    assert f"{first['train_rows']:,} of the {first['train_rows']:,} training rows are" in text
    assert answer["override"] == f"features.names=[{','.join(first['proposed'])}]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("select.learner=forest",), "select.learner=forest must be one of ridge, lightgbm"),
        (("select.k=0",), "select.k=0 must be a whole number from 1 to 100000"),
        (("select.parts=60",), "60 parts after the first 0.3 of the training rows cannot be cut"),
        (("select.best=3",), "select.best is not a key. Keys of select:"),
    ],
)
def test_wrong_settings_are_reported_without_traceback(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["+experiment=smoke", f"hydra.run.dir={tmp_path}", "source.synthetic.rows=9000"]
    assert select.main([*base, "cache.folder=null", *words]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "select.json").exists()


def test_override_names_the_user_modules() -> None:
    words = select.features_override(["a", "b"], modules=["mine", "yours"])
    assert words == "features.names=[a,b] features.modules=[mine,yours]"
