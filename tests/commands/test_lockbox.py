"""evaluate lockbox=true scores the locked rows as predict does, and logs every look."""

import json
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from robust_fin import evaluate, predict
from robust_fin.ledger.trials import Trials
from tests.small_runs import reseal, run_training

SMALL = ("features.names=[close_change_pct]", "source.synthetic.rows=8000", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run that locks a fifth and one that locks nothing, with a shared ledger."""
    folder = tmp_path_factory.mktemp("project")
    words = (*SMALL, f"ledger={folder / 'trials.jsonl'}")
    run_training(folder / "locked", *words, "split.lockbox=0.2")
    run_training(folder / "open", *words)
    return folder


@pytest.fixture
def fresh(project: Path) -> Path:
    """Return the project with all looks removed."""
    ledger = project / "trials.jsonl"
    lines = [line for line in ledger.read_text().splitlines(True) if '"kind": "trial"' in line]
    assert len(lines) == 2
    ledger.write_text("".join(lines))
    (project / "locked" / "lockbox.json").unlink(missing_ok=True)
    return project


def test_look_scores_the_locked_rows_as_predict_does(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = fresh / "locked", tmp_path / "scores.parquet"
    metrics = (run / "metrics.json").read_text()
    tested = pd.read_parquet(run / "predictions.parquet")
    assert evaluate.main([f"run={run}", "lockbox=true"]) == 0
    output = capsys.readouterr().out
    assert predict.main([f"run={run}", f"out={out}"]) == 0
    labelled = pd.read_parquet(out).dropna(subset="outcome")
    locked = labelled.iloc[round(len(labelled) * 0.8) :]
    assert tested["label_end"].max() <= locked["time"].min()
    result = json.loads((run / "lockbox.json").read_text())
    ic = spearmanr(locked["score"], locked["outcome"]).statistic
    assert result["rank_ic"] == pytest.approx(ic, rel=1e-9)
    assert result["rank_ic_low"] < ic < result["rank_ic_high"]
    assert result["rows"] == len(locked)
    assert result["first_bar"] == str(locked["time"].iloc[0])
    assert result["last_bar"] == str(locked["time"].iloc[-1])
    assert result["looks_before"] == 0
    assert f"over the constant, rank IC {ic:.4f} [" in output
    assert "]\nLockbox: No skill can be claimed" in output  # two dates
    assert (run / "metrics.json").read_text() == metrics


def test_every_look_is_logged_and_reported_by_the_next(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fresh / "locked"
    assert evaluate.main([f"run={run}", "lockbox=true"]) == 0
    first = capsys.readouterr().out
    (look,) = Trials.read(fresh / "trials.jsonl").looks
    assert (look.run, look.lockbox) == ("locked", 0.2)
    assert look.rows == json.loads((run / "lockbox.json").read_text())["rows"]
    assert "Look 1 at the lockbox, the last 0.2 of these bars." in first
    assert "seen before" not in first
    assert evaluate.main([f"run={run}", "lockbox=true"]) == 0
    second = capsys.readouterr().out
    assert "Look 2 at the lockbox" in second
    assert f"It was seen before by locked ({look.time})." in second
    assert "so they are no longer out of sample." in second
    assert len(Trials.read(fresh / "trials.jsonl").looks) == 2
    assert json.loads((run / "lockbox.json").read_text())["looks_before"] == 1


def test_runs_that_scored_locked_rows_as_test_rows_are_named(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([f"run={fresh / 'locked'}", "lockbox=true"]) == 0
    output = capsys.readouterr().out
    assert "1 of the 2 trials on these bars locked fewer rows" in output
    assert "scored some of these as val or test rows: open." in output


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert evaluate.main([*words, "lockbox=true"]) == 1
    return capsys.readouterr().err


def test_run_without_a_lockbox_is_rejected(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, f"run={fresh / 'open'}")
    assert "open has no lockbox: split.lockbox=0. Train with split.lockbox=0.1" in message
    assert not Trials.read(fresh / "trials.jsonl").looks


def test_changed_bars_are_rejected_and_nothing_is_shown(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fresh / "locked" / "bundle" / "config.yaml"
    before = path.read_text()
    config = OmegaConf.load(path)
    config.source.synthetic.seed = 77
    OmegaConf.save(config, path)
    reseal(fresh / "locked")
    try:
        message = error_of(capsys, f"run={fresh / 'locked'}")
    finally:
        path.write_text(before)
        reseal(fresh / "locked")
    sha256 = Trials.read(fresh / "trials.jsonl").trials[0].data_sha256
    assert f"was trained on {sha256[:12]}: its lockbox is not in them" in message
    assert not Trials.read(fresh / "trials.jsonl").looks
    assert not (fresh / "locked" / "lockbox.json").exists()


def test_look_that_cannot_be_logged_shows_nothing(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = fresh / "trials.jsonl"
    ledger.rename(fresh / "kept")
    ledger.mkdir()
    try:
        message = error_of(capsys, f"run={fresh / 'locked'}")
    finally:
        ledger.rmdir()
        (fresh / "kept").rename(ledger)
    assert f"the trial ledger {ledger} cannot be " in message
    assert not (fresh / "locked" / "lockbox.json").exists()


def test_lockbox_takes_a_single_run(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = f"run=[{fresh / 'locked'},{fresh / 'open'}]"
    assert "lockbox=true needs one run folder" in error_of(capsys, runs)
    assert not Trials.read(fresh / "trials.jsonl").looks
