"""Global process state: threads, seeds and log levels, signals, and how a rank reports its exit."""

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import stat
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from robust_fin.errors import Interrupted, RobustFinError
from robust_fin.runtime.files import write_atomic

INTERRUPTED, FAILED = 130, 1  # exit codes
_BEAT_SECONDS = 1.0  # between two signs of life
_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "OMP_NUM_THREADS")
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "robust_fin")


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore threads, random states, warnings, log levels and environment variables on exit.

    A command owns its process. A run that is started from a notebook does not, and the cells
    after it must draw the random numbers that they would have drawn without it.
    """
    import torch  # slow, and a launched rank that only reports its exit does without

    threads, states = torch.get_num_threads(), _random_states()
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_num_threads(threads)
        _restore_random_states(states)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _random_states() -> tuple[Any, ...]:
    import numpy as np
    import torch

    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore_random_states(states: tuple[Any, ...]) -> None:
    import numpy as np
    import torch

    python, numpy, torch_state = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch_state)


@contextmanager
def count_signals(callback: Callable[[int, int], object] | None = None) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of letting them end the process.

    Python delivers signals to the main thread only; in another thread the list stays empty.

    Args:
        callback: called with the signal number and the count so far, as each signal arrives.

    Yields:
        The signal numbers received so far.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        if callback is not None:
            callback(number, len(received))

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class RankError(RobustFinError):
    """Ranks of one run that disagree, or a rank that was lost."""


@dataclass(frozen=True, slots=True)
class RankExit:
    """How a rank ended; written by the rank, read by the process that launched it.

    Attributes:
        code: exit code.
        message: for the user; empty where no user can fix the error.
        trace: the traceback.
    """

    code: int
    message: str
    trace: str

    @staticmethod
    def path(folder: Path, rank: int) -> Path:
        """Return the file of a rank's exit."""
        return folder / f"ending_{rank}.json"

    def write(self, folder: Path, rank: int) -> None:
        """Write the exit of `rank` into the folder of its launch."""
        write_atomic(self.path(folder, rank), json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, folder: Path, rank: int) -> "RankExit | None":
        """Read the exit of `rank`; None where the rank could not write it."""
        path = cls.path(folder, rank)
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def run_and_record_exit(
    folder: Path,
    rank: int,
    work: Callable[[], object],
    *,
    errors: tuple[type[Exception], ...] = (RobustFinError,),
    readable: Callable[[BaseException], str] = str,
) -> int:
    """Run a rank's work and write its `RankExit`; print nothing.

    Unexpected errors reach `sys.excepthook`, which records their traceback.

    Args:
        folder: of the launch.
        rank: of this process.
        work: the work.
        errors: exceptions that a user can fix.
        readable: formats such an exception.

    Returns:
        The exit code.
    """

    def record(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        lines = "".join(traceback.format_exception(kind, error, tb))
        RankExit(FAILED, "", lines).write(folder, rank)

    sys.excepthook = record
    try:
        work()
    except errors as error:
        RankExit(FAILED, readable(error), traceback.format_exc()).write(folder, rank)
        return FAILED
    except (Interrupted, KeyboardInterrupt) as stop:
        RankExit(INTERRUPTED, str(stop) or "stopped", "").write(folder, rank)
        return INTERRUPTED
    return 0


def report_alive(folder: Path, rank: int) -> None:
    """Touch a file every few seconds, until this process ends or is stopped.

    Args:
        folder: of the launch.
        rank: of this process.
    """

    def beat() -> None:
        path = sign_of_life(folder, rank)
        with contextlib.suppress(OSError):  # the folder is gone once the launch has ended
            while True:
                path.touch()
                time.sleep(_BEAT_SECONDS)

    threading.Thread(target=beat, daemon=True, name="sign-of-life").start()


def sign_of_life(folder: Path, rank: int) -> Path:
    """Return the file that `report_alive` touches."""
    return folder / f"alive_{rank}"


def exit_with_parent(folder: Path) -> None:
    """Exit this process when its parent dies, which closes the pipe on standard input.

    Does nothing where standard input is not a pipe: such a process may outlive its parent.

    Args:
        folder: of the launch; deleted on that exit, since the parent no longer can.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(FAILED)

    threading.Thread(target=wait, daemon=True, name="parent-watch").start()
