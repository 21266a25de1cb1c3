"""val_losses.parquet adds up to val/skill, and is the basis for judging a sweep."""

import json
from pathlib import Path

import pandas as pd
import pytest

from robust_fin import train
from robust_fin.sweeps.sweep_summary import val_skill_by_date
from tests.small_runs import QUICK, run_training

FOLDS = (
    *("split=walk_forward", "split.by=trading_date", "split.test_blocks=2"),
    "split.val_fraction=0.35",  # more than one trading date a fold, with different numbers of rows
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walk-forward run with three members per fold."""
    folder = tmp_path_factory.mktemp("runs") / "folds"
    words = ("source.synthetic.rows=12000", "population.members=3", "optimizer.lr=0.003", *FOLDS)
    run_training(folder, *words, experiment="population")
    return folder


def test_gains_add_up_to_the_skill_of_the_mean_forecast(folds: Path) -> None:
    losses = pd.read_parquet(folds / "val_losses.parquet")
    metrics = json.loads((folds / "metrics.json").read_text())
    assert losses["fold"].nunique() == metrics["folds"] > 1
    assert val_skill_by_date(losses, None).sum() == pytest.approx(metrics["val/skill"], abs=1e-9)
    net = losses[losses["member"].isna()]
    assert (net.groupby("fold")["rows"].nunique() > 1).all()
    assert net["rows"].sum() == metrics["val_rows"]
    assert not net.duplicated(["fold", "trading_date"]).any()


def test_gains_add_up_to_the_skill_of_each_member(folds: Path) -> None:
    losses = pd.read_parquet(folds / "val_losses.parquet")
    members = json.loads((folds / "members.json").read_text())["members"]
    for number in range(3):
        own = members[number::3]
        skill = sum(one["val/skill"] for one in own) / len(own)
        assert val_skill_by_date(losses, number).sum() == pytest.approx(skill, abs=1e-9)


def test_run_without_a_val_span_writes_no_val_losses(tmp_path: Path) -> None:
    assert run_training(tmp_path, "split.val_fraction=0", "split.refit=false")["val/skill"] is None
    assert not (tmp_path / "val_losses.parquet").exists()


@pytest.mark.processes
def test_sweep_compares_its_best_trial_with_the_default_settings(
    tmp_path: Path, capsys: Capture
) -> None:
    words = ("source.synthetic.rows=36000", "source.synthetic.signal=0.3", "split.val_fraction=0.3")
    given = ("sweep=optuna", "sweep.trials=3", f"hydra.sweep.dir={tmp_path}", *QUICK, *words)
    assert train.main(["+experiment=smoke", *given]) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "sweep.csv")
    dates = pd.read_parquet(tmp_path / "0/val_losses.parquet")["trading_date"].nunique()
    assert f"Chosen on some of the {dates} val dates and measured on the others, the best" in said
    assert f"Its {100 * table['val/skill'].max():+.4f} % includes the dates that chose it" in said
    assert "The difference from the default settings (job 0) is " in said
