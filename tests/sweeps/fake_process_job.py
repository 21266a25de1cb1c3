"""A job as a process that does not train: it writes the files of a run into its folder.

Seed 13 fails, seed 7 finishes at once, and every other seed waits until it is asked to stop. A
job that resumes from a checkpoint finishes.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from robust_fin.runtime.process_state import INTERRUPTED, exit_with_parent

MODULE = "tests.sweeps.fake_process_job"


def main(words: list[str]) -> int:
    folder = Path(words[0].partition("=")[2])
    exit_with_parent(folder)
    task = json.loads((folder / "task.json").read_text())
    run, settings = Path(task["run"]), yaml.safe_load(task["config"])
    sys.stdout.write(f"resume {task['resume']}, cwd {Path.cwd()}, {os.environ.get('TOLD')}\n")
    sys.stdout.write(f"tasks {os.environ.get('SLURM_NTASKS')}, process {os.getpid()}\n")
    sys.stdout.flush()
    (run / "bundle").mkdir(exist_ok=True)
    (run / "bundle/config.yaml").write_text(task["config"])
    if settings["seed"] == 13:
        failure = {"error": "NonFiniteError", "message": "the loss is nan at step 3"}
        (run / "failure.json").write_text(json.dumps(failure))
        return 1
    if settings["seed"] != 7 and not task["resume"]:
        return wait_for_stop(run)
    metrics = {"val/skill": 0.01, "test/skill": 0.5, "steps": 7, "seed": settings["seed"]}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return 0


def wait_for_stop(run: Path) -> int:
    """Wait for SIGINT, then write a checkpoint that tells how many signals came."""
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    (run / "held").touch()
    while not asked:
        time.sleep(0.01)
    time.sleep(0.3)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/last.ckpt").write_text(f"asked {len(asked)} times")
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
