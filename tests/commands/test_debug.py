"""The checks of debug= print what they see, and leave neither a result nor a trial."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robust_fin import train
from tests.small_runs import QUICK

TINY = ("source.synthetic.rows=3000", "features=study", "trainer.max_epochs=1", *QUICK)


def nothing_under_a_root(forecast: Tensor, target: Tensor) -> Tensor:
    """Return 0 with the gradient infinity times 0."""
    return torch.sqrt((forecast - forecast.detach()) ** 2).mean() + 0 * target.mean()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run folder of a debug check, beside a ledger that must stay empty."""
    monkeypatch.setenv("ROBUST_FIN_LEDGER", str(tmp_path / "trials.jsonl"))
    return tmp_path / "run"


def look(run: Path, *words: str) -> int:
    code = train.main(["+experiment=smoke", f"hydra.run.dir={run}", *TINY, *words])
    assert not (run / "metrics.json").exists()
    assert not (run.parent / "trials.jsonl").exists()
    return code


def test_overfit_batch_reports_that_the_net_learned(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert look(run, "debug=overfit_batch", "debug.check.rows=8") == 0
    said = capfd.readouterr().out
    found = re.search(
        r"after ([\d,]+) steps on one batch of 8 rows .*, ([\d.]+)% of the best", said
    )
    assert found is not None
    assert 10 < int(found[1].replace(",", "")) < 5000
    assert 0 < float(found[2]) <= 10.0


def test_overfit_batch_fails_if_the_net_cannot_learn(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("debug=overfit_batch", "debug.check.max_steps=50", "optimizer.lr=1e-9")
    assert look(run, *words) == 1
    said = capfd.readouterr().err
    assert "error: the net cannot memorise one batch: after 50 steps on one batch" in said
    assert json.loads((run / "failure.json").read_text())["error"] == "CheckError"


def test_one_step_prints_shapes_and_norms(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert look(run, "debug=one_step", "model.hidden=[16,8]", "model.head_start=null") == 0
    rows = {
        cells[0].strip(): [one.strip() for one in cells[1:]]
        for line in capfd.readouterr().out.splitlines()
        if len(cells := line.strip("│ ").split("│")) == 3
    }
    assert rows["train: features"][0] == "256 x 5"
    assert rows["train: loss"][0] == "one number"
    assert rows["blocks.1.0.weight: gradient"][0] == "8 x 16"
    assert float(rows["blocks.1.0.weight: gradient"][1]) > 0
    assert float(rows["head.bias: update"][1]) == pytest.approx(0.003 / 20, rel=1e-3)  # warmup
    assert float(rows["val: loss_trivial"][1]) > 0
    assert "test: forecast, in ranks" in rows
    assert not [name for name in rows if name.startswith("test:") and "forecast" not in name]


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:Error detected in PowBackward0")
def test_anomaly_names_the_operation_that_made_nan(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = f"loss._target_={__name__}.nothing_under_a_root"
    assert look(run, "debug=anomaly", "~loss.delta", "loss=huber", bad) == 1
    said = capfd.readouterr().err
    assert "error: Function 'PowBackward0' returned nan values in its 0th output" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_reports_a_clean_training(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert look(run, "debug=anomaly", "debug.check.max_steps=3") == 0
    assert "No backward pass made NaN in 3 steps" in capfd.readouterr().out


def test_profile_writes_tables_and_a_trace(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert look(run, "debug=profile", "debug.check.max_steps=4") == 0
    folder = run / "profile"
    assert {path.name for path in folder.iterdir()} == {
        "hooks.txt", "operations.txt", "trace.json",
    }  # fmt: skip
    assert "run_training_epoch" in (folder / "hooks.txt").read_text()
    rows = [line.split() for line in (folder / "operations.txt").read_text().splitlines()]
    (steps,) = (row[-1] for row in rows if row and row[0] == "Optimizer.step#AdamW.step")
    assert steps == "4"
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert len([one for one in events if one.get("name") == "aten::addmm"]) >= 12
    assert "4 steps, " in capfd.readouterr().out
