"""What every place where jobs can run has in common."""

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
