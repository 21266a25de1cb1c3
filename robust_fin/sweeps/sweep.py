"""The sweep: fill workers, watch jobs, and keep the table of their outcomes."""

import io
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from hydra.core.override_parser.types import Override

from robust_fin.bundle.folder import flatten_config, read_flat_config
from robust_fin.cli.composition import explain_error
from robust_fin.errors import BundleError, ConfigError
from robust_fin.runs.schema import USER_ERRORS
from robust_fin.runtime.atomic_files import write_atomic
from robust_fin.runtime.process_state import count_signals
from robust_fin.sweeps.job import (
    RUNNING,
    Composed,
    Composer,
    JobRecord,
    RunningJob,
    SweepRecord,
    keep_failure,
    one_line,
    start_job,
)
from robust_fin.sweeps.local import Executor
from robust_fin.sweeps.strategy import (
    FAILED,
    FINISHED,
    STATES,
    STOPPED,
    Figure,
    Outcome,
    Row,
    Strategy,
    Trial,
)
from robust_fin.training.recovery.checkpoint_files import CHECKPOINTS, LAST

log = logging.getLogger(__name__)

if sys.platform != "win32":
    import fcntl

LOCK = "sweep.lock"


@contextmanager
def only_command(folder: Path) -> Iterator[None]:
    """Be the only command that fills a sweep's folder, until the block or the process ends.

    Two would start the same jobs into the same run folders. Several commands, each with a folder
    of its own, share a study through `sweep.storage`.

    Args:
        folder: of the sweep; it exists.

    Raises:
        ConfigError: another command is at it.
    """
    with (folder / LOCK).open("ab") as file:
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another command works on the sweep in {folder}; wait for its end, or stop it "
                "with Ctrl-C"
            ) from error
        yield


CSV, PARQUET = "sweep.csv", "sweep.parquet"
FIGURE = "val/skill"  # choices are made by it, and by nothing else
_TEST = ("test/", "members/test/")
_LEFT_OUT = ("baseline/", "against/", "edge/")  # of the test span too; each run's metrics.json
_WORDS = {"true": True, "false": False}


def skill_of(row: Row) -> float:
    """val/skill; NaN where there is none."""
    value = row.metrics.get(FIGURE)
    return math.nan if value is None or row.state != FINISHED else float(value)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Finished ones by val/skill, the best first; then those without one, by state and number."""

    def place(row: Row) -> tuple[int, float, int, int]:
        skill = skill_of(row)
        member = -1 if row.member is None else row.member
        if math.isfinite(skill):
            return (-1, -skill, row.number, member)
        return (STATES.index(row.state), 0.0, row.number, member)

    return sorted(rows, key=place)


def chosen_row(rows: Sequence[Row]) -> Row | None:
    """The one with the greatest val/skill; None where no finished trial has one."""
    first = in_order(rows)[:1]
    return first[0] if first and math.isfinite(skill_of(first[0])) else None


def varied_keys(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
    """Keys that differ between rows, and those that were to be swept, in the order they came."""
    every = dict.fromkeys(key for row in rows for key in row.settings)
    return [
        key for key in every
        if key in swept or len({row.settings.get(key) for row in rows}) > 1
    ]  # fmt: skip


def sweep_table(
    rows: Sequence[Row], *, swept: Sequence[str], chosen: Row | None, folder: Path
) -> pd.DataFrame:
    """The table, with test/* of the chosen row alone.

    Args:
        rows: of all jobs that have ended.
        swept: keys that are columns whether or not they differ.
        chosen: None as long as nothing is chosen: then no test figure is shown.
        folder: of the sweep, that run folders are seen from.
    """
    ordered = in_order(rows)
    found: dict[str, pd.Series] = {}
    found["job"] = pd.Series([row.number for row in ordered], dtype="Int64")
    if any(row.member is not None for row in ordered):
        found["member"] = pd.Series([row.member for row in ordered], dtype="Int64")
    found["chosen"] = pd.Series([row is chosen for row in ordered], dtype="boolean")
    for name in ("state", "reason"):
        found[name] = pd.Series([getattr(row, name) for row in ordered], dtype="string")
    for key in varied_keys(rows, swept):
        found[key] = typed_column([row.settings.get(key) for row in ordered])
    shown = [_shown(row, chosen=row is chosen) for row in ordered]
    for name in _metric_names(shown):
        if name in found:  # seed is a setting and a figure of the run
            continue
        found[name] = figure_column([one.get(name) for one in shown])
    found["job_seconds"] = pd.Series([round(row.seconds, 1) for row in ordered], dtype="Float64")
    runs = [Path(row.folder).relative_to(folder).as_posix() for row in ordered]
    found["run"] = pd.Series(runs, dtype="string")
    found["overrides"] = pd.Series([row.overrides for row in ordered], dtype="string")
    return pd.DataFrame(found)


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Write both files, each at once or not at all."""
    write_atomic(folder / CSV, table.to_csv(index=False).encode())
    held = io.BytesIO()
    table.to_parquet(held, index=False)
    write_atomic(folder / PARQUET, held.getvalue())


def typed_column(values: Sequence[str | None]) -> pd.Series:
    """Values of a key as what they say: whole numbers, numbers, true and false, else text.

    `null` is a missing value.
    """
    plain = [None if one in (None, "null") else str(one) for one in values]
    known = [one for one in plain if one is not None]
    if known and all(one.lower() in _WORDS for one in known):
        return pd.Series([None if x is None else _WORDS[x.lower()] for x in plain], dtype="boolean")
    for kind, dtype in ((int, "Int64"), (float, "Float64")):
        try:
            return pd.Series([None if one is None else kind(one) for one in plain], dtype=dtype)
        except ValueError:
            continue
    return pd.Series(plain, dtype="string")


def figure_column(values: Sequence[Figure]) -> pd.Series:
    """Whole numbers where all are; what could not be computed is missing."""
    whole = all(one is None or isinstance(one, int) for one in values)
    return pd.Series(list(values), dtype="Int64" if whole else "Float64")


def _shown(row: Row, *, chosen: bool) -> Mapping[str, Figure]:
    hidden = _LEFT_OUT if chosen else (*_LEFT_OUT, *_TEST)
    return {name: value for name, value in row.metrics.items() if not name.startswith(hidden)}


def _metric_names(shown: Sequence[Mapping[str, Figure]]) -> list[str]:
    """val/skill, the rest of val, train, the run's own figures, test."""
    every = dict.fromkeys(name for one in shown for name in one)
    first = (FIGURE, "val/", "members/val/", "train/")

    def place(name: str) -> int:
        if name.startswith(_TEST):
            return len(first) + 1
        found = [number for number, start in enumerate(first) if name.startswith(start)]
        return found[0] if found else len(first)

    return sorted(every, key=place)


_SECONDS_POLL = 0.05
_NOT_COMPARED = ("ledger",)  # of a job's config: says where it is counted, not what it does

Told = Callable[[Outcome], None]


@dataclass(slots=True)
class Sweep:
    """What is tried, where, and what came out so far.

    Attributes:
        strategy: says what is tried.
        executor: runs it.
        composer: makes its config.
        record: what is kept on disk.
        verb: module that each job is a process of.
        retry_failed: whether failed jobs of an earlier start are tried again.
        swept: keys that are columns of the table.
        outcomes: of all jobs that have ended, by number.
        running: jobs that have not.
    """

    strategy: Strategy
    executor: Executor
    composer: Composer
    record: SweepRecord
    verb: str
    retry_failed: bool
    swept: list[str] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    running: list[RunningJob] = field(default_factory=list)

    def plan(self, words: Sequence[Override]) -> int | None:
        """Take in what is asked and what was done; the number of jobs in all, where it is known.

        Args:
            words: one a key.
        """
        self.swept = [
            word.get_key_element().lstrip("+") for word in words if word.is_sweep_override()
        ]
        done = self._done()
        total = self.strategy.plan(words, folder=self.record.folder, done=done)
        self.outcomes = {number: one for number, one in done.items() if one.state != STOPPED}
        kept = {number: self.record.jobs[number] for number in done}
        self.record.jobs = kept
        self.record.write()
        self.write_table(over=False)
        return total

    def run(self, told: Told) -> bool:
        """Try everything; whether it went to its end, which Ctrl-C and SIGTERM prevent.

        Args:
            told: called with every outcome.
        """
        with count_signals() as signals:
            answered = 0
            while True:
                if not signals:
                    self._fill(told)
                if not self.running:
                    return not signals
                if len(signals) > answered:
                    answered = len(signals)
                    for one in self.running:
                        one.handle.stop() if answered == 1 else one.handle.kill()
                self._collect(told, asked=bool(signals))
                time.sleep(_SECONDS_POLL)

    def rows(self) -> list[Row]:
        """Of all jobs that have ended."""
        return [row for number in sorted(self.outcomes)
                for row in self.strategy.rows(self.outcomes[number])]  # fmt: skip

    def write_table(self, *, over: bool) -> None:
        """Write sweep.csv and sweep.parquet; only at the end is one chosen, and its test shown."""
        rows = self.rows()
        chosen = chosen_row(rows) if over else None
        folder = self.record.folder
        write_table(sweep_table(rows, swept=self.swept, chosen=chosen, folder=folder), folder)

    def _done(self) -> dict[int, Outcome]:
        """Jobs of an earlier start that count; of the others, each is started anew."""
        found = {}
        for number, job in self.record.jobs.items():
            one = job.outcome(number, self.record.folder)
            if one.state == FAILED and self.retry_failed:
                continue
            if one.state in (FINISHED, STOPPED) and not self._is_same(one):
                log.warning("job %d was made with other settings; it starts anew", number)
                continue
            found[number] = one
        return found

    def _is_same(self, one: Outcome) -> bool:
        """Whether a run's own config is what its trial composes to now."""
        try:
            composed = self.composer.compose(one.trial)
            kept = read_flat_config(one.folder)
        except (*USER_ERRORS, BundleError):
            return one.state == STOPPED  # killed before it wrote any; it starts anew
        now = flatten_config(composed.config)
        same = {key for key in {**now, **kept} if now.get(key) == kept.get(key)}
        return composed.folder == one.folder and {*now, *kept} - same <= {*_NOT_COMPARED}

    def _fill(self, told: Told) -> None:
        while len(self.running) < self.strategy.workers:
            trial = self.strategy.ask()
            if trial is None:
                return
            self._start(trial, told)

    def _start(self, trial: Trial, told: Told) -> None:
        """Start a job; one that cannot be composed has failed already."""
        before = self.record.jobs.get(trial.number)
        seconds = 0.0 if before is None else before.seconds
        try:
            composed = self.composer.compose(trial)
        except USER_ERRORS as error:
            folder = self.composer.folder / str(trial.number)
            reason = one_line(explain_error(error, verb="train", words=trial.overrides))
            keep_failure(folder, type(error).__name__, reason)
            self._end(Outcome(trial, folder, FAILED, reason, {}, seconds), told)
            return
        self._require_own_folder(trial, composed)
        goes_on = before is not None and _can_go_on(composed.folder)
        job = start_job(
            trial, composed, self.executor,
            verb=self.verb, resume=goes_on, before=seconds,
        )  # fmt: skip
        self.running.append(job)
        self._note(Outcome(trial, job.folder, STOPPED, None, {}, seconds), state=RUNNING)

    def _require_own_folder(self, trial: Trial, composed: Composed) -> None:
        """Refuse to let two jobs write into one folder."""
        sweep = self.record.folder
        if not composed.folder.resolve().is_relative_to(sweep.resolve()):
            raise ConfigError(
                f"hydra.sweep.subdir puts job {trial.number} into {composed.folder}, which is not "
                f"below {sweep}; leave it at its default, the number of the job"
            )
        others = {
            sweep / one.folder: number
            for number, one in self.record.jobs.items()
            if number != trial.number
        }
        if composed.folder in others:
            raise ConfigError(
                f"hydra.sweep.subdir gives jobs {others[composed.folder]} and {trial.number} the "
                f"same folder {composed.folder}; leave it at its default, the number of the job"
            )

    def _collect(self, told: Told, *, asked: bool) -> None:
        for one in list(self.running):
            code = one.handle.poll()
            if code is not None:
                self.running.remove(one)
                self._end(one.outcome(code, asked=asked), told)

    def _end(self, outcome: Outcome, told: Told) -> None:
        self.outcomes[outcome.trial.number] = outcome
        self._note(outcome, state=outcome.state)
        self.strategy.tell(outcome)
        self.write_table(over=False)
        told(outcome)

    def _note(self, outcome: Outcome, *, state: str) -> None:
        trial, sweep = outcome.trial, self.record.folder
        self.record.jobs[trial.number] = JobRecord(
            list(trial.overrides),
            dict(trial.environment),
            outcome.folder.relative_to(sweep).as_posix(),
            state,
            outcome.reason,
            outcome.seconds,
        )
        self.record.write()


def _can_go_on(run: Path) -> bool:
    """Whether a run was far enough for a checkpoint; else it starts anew."""
    return (run / CHECKPOINTS / LAST).is_file() and (run / "bundle" / "config.yaml").is_file()
