"""What every way of choosing trials has in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from hydra.core.override_parser.types import Override

from robust_fin.sweeps.trial import Outcome, Row, Trial


@runtime_checkable
class Strategy(Protocol):
    """Says what is tried next; told what came out.

    A sweep calls `plan` once, then `ask` whenever a place is free and `tell` whenever a job has
    ended, all from one thread. It is over when nothing runs and `ask` has nothing.

    Attributes:
        workers: jobs that run at a time.
    """

    workers: int

    def plan(
        self, words: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]
    ) -> int | None:
        """Take in what is swept, and what was done before an interruption.

        Args:
            words: one a key, what `hydra.sweeper.params` has and the command line; swept ones
                (`is_sweep_override`) beside those that are the same in all jobs.
            folder: of the sweep, which is there.
            done: jobs of an earlier start of this sweep, by number; empty at the first. One that
                is `stopped` goes on from its checkpoint when it is asked for again under its
                number with its overrides; the others must not be asked for again. A failed one
                that is to be tried again is not among them.

        Returns:
            Number of jobs in all, those done included; None where it is not known.

        Raises:
            ConfigError: the words cannot be swept like this; nothing has been started.
        """
        ...

    def ask(self) -> Trial | None:
        """The next job; None where there is none now. It is asked again after each `tell`."""
        ...

    def tell(self, outcome: Outcome) -> None:
        """A job of this start has ended, however it did."""
        ...

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """Its lines in the table; also of the jobs that `plan` was told of."""
        ...

    def default_job(self) -> int | None:
        """Number of the job that has the settings as they are; None where none is known to."""
        ...
