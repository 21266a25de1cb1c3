"""Ctrl-C and SIGTERM in a running process, and resume."""

import signal
from pathlib import Path

import pytest

from robust_fin.training.recovery.checkpoint_files import read_checkpoint
from tests.background_runs import SMALL, BackgroundRun, run_to_end
from tests.run_comparison import assert_equal_runs
from tests.signals import TARGET


@pytest.mark.parametrize(
    ("number", "stage", "hook", "step"),
    [
        (signal.SIGINT, "", "on_validation_start", 43),  # the end of the first epoch
        (signal.SIGTERM, "refit", "on_train_batch_end", 12),
    ],
)
def test_interrupted_run_resumes_to_the_same_result(
    undisturbed: Path, tmp_path: Path, number: signal.Signals, stage: str, hook: str, step: int
) -> None:
    folder, log = tmp_path / "cut", tmp_path / "cut.log"
    callback = {"_target_": TARGET, "hook": hook, "step": step, "number": int(number), "times": 1}
    callback["refit"] = stage == "refit"
    words = [f"+callbacks.signals.{key}={value}" for key, value in callback.items()]
    words += [f"hydra.run.dir={folder}", f"cache.folder={undisturbed.parent / 'cache'}"]
    process = BackgroundRun([*SMALL, *words], log=log)
    assert process.exit_code() == 130, process.output()
    message = (
        f"stopped after step {step}; to continue: python -m robust_fin.train resume={folder}\n"
    )
    assert message in process.output()
    assert "Traceback" not in process.output()
    last = read_checkpoint(folder / "checkpoints" / stage / "last.ckpt")
    assert last["global_step"] == step
    assert not (folder / "metrics.json").exists()
    run_to_end([f"resume={folder}", "modules=[tests]"], log=log)
    assert_equal_runs(undisturbed, folder)
