"""The executor interface, and jobs as processes of this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Handle(Protocol):
    """A started job."""

    def poll(self) -> int | None:
        """Return the exit code, minus the signal if one killed it, or None if it has not ended."""
        ...

    def stop(self) -> None:
        """Ask the job to write a checkpoint and exit, as SIGINT does. No effect once it ended."""
        ...

    def kill(self) -> None:
        """End the job and all its processes at once. No effect once it ended."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Starts jobs without blocking. All calls come from one thread.

    A job is one process, which starts its own ranks. Its input and output are files in its run
    folder, so an executor for other machines needs a shared disk and nothing else.
    """

    def start(
        self, words: Sequence[str], *, environment: Mapping[str, str], log: Path, name: str
    ) -> Handle:
        """Start a job.

        Args:
            words: arguments for the Python of this environment, run in this working directory,
                e.g. `-m robust_fin.train launched=/sweep/3/.job`. Standard input must be empty, or
                a pipe that closes when the job should end together with this process.
            environment: variables added to those of this process.
            log: file that the job's output is appended to.
            name: job name shown in queues, e.g. `top5-3`.

        Raises:
            ConfigError: the executor cannot start jobs. This ends the sweep.
        """
        ...

    def close(self) -> None:
        """Kill the jobs that still run, and release all resources."""
        ...


_CTRL_C = signal.SIGINT if os.name == "posix" else signal.SIGTERM


class LocalJob:
    """A child process that ends together with this process.

    Args:
        process: started with a pipe as standard input.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        """See `Handle.poll`."""
        return self.process.poll()

    def stop(self) -> None:
        """See `Handle.stop`."""
        if self.process.poll() is None:
            self.process.send_signal(_CTRL_C)

    def kill(self) -> None:
        """See `Handle.kill`. The job's ranks exit when their standard input closes."""
        if self.process.poll() is None:
            self.process.kill()

    def close(self) -> None:
        """Kill the process, reap it and close its pipe."""
        self.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class LocalExecutor:
    """Runs each job as a child process."""

    def __init__(self) -> None:
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
                # otherwise the terminal's Ctrl-C reaches the job in addition to the sweep's signal
                process_group=0 if os.name == "posix" else None,
            )
        self._jobs.append(LocalJob(process))
        return self._jobs[-1]

    def close(self) -> None:
        """See `Executor.close`."""
        for job in self._jobs:
            job.close()
        self._jobs.clear()
