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
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
import torch

from robust_fin.errors import Interrupted, RobustFinError

_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "OMP_NUM_THREADS")
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "robust_fin")


@contextlib.contextmanager
def preserve_process_state() -> Iterator[None]:
    """Give threads, random states, warnings, log levels and environment back as they were.

    A run of the command line owns its process. One that is started from a notebook does not, and
    the cells after it must draw the numbers they would have drawn without it.
    """
    threads, states = torch.get_num_threads(), _random_states()
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_num_threads(threads)
        _restore(states)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _random_states() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: tuple[object, ...]) -> None:
    python, numpy, torch_state = states
    random.setstate(python)  # type: ignore[arg-type]
    np.random.set_state(numpy)  # type: ignore[arg-type]
    assert isinstance(torch_state, torch.Tensor)
    torch.set_rng_state(torch_state)


@contextmanager
def count_signals(answer: Callable[[int, int], object] | None = None) -> Iterator[list[int]]:
    """Collect the numbers of Ctrl-C and SIGTERM as they come.

    Signals come to the main thread only; in another one nothing is collected.

    Args:
        answer: called at once with a signal's number and how many came so far.
    """
    received: list[int] = []

    def count(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        if answer is not None:
            answer(number, len(received))

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {one: signal.signal(one, count) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


INTERRUPTED, FAILED = 130, 1


class RankError(RobustFinError):
    """Processes that train together and do not agree, or one of them that was lost."""


@dataclass(frozen=True, slots=True)
class RankExit:
    """What a rank leaves behind.

    Attributes:
        code: exit code.
        message: what a user can act on; empty where there is nothing to say.
        trace: the traceback.
    """

    code: int
    message: str
    trace: str

    @staticmethod
    def path(folder: Path, rank: int) -> Path:
        """Where a rank leaves it."""
        return folder / f"ending_{rank}.json"

    def write(self, folder: Path, rank: int) -> None:
        """Leave it, at once or not at all."""
        path = self.path(folder, rank)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(self)), encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def read(cls, folder: Path, rank: int) -> "RankExit | None":
        """What a rank left; None where it could not."""
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
    """Do a rank's work and leave how it ended; nothing is printed here.

    An error that nobody foresaw goes to Python's own hook, which leaves its traceback.

    Args:
        folder: of the launch.
        rank: of this process.
        work: what there is to do.
        errors: that a user can fix.
        readable: their message.

    Returns:
        The exit code.
    """

    def leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        lines = "".join(traceback.format_exception(kind, error, trace))
        RankExit(FAILED, "", lines).write(folder, rank)

    sys.excepthook = leave
    try:
        work()
    except errors as error:
        RankExit(FAILED, readable(error), traceback.format_exc()).write(folder, rank)
        return FAILED
    except (Interrupted, KeyboardInterrupt) as stop:
        RankExit(INTERRUPTED, str(stop) or "stopped", "").write(folder, rank)
        return INTERRUPTED
    return 0


def exit_with_parent(folder: Path) -> None:
    """End this process when the one that started it is gone, which its standard input tells.

    Only a pipe tells it: a process that is to outlive its starter gets none.

    Args:
        folder: of the launch; removed then, since nobody else does.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(FAILED)

    threading.Thread(target=wait, daemon=True, name="starter").start()
