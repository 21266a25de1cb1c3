"""The trial ledger: one line a trial or a look at the lockbox, appended by many processes."""

import contextlib
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from robust_fin.data.targets import KEPT
from robust_fin.errors import ConfigError
from robust_fin.evaluation.multiple_testing import (
    DeflatedSharpe,
    SharpeMoments,
    deflated_sharpe,
    sample_std,
)

log = logging.getLogger(__name__)

Figures = Mapping[str, float | int | None]
# how and where a run is made, not what comes out of it; the bars are known by their fingerprint
_UNSEEN = frozenset({
    "name", "ledger", "threads", "verbose", "score_batch_size", "cache", "hardware", "logger",
    "report", "debug.traceback", "debug.check", "engine", "predictions", "baselines", "instrument",
    "callbacks.progress", "callbacks.lr", "callbacks.histograms", "checkpoint.every_n_steps",
    "stability.keep_every_n_steps", "stability.diagnose_every_n_steps", "population.workers",
    "population.steps_per_call",
    "population.block", "source.path", "source.vix_path", "source.block_rows",
    "trainer.accelerator", "trainer.strategy", "trainer.log_every_n_steps",
    "trainer.enable_checkpointing", "trainer.enable_progress_bar",
    "trainer.enable_model_summary", "trainer.enable_autolog_hparams", "trainer.benchmark",
    "trainer.inference_mode", "trainer.profiler", "trainer.num_sanity_val_steps", "sweep",
    "executor",
})  # fmt: skip
_LISTS = ("seeds", "lr", "weight_decay", "delta", "dropout")  # of a population, a value a member


@dataclass(frozen=True, slots=True)
class LedgerTrial:
    """One training run and what it scored.

    Attributes:
        time: UTC, when it was scored.
        name: of the experiment.
        run: its folder, seen from that of the ledger.
        config: `config_hash` of its settings.
        data_sha256: fingerprint of its bars.
        data: where they came from.
        split: its scheme and settings.
        members: nets in it.
        seed: of the first.
        labels: kept, or what a control did to them.
        val: skill and rank_ic on val; null where there is none.
        test: skill and rank_ic on test; icir, dates, skew and kurtosis of its daily rank IC there.
        commit: of the code, where known.
        settings: that it tried; more than one where members were given settings of their own.
    """

    KIND: ClassVar[str] = "trial"
    time: str
    name: str
    run: str
    config: str
    data_sha256: str
    data: str
    split: Mapping[str, Any]
    members: int
    seed: int
    labels: str
    val: Figures
    test: Figures
    commit: str | None
    settings: int = 1  # lines from before populations were swept have none

    @property
    def icir(self) -> float:
        """Of the test span; NaN where it has none."""
        return _number(self.test.get("icir"))

    def key(self) -> tuple[object, ...]:
        """What makes it another trial: other settings or bars, or the same with other figures.

        A run that was interrupted and resumed, or repeated to the same result, is no other. One
        that was changed in code, or trained longer after its test span had been seen, is.
        """
        figures = (round(_number(self.test.get(name)), 6) for name in ("skill", "rank_ic"))
        return (self.data_sha256, self.config, *(None if math.isnan(x) else x for x in figures))


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the lockbox.

    Attributes:
        time: UTC.
        name: of the experiment.
        run: its folder, seen from that of the ledger.
        config: `config_hash` of its settings.
        data_sha256: fingerprint of its bars.
        lockbox: share of the rows that was locked.
        rows: that were scored.
        scored: figures, with the ends of their intervals.
        commit: of the code that scored them, where known.
    """

    KIND: ClassVar[str] = "look"
    time: str
    name: str
    run: str
    config: str
    data_sha256: str
    lockbox: float
    rows: int
    scored: Figures
    commit: str | None


Entry = LedgerTrial | Look


def as_line(entry: Entry) -> str:
    """One line of JSON, its end included."""
    return json.dumps({"kind": entry.KIND, **asdict(entry)}, allow_nan=False) + "\n"


def from_line(line: str) -> Entry:
    """The entry that a line holds.

    Raises:
        ValueError: it is torn, or was never one.
    """
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("no entry")
    kinds = {kind.KIND: kind for kind in (LedgerTrial, Look)}
    kind = kinds.get(content.pop("kind", None))
    if kind is None:
        raise ValueError("no entry of a known kind")
    if not all(
        isinstance(content.get(name, {}), dict) for name in ("split", "val", "test", "scored")
    ):
        raise ValueError(f"no whole {kind.KIND}")
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"no whole {kind.KIND}: {error}") from error


def config_hash(config: Mapping[str, Any]) -> str:
    """Of all settings that the result depends on, as 16 hexadecimal digits.

    Left out are folders, logging, hardware and speed, and the path of the bars, whose content has
    a fingerprint of its own.
    """
    kept = _seen(config, "")
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def settings_tried(config: Mapping[str, Any]) -> int:
    """How many different settings the members of a run were given.

    Seeds count where they are listed, as those of a sweep are; seed, seed + 1, ... are members of
    one forecast.
    """
    lists = [config.get("population", {}).get(name) for name in _LISTS]
    given = [list(one) for one in lists if one is not None]
    return max(1, len(set(zip(*given, strict=True))))


def _seen(node: Any, key: str) -> Any:
    if not isinstance(node, dict):
        return node
    below = {name: f"{key}.{name}" if key else str(name) for name in node}
    return {name: _seen(node[name], below[name]) for name in node if below[name] not in _UNSEEN}


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


if sys.platform != "win32":
    import fcntl


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
    trials: tuple[LedgerTrial, ...]
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
        trials = tuple(one for one in entries if isinstance(one, LedgerTrial))
        looks = tuple(one for one in entries if isinstance(one, Look))
        return cls(path, trials, looks, tuple(damaged))

    def same_data(self, sha256: str) -> "Trials":
        """Those that read the same bars; damaged lines could be of any."""
        return replace(
            self,
            trials=tuple(one for one in self.trials if one.data_sha256 == sha256),
            looks=tuple(one for one in self.looks if one.data_sha256 == sha256),
        )

    def distinct(self) -> tuple[LedgerTrial, ...]:
        """Each trial once, as it was first, in the order of the lines; see `Trial.key`.

        Controls are left out: nobody would show one as the best.
        """
        first: dict[tuple[object, ...], LedgerTrial] = {}
        for one in (trial for trial in self.trials if trial.labels == KEPT):
            first.setdefault(one.key(), one)
        return tuple(first.values())

    def count(self) -> int:
        """Settings that were tried by the distinct trials; a swept population counts as many."""
        return sum(one.settings for one in self.distinct())

    def deflated(self, daily: Float[np.ndarray, " dates"]) -> DeflatedSharpe:
        """What the ICIR of a run is worth after all these trials, which it is one of.

        Args:
            daily: rank IC of each test date of the run.
        """
        distinct, track = self.distinct(), SharpeMoments.from_daily(daily)
        spread = sample_std([one.icir for one in distinct])
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
