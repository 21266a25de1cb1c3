"""Training runs in background processes that a test can signal and kill.

The processes are forked from a server that has imported the commands already, so that they start at
once. They are not forks of pytest.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["robust_fin.train", "tests.small_runs"])
SMALL = (  # a run with dropout, early selection, a refit and many checkpoints
    "+experiment=smoke",
    "trainer.enable_progress_bar=false",
    "report.pictures=false",
    "trainer.log_every_n_steps=5",
    "features=study",
    "source.synthetic.rows=4000",
    "batch_size=64",
    "model.dropout=0.1",
    "checkpoint.every_n_steps=5",
)
PATIENCE = 240.0  # seconds; a shared machine can be slow


def _train(overrides: Sequence[str], log: str) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from robust_fin import train

    sys.exit(train.main(list(overrides)))


class BackgroundRun:
    """A `python -m robust_fin.train` in another process.

    Args:
        overrides: arguments of the command.
        log: file to which stdout and stderr are appended.
    """

    def __init__(self, overrides: Sequence[str], *, log: Path) -> None:
        self.log = log
        self.process: BaseProcess = SERVER.Process(target=_train, args=(list(overrides), str(log)))
        self.process.start()

    def wait_for(self, *paths: Path) -> None:
        """Wait until one of the files exists or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while not any(path.exists() for path in paths) and self.process.is_alive():
            assert time.monotonic() < deadline, f"{paths} did not appear; {self.output()}"
            time.sleep(0.001)

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process is still running."""
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, number)

    def exit_code(self) -> int:
        """Wait for the end; return the exit code, negative for a signal as in subprocess."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"the run did not end; {self.output()}"
        return self.process.exitcode

    def output(self) -> str:
        """Return what was written to stdout and stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def run_to_end(overrides: Sequence[str], *, log: Path) -> None:
    """Train in a background process and assert that it exits with 0."""
    run = BackgroundRun(overrides, log=log)
    assert run.exit_code() == 0, run.output()
