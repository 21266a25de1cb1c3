"""Ctrl-C and SIGTERM in a running process, and resume."""

import signal
from pathlib import Path

import pytest

from robust_fin.training.recovery.checkpoint_files import read_checkpoint
from tests.same_run import assert_same_run
from tests.signals import TARGET
from tests.started import SMALL, Started, run_to_end


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
    asked = {"_target_": TARGET, "hook": hook, "step": step, "number": int(number), "times": 1}
    asked["refit"] = stage == "refit"
    words = [f"+callbacks.signals.{key}={value}" for key, value in asked.items()]
    words += [f"hydra.run.dir={folder}", f"cache.folder={undisturbed.parent / 'cache'}"]
    started = Started([*SMALL, *words], log=log)
    assert started.code() == 130, started.said()
    message = (
        f"stopped after step {step}; to continue: python -m robust_fin.train resume={folder}\n"
    )
    assert message in started.said()
    assert "Traceback" not in started.said()
    last = read_checkpoint(folder / "checkpoints" / stage / "last.ckpt")
    assert last["global_step"] == step
    assert not (folder / "metrics.json").exists()
    run_to_end([f"resume={folder}"], log=log)
    assert_same_run(undisturbed, folder)
