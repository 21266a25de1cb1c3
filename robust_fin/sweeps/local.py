"""Executors: jobs as processes of this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Handle(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs or waits. Minus the signal where one killed it."""
        ...

    def stop(self) -> None:
        """Ask it to write a checkpoint and end, as SIGINT does. It may have ended already."""
        ...

    def kill(self) -> None:
        """End it at once, with every process it has started. It may have ended already."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Starts jobs. All is called from one thread; nothing here waits.

    A job is one process, which starts those of its ranks itself. What it is told and what it
    leaves behind lies in its run folder, so that a place on another machine needs a shared disk
    and no more.
    """

    def start(
        self, words: Sequence[str], *, environment: Mapping[str, str], log: Path, name: str
    ) -> Handle:
        """Start a job.

        Args:
            words: for a Python of this environment, in this working directory, such as
                `-m robust_fin.train launched=/sweep/3/.job`. Its standard input must be empty, or
                a pipe that ends when the job is to end with this process.
            environment: variables beside those of this process.
            log: file that everything it writes is added to.
            name: for lists of jobs, such as `top5-3`.

        Raises:
            ConfigError: no job can be started there; ends the sweep.
        """
        ...

    def close(self) -> None:
        """No more jobs; those that still run are ended."""
        ...


_CTRL_C = signal.SIGINT if os.name == "posix" else signal.SIGTERM


class LocalJob:
    """A process that ends when this one does.

    Args:
        process: as started, with a pipe for its standard input.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Keep it."""
        self.process = process

    def poll(self) -> int | None:
        """See `Handle.poll`."""
        return self.process.poll()

    def stop(self) -> None:
        """See `Handle.stop`."""
        if self.process.poll() is None:
            self.process.send_signal(_CTRL_C)

    def kill(self) -> None:
        """See `Handle.kill`; its ranks see their standard input end."""
        if self.process.poll() is None:
            self.process.kill()

    def close(self) -> None:
        """Not a zombie, and no open pipe."""
        self.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class LocalExecutor:
    """Starts jobs here."""

    def __init__(self) -> None:
        """None yet."""
        self._jobs: list[LocalJob] = []

    def start(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        name: str,  # noqa: ARG002
    ) -> LocalJob:
        """See `Executor.start`."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                # else the terminal's Ctrl-C reaches it beside the one that the sweep passes on
                process_group=0 if os.name == "posix" else None,
            )
        job = LocalJob(process)
        self._jobs.append(job)
        return job

    def close(self) -> None:
        """See `Executor.close`."""
        for job in self._jobs:
            job.close()
        self._jobs.clear()
