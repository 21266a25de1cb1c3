"""The end of a submitit job that is on the node: a job's process, and what it is asked there."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from robust_fin.runtime.launcher import write_task
from robust_fin.runtime.process_state import INTERRUPTED
from robust_fin.sweeps.local import LocalExecutor

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

STOP = signal.SIGUSR1  # write a checkpoint and end
_LIMIT = signal.SIGUSR2  # from SLURM: the time is nearly over, or another's job goes first
_SECONDS_POLL = 0.1
# the job starts its ranks itself: it is none of srun's, to Lightning neither
_OF_SRUN = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclass(frozen=True, slots=True)
class NodeCommand:
    """What submitit calls on the node.

    Attributes:
        words: for the node's Python.
        environment: variables beside those of the submission.
        log: file that everything the job writes is added to.
        folder: of the task.
        task: of the job; a job that comes back from the queue is told to go on.
        needed: files that it goes on from; without them it starts anew.
        starter: process of this machine that the job ends with; None where it is on another.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    task: Mapping[str, Any]
    needed: tuple[Path, ...]
    starter: int | None

    def __call__(self) -> int:
        """Run the job; its exit code, minus the signal where one killed it."""
        back_in_the_queue = signal.getsignal(_LIMIT)  # submitit's own answer
        with _received() as received:
            # blocked where this process was started
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            self._tell()
            code = self._run(received)
        if _LIMIT in received and code == INTERRUPTED and callable(back_in_the_queue):
            back_in_the_queue(_LIMIT, None)  # ends this process
        return code

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit runs when the job comes back from the queue: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _tell(self) -> None:
        """Write the task; a job that was here before goes on, whatever ended it."""
        from submitit import JobEnvironment

        place = JobEnvironment()
        started = place.paths.folder / f"{place.job_id}.started"
        came_back = started.exists() and all(one.is_file() for one in self.needed)
        self.folder.mkdir(exist_ok=True)
        write_task(self.folder, {**self.task, "resume": self.task["resume"] or came_back})
        started.touch()

    def _run(self, received: Sequence[int]) -> int:
        for name in _OF_SRUN:
            os.environ.pop(name, None)
        parent, asked = os.getppid(), False
        with _ignored(STOP, _LIMIT):
            job = LocalExecutor().start(
                self.words, environment=self.environment, log=self.log, name=self.log.parent.name
            )
        while (code := job.poll()) is None:
            if received and not asked:
                asked = True
                job.stop()
            if _is_insisted(received) or os.getppid() != parent or self._is_left():
                job.kill()
            time.sleep(_SECONDS_POLL)
        job.close()
        return code

    def _is_left(self) -> bool:
        if self.starter is None:
            return False
        try:
            os.kill(self.starter, 0)
        except (ProcessLookupError, PermissionError):  # its number may be another's by now
            return True
        return False


def _is_insisted(received: Sequence[int]) -> bool:
    """Whether the job is to end at once: SIGTERM is what scancel sends before it kills.

    SIGINT does not count: a terminal's Ctrl-C may reach this process beside what the sweep sends.
    """
    earnest = [one for one in received if one in (STOP, signal.SIGTERM)]
    return len(earnest) > 1 and earnest[-1] == signal.SIGTERM


@contextmanager
def _ignored(*numbers: int) -> Iterator[None]:
    """Let a process that is started now ignore signals that are meant for this one.

    Some clusters send them to every process of a job, where they would kill it.
    """
    before = {one: signal.signal(one, signal.SIG_IGN) for one in numbers}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _received() -> Iterator[list[int]]:
    """Signals so far; none of them ends this process."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)

    before = {
        one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM, STOP, _LIMIT)
    }
    try:
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
