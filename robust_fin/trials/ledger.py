"""The file of the ledger: lines that many processes add to, and what they say together."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from robust_fin.data.label_controls import KEPT
from robust_fin.errors import ConfigError
from robust_fin.evaluation.selection import Deflated, Track, deflated_sharpe, spread_of
from robust_fin.trials.entries import Entry, Look, Trial, as_line, from_line

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)


def append(path: Path, entry: Entry) -> None:
    """Add a line, whole, whoever else is adding one.

    A line that an earlier process left torn is ended first, so that it cannot swallow this one.

    Args:
        path: of the ledger; made with its folder where it is not there.
        entry: what to add.

    Raises:
        ConfigError: the file cannot be written.
    """
    content = as_line(entry).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as descriptor:
            whole = b"\n" + content if _is_torn(descriptor) else content
            written = os.write(descriptor, whole)
            os.fsync(descriptor)
    except OSError as error:
        raise _unusable(path, error, what="written; this run is not counted") from error
    if written < len(whole):
        raise ConfigError(
            f"{path} took {written} of {len(whole)} bytes: the disk is full, or nearly; this run "
            "is not counted. Free some space, and run it again"
        )


@dataclass(frozen=True, slots=True)
class Trials:
    """What a ledger holds.

    Attributes:
        path: of the file.
        trials: every one, in the order of the lines.
        looks: at a lockbox, likewise.
        damaged: numbers of the lines that are no whole entries, from 1.
    """

    path: Path
    trials: tuple[Trial, ...]
    looks: tuple[Look, ...]
    damaged: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> "Trials":
        """Read a ledger; one that is not there yet is empty.

        Raises:
            ConfigError: the file cannot be read.
        """
        entries, damaged = list[Entry](), list[int]()
        for number, line in enumerate(_lines(path), start=1):
            try:
                entries.append(from_line(line))
            except ValueError as error:
                log.warning("line %d of %s cannot be counted: %s", number, path, error)
                damaged.append(number)
        trials = tuple(one for one in entries if isinstance(one, Trial))
        looks = tuple(one for one in entries if isinstance(one, Look))
        return cls(path, trials, looks, tuple(damaged))

    def same_data(self, sha256: str) -> "Trials":
        """Those that read the same bars; damaged lines could be of any."""
        return replace(
            self,
            trials=tuple(one for one in self.trials if one.data_sha256 == sha256),
            looks=tuple(one for one in self.looks if one.data_sha256 == sha256),
        )

    def distinct(self) -> tuple[Trial, ...]:
        """Each trial once, as it was first, in the order of the lines; see `Trial.key`.

        Controls are left out: nobody would show one as the best.
        """
        first: dict[tuple[object, ...], Trial] = {}
        for one in (trial for trial in self.trials if trial.labels == KEPT):
            first.setdefault(one.key(), one)
        return tuple(first.values())

    def count(self) -> int:
        """Settings that were tried by the distinct trials; a swept population counts as many."""
        return sum(one.settings for one in self.distinct())

    def deflated(self, daily: Float[np.ndarray, " dates"]) -> Deflated:
        """What the ICIR of a run is worth after all these trials, which it is one of.

        Args:
            daily: rank IC of each test date of the run.
        """
        distinct, track = self.distinct(), Track.of(daily)
        spread = spread_of([one.icir for one in distinct])
        return deflated_sharpe(track, trials=max(1, self.count()), spread=spread)


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        with (
            _opened(path, os.O_RDONLY) as descriptor,
            open(descriptor, "rb", closefd=False) as file,
        ):
            content = file.read()
    except OSError as error:
        raise _unusable(path, error, what="read") from error
    return content.decode("utf-8", errors="replace").splitlines()


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor that no other process of ours reads or writes through meanwhile."""
    descriptor = os.open(path, flags, 0o644)
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX if flags & os.O_APPEND else fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)  # gives the lock back


def _is_torn(descriptor: int) -> bool:
    """Whether the last line has no end."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"


def _unusable(path: Path, error: OSError, *, what: str) -> ConfigError:
    return ConfigError(
        f"the trial ledger {path} cannot be {what} ({error.strerror}). Give another with "
        "ledger=FILE, the same one for all runs of the project"
    )
