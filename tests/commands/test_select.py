import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robust_fin import select
from robust_fin.data.folds import cut_folds
from robust_fin.data.splits import Holdout
from robust_fin.market.synthetic import synthetic_market
from robust_fin.ranking.candidates import RankingPlan
from robust_fin.ranking.learners import LEARNERS, TrainingSpan
from tests.bars import config
from tests.candidates import elsewhere_changed, planted

HOLDOUT = Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False)
QUICK = ("cache.folder=null", "select.draws=50", "select.repeats=2", "select.parts=3")


def trial(learner: str = "ridge") -> select.SelectionTrial:
    plan = RankingPlan(
        k=2, learner=learner, parts=3, first=0.4, repeats=3, draws=200, collinear=0.7, bins=12
    )
    return select.SelectionTrial(plan, LEARNERS[learner], seed=0, threads=1)


def found(folder: Path, *words: str) -> dict[str, Any]:
    """What select.json holds after a run on few synthetic bars."""
    assert select.main(["+experiment=smoke", f"hydra.run.dir={folder}", *QUICK, *words]) == 0
    return json.loads((folder / "select.json").read_text())


@pytest.mark.parametrize("learner", ["ridge", "lightgbm"])
def test_what_was_planted_is_ranked_and_its_copy_is_not_proposed_beside_it(learner: str) -> None:
    if learner == "lightgbm":
        pytest.importorskip("lightgbm")
    names, one = planted()
    span = TrainingSpan.of(one, cut_folds(one, HOLDOUT), 0, names=names, embargo=0)
    answer = select.rank_span(span, trial(learner), fold=0)
    by_name = {c.name: c for c in answer.ranking.candidates}
    assert {name: by_name[name].group for name in ("signal", "copy", "weak")} == {
        "signal": 1, "copy": 1, "weak": 2,
    }  # fmt: skip
    assert {by_name["noise"].group, by_name["slow"].group} == {3, 4}
    assert answer.proposed == ("signal", "weak")
    together = by_name["signal"].together.rank_ic
    assert together.low > 0.15
    assert by_name["weak"].importance.rank_ic.is_above(0)
    for name in ("noise", "slow"):
        assert by_name[name].importance.rank_ic.low < 0.01
        assert by_name[name].direction == pytest.approx(0, abs=0.003)
    assert max(by_name["signal"].places["information"]) <= 2
    learnt = answer.learner
    assert learnt["all"]["rank_ic"].low > 0.2
    assert learnt["proposed"]["rank_ic"].estimate > learnt["all"]["rank_ic"].estimate - 0.02


def test_no_row_of_val_or_test_is_touched() -> None:
    names, one = planted(6_000)
    cut = cut_folds(one, HOLDOUT)
    train = cut.rows[cut.folds[0].train]
    answers = []
    for table in (one, elsewhere_changed(one, train)):
        span = TrainingSpan.of(table, cut_folds(table, HOLDOUT), 0, names=names, embargo=0)
        answers.append(select.rank_span(span, trial(), fold=0).described())
    assert answers[0] == answers[1]


def test_bars_after_the_training_span_change_nothing_in_the_answer(tmp_path: Path) -> None:
    bars = synthetic_market(20_000, seed=4, signal=0.2).bars
    bars.to_parquet(tmp_path / "whole.parquet")
    whole = found(tmp_path / "a", f"source.path={tmp_path / 'whole.parquet'}")
    last = pd.Timestamp(whole["folds"][0]["scored"][-1]["last_date"], tz="UTC")
    later = bars["time"] > last + pd.Timedelta("2D")
    assert later.sum() > 2_000
    shocked = bars.copy()
    shocked.loc[later, ["open", "high", "low", "close"]] *= 1.5
    shocked.loc[later, "volume"] += 7
    shocked.to_parquet(tmp_path / "shocked.parquet")
    other = found(tmp_path / "b", f"source.path={tmp_path / 'shocked.parquet'}")
    assert whole["data_sha256"] != other["data_sha256"]
    assert whole["folds"] == other["folds"]


def test_the_run_folder_and_the_console_have_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = found(tmp_path / "r", "select.k=2")
    text = capsys.readouterr().out
    (fold,) = answer["folds"]
    assert fold["proposed"][0] == "close_change_pct"  # the bounce that synthetic bars have
    assert fold["train_rows_judged_elsewhere"] == 0
    assert len(fold["scored"]) == 3
    assert {one["name"] for one in fold["candidates"]} == set(
        config("features=top5").features.names
    )
    words = (tmp_path / "r" / "features.txt").read_text().strip()
    assert words == answer["override"] == f"features.names=[{','.join(fold['proposed'])}]"
    assert config("+experiment=top5", words).features.names == fold["proposed"]
    assert words in text
    assert "of the 2 proposed have an interval above 0" in text
    assert all(one["name"] in text for one in fold["candidates"])
    assert "validated or tested by another fold" not in text
    assert np.isfinite(fold["learner"]["all"]["rank_ic"]["low"])


@pytest.mark.slow
def test_every_fold_is_ranked_and_rows_that_others_judge_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("split=purged_kfold", "split.k=2", "split.refit=false", "features=study")
    answer = found(tmp_path / "r", *words)
    assert [one["fold"] for one in answer["folds"]] == [0, 1]
    first = answer["folds"][0]
    assert first["train_rows_judged_elsewhere"] == first["train_rows"]
    text = capsys.readouterr().out
    assert f"{first['train_rows']:,} of the {first['train_rows']:,} training rows are" in text
    assert answer["override"] == f"features.names=[{','.join(first['proposed'])}]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("select.learner=forest",), "select.learner=forest must be one of ridge, lightgbm"),
        (("select.k=0",), "select.k=0 must be a whole number, at least 1"),
        (("select.parts=60",), "60 parts after the first 0.3 of the training rows cannot be cut"),
        (("select.best=3",), "select.best is not a key. Keys of select:"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["+experiment=smoke", f"hydra.run.dir={tmp_path}", "source.synthetic.rows=9000"]
    assert select.main([*base, "cache.folder=null", *words]) == 1
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert not (tmp_path / "select.json").exists()


def test_features_of_a_users_module_keep_it() -> None:
    words = select.features_words(["a", "b"], modules=["mine", "yours"])
    assert words == "features.names=[a,b] features.modules=[mine,yours]"


def test_what_could_not_be_computed_is_null() -> None:
    assert select.null_for_nan({"a": [float("nan"), 1.0], "b": ({"c": float("inf")},)}) == {
        "a": [None, 1.0],
        "b": [{"c": None}],
    }
