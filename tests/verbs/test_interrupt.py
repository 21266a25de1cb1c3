"""Ctrl-C and SIGTERM in a running process, and going on."""

import signal
from pathlib import Path

import pytest

from robust_fin.training.checkpoint_files import read_checkpoint
from tests.same_run import assert_same_run
from tests.started import SMALL, Started, run_to_end

LAST = {"choice": "checkpoints/last.ckpt", "refit": "checkpoints/refit/last.ckpt"}


@pytest.mark.parametrize(
    ("number", "stage"), [(signal.SIGINT, "choice"), (signal.SIGTERM, "refit")], ids=str
)
def test_a_stopped_run_goes_on_to_the_same_end(
    undisturbed: Path, tmp_path: Path, number: signal.Signals, stage: str
) -> None:
    folder, log = tmp_path / "cut", tmp_path / "cut.log"
    cache = undisturbed.parent / "cache"
    started = Started([*SMALL, f"hydra.run.dir={folder}", f"cache.folder={cache}"], log=log)
    started.wait_for(folder / LAST[stage])
    started.send(number)
    assert started.code() == 130
    step = read_checkpoint(folder / LAST[stage])["global_step"]
    told = f"stopped after step {step}; python -m robust_fin.train resume={folder} goes on\n"
    assert told in started.said()
    assert "Traceback" not in started.said()
    assert not (folder / "metrics.json").exists()
    run_to_end([f"resume={folder}"], log=log)
    assert_same_run(undisturbed, folder)
