"""Every run of a project counts once in one ledger, however it was started."""

from pathlib import Path

import pytest

from robust_fin import train
from robust_fin.ledger.trials import Trials
from tests.small_runs import QUICK, read_metrics

SMALL = ("features.names=[close_change_pct]", "source.synthetic.rows=4000", "trainer.max_epochs=1")


@pytest.mark.slow
def test_every_run_of_a_sweep_and_a_resume_counts_once_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ROBUST_FIN_LEDGER")
    monkeypatch.chdir(tmp_path)
    assert train.main(["+experiment=smoke", *QUICK, *SMALL, "seed=0,1", "-m"]) == 0
    capsys.readouterr()
    ledger = tmp_path / "outputs" / "trials.jsonl"
    found = Trials.read(ledger)
    assert [one.seed for one in found.trials] == [0, 1]
    (sweep,) = (tmp_path / "outputs" / "smoke").iterdir()
    said = [(sweep / job / "output.log").read_text() for job in "01"]
    assert "Trial 1 on these bars." in said[0]
    assert "Trial 2 of 2 on these bars." in said[1]
    assert [one.run for one in found.trials] == [f"smoke/{sweep.name}/{job}" for job in (0, 1)]
    metrics = read_metrics(sweep / "1")
    for span in ("val", "test"):
        for name in ("skill", "rank_ic"):
            assert getattr(found.trials[1], span)[name] == metrics[f"{span}/{name}"]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert train.main([f"resume={sweep / '0'}"]) == 0
    assert "Trial 1 of 2 on these bars." in capsys.readouterr().out
    assert list(elsewhere.iterdir()) == []
    assert len(Trials.read(ledger).distinct()) == 2


def test_failed_run_is_not_a_trial(tmp_path: Path) -> None:
    ledger = tmp_path / "trials.jsonl"
    words = (f"hydra.run.dir={tmp_path / 'run'}", f"ledger={ledger}", "optimizer.lr=1e30")
    assert train.main(["+experiment=smoke", *QUICK, *SMALL, *words]) == 1
    assert not ledger.exists()
