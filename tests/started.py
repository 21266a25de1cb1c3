"""Training runs in processes of their own, which a test can kill.

The processes are forked from one that has imported the verbs already, so that a start takes no
seconds; they know nothing of pytest.
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
SMALL = (  # a run with dropout, a choice and a refit, and many checkpoints
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


def _train(words: Sequence[str], log: str) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from robust_fin import train

    sys.exit(train.main(list(words)))


class Started:
    """`python -m robust_fin.train WORDS` in another process.

    Args:
        words: of the command line.
        log: what it says on both of its streams; appended.
    """

    def __init__(self, words: Sequence[str], *, log: Path) -> None:
        """Start."""
        self.log = log
        self.process: BaseProcess = SERVER.Process(target=_train, args=(list(words), str(log)))
        self.process.start()

    def wait_for(self, *paths: Path) -> None:
        """Until one of the files is there, or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while not any(path.exists() for path in paths) and self.process.is_alive():
            assert time.monotonic() < deadline, f"{paths} did not appear; {self.said()}"
            time.sleep(0.001)

    def send(self, number: signal.Signals) -> None:
        """A signal, where it is still running."""
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, number)

    def code(self) -> int:
        """The exit code, as subprocess tells it: negative for a signal."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"it did not end; {self.said()}"
        return self.process.exitcode

    def said(self) -> str:
        """Both streams."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def run_to_end(words: Sequence[str], *, log: Path) -> None:
    """Train; the exit code must be 0."""
    started = Started(words, log=log)
    assert started.code() == 0, started.said()
