"""Checkpoints and signals at any moment of a fit."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import Interrupted, ResumeError
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.training.fitting import Fit, FitPlan, fit
from robust_fin.training.recovery.checkpoint_files import AtomicCheckpointIO, read_checkpoint
from tests.bars import config as composed
from tests.run_comparison import curves
from tests.signals import TARGET

STEPS = 35  # of an epoch
VALIDATING = ("trainer.val_check_interval=10",)


def settings(*words: str, signals: dict[str, object] | None = None) -> DictConfig:
    chosen = composed(
        "+experiment=smoke", "schedule=warmup_constant", "schedule.warmup=20",
        "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "split.refit=false",
        "model.dropout=0.1", "checkpoint.every_n_steps=8", *words,
    )  # fmt: skip
    if signals is not None:
        with open_dict(chosen):
            chosen.callbacks.signals = OmegaConf.create(
                {"_target_": TARGET, "refit": False, **signals}
            )
    return chosen


@pytest.fixture(scope="module")
def data() -> BarDataModule:
    return load_first_fold(settings())


def train(
    folder: Path,
    data: BarDataModule,
    *words: str,
    resume: bool = False,
    signals: dict[str, object] | None = None,
) -> Fit:
    hide_known_warnings()
    data.calls = None
    plan = FitPlan(folder, stage="", max_steps=None, resume=resume)
    return fit(fit_settings(settings(*words, signals=signals)), data, plan)


def assert_same_fit(first: Path, second: Path) -> None:
    ours, theirs = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (first, second))
    assert ours["global_step"] == theirs["global_step"]
    for name, value in ours["state_dict"].items():
        assert torch.equal(value, theirs["state_dict"][name]), name
    assert curves(first) == curves(second)


@pytest.fixture(scope="module")
def uninterrupted(data: BarDataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit that validates after every tenth step and at the end of each epoch."""
    folder = tmp_path_factory.mktemp("fits") / "uninterrupted"
    train(folder, data, *VALIDATING)
    return folder


@pytest.mark.parametrize(
    ("hook", "step", "stops_at", "number"),
    [
        ("on_train_start", 0, 0, signal.SIGINT),
        ("on_before_zero_grad", 15, 16, signal.SIGINT),
        ("on_validation_start", 10, 10, signal.SIGTERM),
        ("on_train_epoch_end", 35, 35, signal.SIGTERM),
        ("on_train_epoch_end", 70, 70, signal.SIGINT),
    ],
)
def test_signal_stops_the_fit_between_two_steps(
    tmp_path: Path,
    data: BarDataModule,
    uninterrupted: Path,
    hook: str,
    step: int,
    stops_at: int,
    number: signal.Signals,
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    asked = {"hook": hook, "step": step, "number": int(number), "times": 1}
    with pytest.raises(Interrupted, match=f"stopped after step {stops_at}; .* resume={tmp_path}"):
        train(tmp_path, data, *VALIDATING, signals=asked)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    if stops_at:
        assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == stops_at
    train(tmp_path, data, *VALIDATING, resume=True)
    assert_same_fit(uninterrupted, tmp_path)


def test_second_signal_stops_at_once(
    tmp_path: Path, data: BarDataModule, uninterrupted: Path
) -> None:
    asked = {"hook": "on_before_zero_grad", "step": 19, "number": int(signal.SIGINT), "times": 2}
    with pytest.raises(Interrupted, match=f"stopped at once; to continue: .* resume={tmp_path}"):
        train(tmp_path, data, *VALIDATING, signals=asked)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == 16
    train(tmp_path, data, *VALIDATING, resume=True)
    assert_same_fit(uninterrupted, tmp_path)


@pytest.mark.slow
def test_signal_waits_for_the_optimizer_step_with_accumulation(
    tmp_path: Path, data: BarDataModule
) -> None:
    words = ("trainer.accumulate_grad_batches=4", "checkpoint.every_n_steps=3")
    train(tmp_path / "uninterrupted", data, *words)
    asked = {"hook": "on_before_backward", "step": 4, "number": int(signal.SIGINT), "times": 1}
    with pytest.raises(Interrupted, match="stopped after step 5;"):
        train(tmp_path / "cut", data, *words, signals=asked)
    train(tmp_path / "cut", data, *words, resume=True)
    assert_same_fit(tmp_path / "uninterrupted", tmp_path / "cut")


def test_last_is_saved_every_n_steps_and_every_epoch(
    tmp_path: Path, data: BarDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int]] = []
    save = AtomicCheckpointIO.save_checkpoint

    def spy(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path) -> None:
        steps.append((Path(path).name, checkpoint["global_step"]))
        save(self, checkpoint, path)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", lambda s, c, p, **_: spy(s, c, p))
    train(tmp_path, data)
    assert [step for name, step in steps if name == "last.ckpt"] == [
        *(8, 16, 24, 32, 35),
        *(40, 48, 56, 64, 70),
    ]
    assert {step for name, step in steps if name == "best.ckpt"} <= {35, 70}
    assert {name for name, _ in steps} == {"last.ckpt", "best.ckpt"}


def test_best_checkpoint_of_a_later_step_is_saved_again(
    tmp_path: Path, data: BarDataModule
) -> None:
    train(tmp_path / "uninterrupted", data)
    train(tmp_path / "cut", data, "trainer.max_epochs=1")
    best = (tmp_path / "uninterrupted/checkpoints/best.ckpt").read_bytes()
    assert read_checkpoint(tmp_path / "uninterrupted/checkpoints/best.ckpt")["global_step"] == 70
    (tmp_path / "cut/checkpoints/best.ckpt").write_bytes(
        best
    )  # as if killed before last.ckpt was written
    done = train(tmp_path / "cut", data, resume=True)
    assert done.summary.chosen_step == 70
    assert_same_fit(tmp_path / "uninterrupted", tmp_path / "cut")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_missing_best_checkpoint_raises_with_a_remedy(
    tmp_path: Path, data: BarDataModule, damage: str
) -> None:
    train(tmp_path, data, "trainer.max_epochs=1")
    path = tmp_path / "checkpoints/best.ckpt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    message = (
        r"best\.ckpt is .*; the weights chosen on val at step 35 are lost\. Remove .*checkpoints"
    )
    with pytest.raises(ResumeError, match=message):
        train(tmp_path, data, resume=True)


def test_older_best_checkpoint_raises(tmp_path: Path, data: BarDataModule) -> None:
    train(tmp_path, data, "trainer.max_epochs=1")
    older = (tmp_path / "checkpoints/best.ckpt").read_bytes()
    train(tmp_path, data, resume=True)
    (tmp_path / "checkpoints/best.ckpt").write_bytes(older)
    with pytest.raises(ResumeError, match=r"is of step 35, older than last\.ckpt expects"):
        train(tmp_path, data, resume=True)


@pytest.mark.slow
def test_early_stopped_fit_stays_stopped_after_resume(tmp_path: Path, data: BarDataModule) -> None:
    words = (
        "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9",
        "optimizer.lr=0.3",
    )  # fmt: skip
    first = train(tmp_path, data, *words)
    assert first.summary.steps < 9 * STEPS
    again = train(tmp_path, data, *words, resume=True)
    assert again.summary.steps_per_second == 0
    assert again.summary.steps == first.summary.steps
    assert again.summary.chosen_step == first.summary.chosen_step
    assert again.summary.objective == first.summary.objective
