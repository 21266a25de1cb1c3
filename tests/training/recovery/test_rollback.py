"""A rollback is a resume from an earlier checkpoint at half the learning rate."""

import shutil
from pathlib import Path

import lightning as L
import pytest
import torch

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import ConfigError, NonFiniteError
from robust_fin.runs.training import fit_settings, load_first_fold
from robust_fin.training.recovery.checkpoint_files import LAST, AtomicCheckpointIO, read_checkpoint
from robust_fin.training.recovery.checkpoints import BestCheckpoint
from robust_fin.training.recovery.rollback import (
    choose_rollback_step,
    rollback_checkpoints,
    scale_learning_rate,
)
from tests.bars import config
from tests.training.faults import Fault, fit_with, settings
from tests.training.test_lightning_loop import curve, last_weights

PLAIN = Fault("weight", "nan", "middle", "plain", "32-true", 1, "rollback")
TWO = Fault("weight", "nan", "middle", "plain", "32-true", 2, "rollback")
COMPILED = Fault("weight", "nan", "middle", "compiled", "32-true", 1, "rollback")
LONG = {"marks": pytest.mark.slow}

# max_steps ends before the first validation
pytestmark = pytest.mark.filterwarnings("ignore:.*could not find the monitored key")


@pytest.fixture(scope="module")
def data() -> BarDataModule:
    return load_first_fold(settings(PLAIN))


@pytest.mark.parametrize(
    ("kept", "step", "at_least", "expected"),
    [
        ([0], 3, 10, 0),
        ([0, 10], 13, 10, 0),
        ([0, 10], 20, 10, 10),
        ([10, 20], 25, 10, 10),
        ([10, 20], 31, 10, 20),
        ([20, 30], 25, 10, 20),  # none is old enough: the oldest
    ],
)
def test_rollback_goes_back_far_enough(
    kept: list[int], step: int, at_least: int, expected: int
) -> None:
    files = {one: Path(f"kept_{one}.ckpt") for one in kept}
    assert choose_rollback_step(files, step=step, at_least=at_least) == expected


def write_halved(state: Path, folder: Path) -> None:
    """Write a checkpoint as the last.ckpt of a run with 1 rollback."""
    kept = read_checkpoint(state)
    kept["stability"] = {**kept["stability"], "rollbacks": 1, "nonfinite_steps": 1}
    scale_learning_rate(kept, 0.5)
    (folder / "checkpoints").mkdir(parents=True)
    AtomicCheckpointIO().save_checkpoint(kept, folder / "checkpoints" / LAST)


@pytest.mark.parametrize("fault", [pytest.param(PLAIN, **LONG), TWO, COMPILED], ids=str)
def test_rollback_equals_a_resume_at_half_the_rate(
    fault: Fault, tmp_path: Path, data: BarDataModule
) -> None:
    words = ("model.dropout=0.1", "schedule=warmup_constant", "schedule.warmup=4")
    done = fit_with(fault, tmp_path / "rolled", data, *words)
    assert (done.summary.rollbacks, done.summary.nonfinite_steps) == (1, 1)

    place = 3 if fault is PLAIN else 0  # 3 steps back or more; a call holds 6
    words = (*words, "trainer.log_every_n_steps=1")
    fit_with(None, tmp_path / "clean", data, *words, "trainer.max_steps=5", like=fault)
    write_halved(tmp_path / f"clean/checkpoints/kept_{place}.ckpt", tmp_path / "half")
    after = fit_with(None, tmp_path / "half", data, *words, like=fault, resume=True)
    assert after.summary.rollbacks == 1
    assert torch.equal(last_weights(tmp_path / "rolled"), last_weights(tmp_path / "half"))

    rates = curve(tmp_path / "half", "lr")
    expected = {step: 0.003 * min(1, (step + 1) / 4) / 2 for step in range(place, fault.last_step)}
    assert {step: rates[step] for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize("fault", [PLAIN, pytest.param(COMPILED, **LONG)], ids=str)
def test_run_interrupted_after_a_rollback_resumes_after_it(
    fault: Fault, tmp_path: Path, data: BarDataModule
) -> None:
    words = ("model.dropout=0.1", "schedule=warmup_constant")
    fit_with(fault, tmp_path / "whole", data, *words)
    fit_with(fault, tmp_path / "cut", data, *words, "trainer.max_steps=9")
    assert read_checkpoint(tmp_path / "cut/checkpoints" / LAST)["global_step"] == 9
    done = fit_with(None, tmp_path / "cut", data, *words, like=fault, resume=True)
    assert (done.summary.rollbacks, done.summary.nonfinite_steps) == (1, 1)
    assert torch.equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "cut"))


def test_rollback_updates_last_checkpoint_at_once(tmp_path: Path, data: BarDataModule) -> None:
    fault = Fault("feature", "nan", "middle", "plain", "32-true", 1, "rollback")
    with pytest.raises(NonFiniteError, match="after 1 rollbacks"):
        fit_with(fault, tmp_path, data, "schedule=warmup_constant", "schedule.warmup=0")
    kept = read_checkpoint(tmp_path / "checkpoints" / LAST)
    assert kept["global_step"] == 3  # step 6 fails; 6 itself is not 3 steps older, 3 is
    assert kept["stability"]["rollbacks"] == 1
    (optimizer,) = kept["optimizer_states"]
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.0015)


def test_each_rollback_halves_the_rate_again(tmp_path: Path, data: BarDataModule) -> None:
    fault = Fault("feature", "nan", "middle", "plain", "32-true", 1, "rollback")
    with pytest.raises(NonFiniteError, match=r"after 3 rollbacks; stability.max_rollbacks=3"):
        fit_with(fault, tmp_path, data, "stability.max_rollbacks=3", "schedule.warmup=0")
    kept = read_checkpoint(tmp_path / "checkpoints" / LAST)
    assert kept["stability"]["rollbacks"] == kept["stability"]["nonfinite_steps"] == 3
    (group,) = kept["optimizer_states"][0]["param_groups"]
    before = read_checkpoint(tmp_path / "checkpoints/kept_3.ckpt")["optimizer_states"][0]
    assert group["lr"] == pytest.approx(before["param_groups"][0]["lr"] / 8)
    assert len(list((tmp_path / "nonfinite").iterdir())) == 4


def test_best_checkpoint_is_the_best_of_all_attempts(
    tmp_path: Path, data: BarDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 13 fails, after the validation of the first epoch; the rollback goes to step 9."""
    seen: list[tuple[int, float]] = []
    real = BestCheckpoint.on_validation_end

    def noting(best: BestCheckpoint, trainer: L.Trainer, module: L.LightningModule) -> None:
        seen.append((trainer.global_step, float(trainer.callback_metrics["val/skill"])))
        real(best, trainer, module)

    monkeypatch.setattr(BestCheckpoint, "on_validation_end", noting)
    monkeypatch.setattr(Fault, "step", 13)
    words = ("trainer.max_epochs=3", "schedule.warmup=0", "optimizer.lr=0.001")
    done = fit_with(PLAIN, tmp_path, data, *words)
    assert [step for step, _ in seen] == [12, 12, 24, 36]
    assert seen[0] != seen[1]
    kept = read_checkpoint(tmp_path / "checkpoints/last.ckpt")["callbacks"]
    (best,) = [one for name, one in kept.items() if name.startswith("BestCheckpoint")]
    top = max(figure for _, figure in seen)
    assert float(best["best_model_score"]) == pytest.approx(top)
    assert done.summary.chosen_step == best["best_step"] == dict((f, s) for s, f in seen)[top]


def test_two_rollback_checkpoints_are_kept(tmp_path: Path, data: BarDataModule) -> None:
    fit_with(None, tmp_path, data, like=PLAIN)
    folder = tmp_path / "checkpoints"
    assert list(rollback_checkpoints(folder)) == [9, 12]
    shutil.copy(folder / "kept_12.ckpt", folder / "kept_900.ckpt")
    fit_with(None, tmp_path, data, "trainer.max_steps=7", like=PLAIN)
    assert list(rollback_checkpoints(folder)) == [3, 6]


def test_stop_policy_saves_no_rollback_checkpoints(tmp_path: Path, data: BarDataModule) -> None:
    fit_with(None, tmp_path, data, "stability.on_nonfinite=stop", like=PLAIN)
    assert rollback_checkpoints(tmp_path / "checkpoints") == {}


def test_rollbacks_are_logged(tmp_path: Path, data: BarDataModule) -> None:
    fit_with(PLAIN, tmp_path, data)
    assert curve(tmp_path, "stability/rollbacks") == {3: 1.0, 12: 1.0}
    assert curve(tmp_path, "stability/nonfinite_steps") == {3: 1.0, 12: 1.0}


@pytest.mark.parametrize(
    ("word", "telling"),
    [
        ("stability.on_nonfinite=skip", "must be stop or rollback"),
        ("stability.max_rollbacks=-1", "stability.max_rollbacks=-1 must be a whole number"),
        ("stability.keep_every_n_steps=0", "keep_every_n_steps=0 must be a whole number"),
        ("stability.diagnose_every_n_steps=0.5", "diagnose_every_n_steps=0.5 must be"),
    ],
)
def test_invalid_stability_settings_raise(word: str, telling: str) -> None:
    with pytest.raises(ConfigError, match=telling):
        fit_settings(config(word))
