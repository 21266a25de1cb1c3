"""Non-finite steps from the command line: exit code, files and replay."""

import subprocess
import sys
from pathlib import Path

import pytest

from robust_fin import replay, train
from robust_fin.data.datamodule import BarDataModule
from robust_fin.training.recovery.record import read_record
from tests.small_runs import QUICK, read_metrics, run_training

WORDS = ("split.refit=false", "trainer.max_epochs=1", "schedule.warmup=0")
STEP = 8


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make a feature of one training row of step 8 NaN; the list gets the time of that row."""
    real, told = BarDataModule.train_tensors, []

    def tensors(data: BarDataModule) -> object:
        x, target = real(data)
        row = int(data.order().begin()[1][STEP][5])
        told.append(str(data.market.examples.time[data.fitted.span("train")[row]])[:16])
        x = x.clone()
        x[row, 2] = float("nan")
        return x, target

    monkeypatch.setattr(BarDataModule, "train_tensors", tensors)
    return told


def start(folder: Path, *words: str) -> int:
    return train.main(["+experiment=smoke", f"hydra.run.dir={folder}", *QUICK, *WORDS, *words])


def test_nonfinite_step_ends_in_one_message_and_exit_code_1(
    spoilt: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path / "run") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: the loss is nan and the gradient norm nan at step 8, before")
    assert "Traceback" not in errors
    assert not (tmp_path / "run/metrics.json").exists()
    assert not (tmp_path / "run/bundle/model.safetensors").exists()
    record = tmp_path / "run/nonfinite/step_8.safetensors"
    assert record.is_file()

    assert replay.main([f"record={record}"]) == 0
    said = capsys.readouterr().out
    assert "step 8 of smoke: loss nan" in said
    assert "first not finite: blocks.0.0 (Linear), its output" in said
    assert "rows that cause it: 1 of 256" in said
    (line,) = [one for one in said.splitlines() if one.startswith("row 5 ")]
    assert "price_range nan" in line
    assert f"{spoilt[0]} UTC   ES" in line


@pytest.mark.usefixtures("spoilt")
def test_number_of_rollbacks_is_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("stability.on_nonfinite=rollback", "stability.max_rollbacks=1")
    assert start(tmp_path / "run", *words) == 1
    assert "(after 1 rollbacks; stability.max_rollbacks=1)" in capsys.readouterr().err
    assert not (tmp_path / "run/metrics.json").exists()
    assert len(list((tmp_path / "run/nonfinite").iterdir())) == 2


def test_successful_rollback_is_counted_in_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = BarDataModule.train_tensors, iter([True])

    def tensors(data: BarDataModule) -> object:
        x, target = real(data)
        if next(bad, False):  # the first attempt alone
            x = x.clone()
            x[int(data.order().begin()[1][STEP][5]), 2] = float("nan")
        return x, target

    monkeypatch.setattr(BarDataModule, "train_tensors", tensors)
    metrics = run_training(tmp_path / "run", *WORDS, "stability.on_nonfinite=rollback")
    assert (metrics["rollbacks"], metrics["nonfinite_steps"]) == (1, 1)
    assert metrics["train/gradient_norm_max"] > 0
    assert metrics["steps"] == 35
    assert read_metrics(tmp_path / "run") == metrics


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "records"), [("stop", 1), ("rollback", 2)])
def test_two_ranks_take_the_same_decision_at_a_nonfinite_step(
    policy: str, records: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "robust_fin.train", "+experiment=smoke", "trainer=ddp"]
    command += [f"hydra.run.dir={tmp_path}", *QUICK, *WORDS, "engine=plain", "optimizer.lr=1e30"]
    command += [f"stability.on_nonfinite={policy}", "stability.max_rollbacks=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "at step 1, before the weights were changed; weights that were not finite" in done.stderr
    found = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    names = [f"rank_{rank}_step_1{end}" for rank in (0, 1) for end in ("", "_2")[:records]]
    assert found == [f"{name}.safetensors" for name in names]
    rows = [read_record(tmp_path / "nonfinite" / name).bad.rows for name in (found[0], found[-1])]
    assert not set(rows[0].tolist()) & set(rows[1].tolist())


def test_fp16_on_a_cpu_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path / "run", "trainer.precision=16-mixed") == 1
    assert "needs a GPU; on a CPU use trainer.precision=bf16-mixed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        ((), "Missing mandatory value: record"),
        (("record=absent",), "record=absent cannot be read as a record"),
        (("record=absent", "rows=0"), "rows=0 must be a whole number from 1 to 1000000000"),
        (("record=absent", "step=3"), "error: step is not a key"),
    ],
)
def test_replay_of_a_missing_record_is_one_message(
    words: tuple[str, ...], telling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay.main(list(words)) == 1
    assert telling in capsys.readouterr().err
