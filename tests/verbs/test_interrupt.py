"""Ctrl-C in a running process, and going on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from robust_fin import train
from tests.runs import read_metrics, run_training

WORDS = (
    "split.refit=false",
    "batch_size=16",
    "model.dropout=0.1",
    "trainer.max_epochs=2",
    "checkpoint.every_n_steps=100",
)


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "robust_fin.train", "+experiment=smoke"]
    command += [f"hydra.run.dir={folder}", "trainer.enable_progress_bar=false", *WORDS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_weights(tmp_path: Path) -> None:
    run_training(tmp_path / "whole", *WORDS)
    process = start(tmp_path / "cut")
    wait_for(tmp_path / "cut/checkpoints/last.ckpt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert not (tmp_path / "cut/metrics.json").exists()
    place = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 100 <= place < 2 * 573

    assert train.main([f"resume={tmp_path / 'cut'}"]) == 0
    assert read_metrics(tmp_path / "cut")["steps"] == read_metrics(tmp_path / "whole")["steps"]
    whole, resumed = (
        load_file(tmp_path / name / "bundle/model.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
