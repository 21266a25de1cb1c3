"""The trial ledger: a JSON Lines file of trials and lockbox looks, shared by many processes."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    robust_std,
)
from robust_fin.runtime.files import open_locked
from robust_fin.runtime.records import NUMBER, OPTIONAL_TEXT, Kind, check_fields

log = logging.getLogger(__name__)

Figures = Mapping[str, float | int | None]
# settings that do not affect the result; the bars are identified by their fingerprint
NOT_HASHED = frozenset({
    "name", "ledger", "threads", "verbose", "score_batch_size", "cache", "hardware", "logger",
    "report", "debug.traceback", "debug.check", "engine", "predictions", "baselines", "instrument",
    "callbacks.progress", "callbacks.lr", "callbacks.histograms", "checkpoint.every_n_steps",
    "stability.keep_every_n_steps", "stability.diagnose_every_n_steps", "population.workers",
    "population.steps_per_call",
    "population.block", "source.path", "source.vix_path", "source.block_rows",
    "source.root", "source.tick", "source.accept",
    "trainer.accelerator", "trainer.strategy", "trainer.log_every_n_steps",
    "trainer.enable_checkpointing", "trainer.enable_progress_bar",
    "trainer.enable_model_summary", "trainer.enable_autolog_hparams", "trainer.benchmark",
    "trainer.inference_mode", "trainer.profiler", "trainer.num_sanity_val_steps", "sweep",
    "executor",
})  # fmt: skip
_LISTS = ("seeds", "lr", "weight_decay", "delta", "dropout")  # of a population, per member


@dataclass(frozen=True, slots=True)
class LedgerTrial:
    """A training run and its scores.

    Attributes:
        time: UTC time of scoring.
        name: name of the experiment.
        run: run folder, relative to the folder of the ledger.
        config: `config_hash` of the settings.
        data_sha256: fingerprint of the bars.
        data: origin of the bars.
        split: split scheme and its settings.
        members: number of nets.
        seed: seed of the first net.
        labels: kept, or the name of a control.
        val: skill and rank_ic on val; null if there is no val.
        test: skill and rank_ic on test; icir, dates, skew and kurtosis of the daily rank IC.
        commit: commit of the code, if known.
        settings: number of settings tried; above 1 if members have different settings.
        tested: products (sorted list) and first and last trading date of the test rows.
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
    settings: int = 1  # absent in lines written before populations could be swept
    tested: Mapping[str, Any] = field(default_factory=dict)  # absent in lines of older runs

    @property
    def icir(self) -> float:
        """ICIR on test; NaN if there is none."""
        return _nan_for_null(self.test.get("icir"))

    def key(self) -> tuple[object, ...]:
        """Return what identifies the trial: bars, settings and rounded test scores.

        A run that was resumed, or repeated with the same result, has the same key. A run with
        changed code, or trained further after its test span was scored, has another.
        """
        scores = (round(_nan_for_null(self.test.get(name)), 6) for name in ("skill", "rank_ic"))
        return (self.data_sha256, self.config, *(None if math.isnan(x) else x for x in scores))


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the lockbox.

    Attributes:
        time: UTC time.
        name: name of the experiment.
        run: run folder, relative to the folder of the ledger.
        config: `config_hash` of the settings.
        data_sha256: fingerprint of the bars.
        lockbox: share of the rows that was locked.
        rows: number of scored rows.
        scored: figures, with the ends of their intervals.
        commit: commit of the code, if known.
        tested: as in `LedgerTrial`, of the locked rows.
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
    tested: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Void:
    """A statement that the earlier trials of a run do not count.

    Attributes:
        time: UTC time.
        run: run folder, relative to the folder of the ledger.
        reason: shown wherever the trials are counted.
    """

    KIND: ClassVar[str] = "void"
    time: str
    run: str
    reason: str


Scored = LedgerTrial | Look
Entry = Scored | Void


def share_test_rows(first: Scored, second: Scored) -> bool:
    """Return True if two entries scored rows of the same product on overlapping dates.

    Entries on the same file always count together; they are the only match for the lines of older
    runs, which do not say what they tested.
    """
    if first.data_sha256 == second.data_sha256:
        return True
    one, other = first.tested, second.tested
    if not one or not other or not set(one["products"]) & set(other["products"]):
        return False
    return bool(one["first"] <= other["last"] and other["first"] <= one["last"])


def format_line(entry: Entry) -> str:
    """Format an entry as a line of JSON with its newline."""
    return json.dumps({"kind": entry.KIND, **asdict(entry)}, allow_nan=False) + "\n"


_TEXTS = ("time", "name", "run", "config", "data_sha256", "data", "labels", "reason")
_FIGURES = ("val", "test", "scored")
_INTEGERS, _OBJECTS = ("members", "seed", "settings", "rows"), ("split", "tested", *_FIGURES)
_KINDS: Mapping[str, Kind] = {
    **{**dict.fromkeys(_TEXTS, str), **dict.fromkeys(_INTEGERS, int), "lockbox": NUMBER},
    **{**dict.fromkeys(_OBJECTS, dict), "commit": OPTIONAL_TEXT},
}


def parse_line(line: str) -> Entry:
    """Parse the entry of a line.

    Raises:
        ValueError: the line is truncated or is not an entry.
    """
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    kinds = {kind.KIND: kind for kind in (LedgerTrial, Look, Void)}
    kind = kinds.get(content.pop("kind", None))
    if kind is None:
        raise ValueError(f"kind must be one of {', '.join(kinds)}")
    given = {name: _KINDS[name] for name in content if name in _KINDS}
    check_fields(content, given, origin=f"the {kind.KIND}")
    for figures in (content.get(name, {}) for name in _FIGURES):
        check_fields(figures, dict.fromkeys(figures, (*NUMBER, type(None))), origin="a figure")
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"incomplete {kind.KIND}: {error}") from error


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash all settings that the result depends on, as 16 hexadecimal digits.

    Folders, logging, hardware, speed and the path of the bars are left out; see `NOT_HASHED`.
    """
    kept = _hashed_settings(config, "")
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _hashed_settings(node: Any, key: str) -> Any:
    if not isinstance(node, dict):
        return node
    keys = {name: f"{key}.{name}" if key else str(name) for name in node}
    return {
        name: _hashed_settings(value, keys[name])
        for name, value in node.items()
        if keys[name] not in NOT_HASHED
    }


def settings_tried(config: Mapping[str, Any]) -> int:
    """Count the different settings of the members of a run.

    Seeds count if they are listed, as in a sweep. Members with seed, seed + 1, ... make one
    forecast and count once.
    """
    population = config.get("population", {})
    lists = [population[name] for name in _LISTS if population.get(name) is not None]
    return max(1, len(set(zip(*lists, strict=True))))


def _nan_for_null(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def path_from_ledger(ledger: Path, run: Path) -> str:
    """Return the run folder's path relative to the folder of the ledger."""
    try:
        return Path(os.path.relpath(run.absolute(), ledger.absolute().parent)).as_posix()
    except ValueError:  # on another drive
        return run.absolute().as_posix()


def append_entry(path: Path, entry: Entry) -> None:
    """Append an entry as a complete line, even if other processes append at the same time.

    If an earlier process left a truncated line, it is ended first.

    Args:
        path: the ledger; created with its folder if it does not exist.
        entry: the entry.

    Raises:
        ConfigError: the file cannot be written.
    """
    content = format_line(entry).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_locked(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as descriptor:
            if _ends_truncated(descriptor):
                content = b"\n" + content
            written = os.write(descriptor, content)
            os.fsync(descriptor)
    except OSError as error:
        raise _file_error(path, error, what="written; this run is not counted") from error
    if written < len(content):
        raise ConfigError(
            f"only {written} of {len(content)} bytes were written to {path}: the disk is full; "
            "this run is not counted. Free some space and run it again"
        )


@dataclass(frozen=True, slots=True)
class Trials:
    """Entries of a ledger.

    Attributes:
        path: the file.
        trials: all trials that count, in the order of the lines.
        looks: all lockbox looks, in the order of the lines.
        damaged: numbers of the lines that cannot be parsed, from 1.
        voided: trials that do not count, each with the line that says why.
    """

    path: Path
    trials: tuple[LedgerTrial, ...]
    looks: tuple[Look, ...]
    damaged: tuple[int, ...]
    voided: tuple[tuple[LedgerTrial, Void], ...] = ()

    @classmethod
    def read(cls, path: Path) -> "Trials":
        """Read a ledger; a missing file is empty.

        Raises:
            ConfigError: the file cannot be read.
        """
        entries, damaged = list[Entry](), list[int]()
        for number, line in enumerate(_read_lines(path), start=1):
            try:
                entries.append(parse_line(line))
            except (ValueError, RecursionError) as error:
                log.warning("line %d of %s cannot be counted: %s", number, path, error)
                damaged.append(number)
        trials, voided = _split_voided(entries)
        looks = tuple(entry for entry in entries if isinstance(entry, Look))
        return cls(path, trials, looks, tuple(damaged), voided)

    def same_rows(self, scored: Scored) -> "Trials":
        """Keep the entries that share test rows with another, and all damaged lines.

        Args:
            scored: see `share_test_rows`.
        """
        return replace(
            self,
            trials=tuple(trial for trial in self.trials if share_test_rows(trial, scored)),
            looks=tuple(look for look in self.looks if share_test_rows(look, scored)),
            voided=tuple(pair for pair in self.voided if share_test_rows(pair[0], scored)),
        )

    def distinct(self) -> tuple[LedgerTrial, ...]:
        """Return the first trial of each key, in the order of the lines, without controls."""
        first: dict[tuple[object, ...], LedgerTrial] = {}
        for trial in self.trials:
            if trial.labels == KEPT:
                first.setdefault(trial.key(), trial)
        return tuple(first.values())

    def count(self) -> int:
        """Return the number of settings tried; a swept population counts each of its settings."""
        return sum(trial.settings for trial in self.distinct())

    def deflated(self, daily: Float[np.ndarray, " dates"]) -> DeflatedSharpe:
        """Deflate the ICIR of a run by all these trials, which include it.

        Args:
            daily: rank IC of each test date of the run.
        """
        moments = SharpeMoments.from_daily(daily)
        spread = robust_std([trial.icir for trial in self.distinct()])
        return deflated_sharpe(moments, trials=max(1, self.count()), spread=spread)


def _split_voided(
    entries: Sequence[Entry],
) -> tuple[tuple[LedgerTrial, ...], tuple[tuple[LedgerTrial, Void], ...]]:
    """Separate the trials that a later line voids; a run trained again after it counts again."""
    last = {entry.run: place for place, entry in enumerate(entries) if isinstance(entry, Void)}
    kept, voided = list[LedgerTrial](), list[tuple[LedgerTrial, Void]]()
    for place, entry in enumerate(entries):
        if not isinstance(entry, LedgerTrial):
            continue
        by = entries[last[entry.run]] if place < last.get(entry.run, -1) else None
        if isinstance(by, Void):
            voided.append((entry, by))
        else:
            kept.append(entry)
    return tuple(kept), tuple(voided)


def _read_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        with (
            open_locked(path, os.O_RDONLY) as descriptor,
            open(descriptor, "rb", closefd=False) as file,
        ):
            content = file.read()
    except OSError as error:
        raise _file_error(path, error, what="read") from error
    return content.decode("utf-8", errors="replace").splitlines()


def _ends_truncated(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"


def _file_error(path: Path, error: OSError, *, what: str) -> ConfigError:
    return ConfigError(
        f"the trial ledger {path} cannot be {what} ({error.strerror}). Give another with "
        "ledger=FILE, the same for all runs of the project"
    )
