"""The sweep loop: it fills the workers, watches their jobs and keeps the table of the results."""

import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from hydra.core.override_parser.types import Override

from robust_fin.bundle.config import flatten_config, read_flat_config
from robust_fin.cli.composition import explain_error
from robust_fin.errors import BundleError, ConfigError
from robust_fin.runs.results import SWEEP_TABLE
from robust_fin.runs.schema import USER_ERRORS
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.process_state import count_signals
from robust_fin.sweeps.executors import Executor
from robust_fin.sweeps.job import (
    RUNNING,
    ComposedJob,
    Composer,
    JobRecord,
    RunningJob,
    SweepRecord,
    join_lines,
    start_job,
    write_failure,
)
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
from robust_fin.training.pruning import PRUNING_METRIC
from robust_fin.training.recovery.checkpoint_files import CHECKPOINTS, LAST

log = logging.getLogger(__name__)

FIGURE = PRUNING_METRIC  # trials are chosen by nothing else
CSV, PARQUET = "sweep.csv", SWEEP_TABLE
_TEST = ("test/", "members/test/")
_OMITTED = ("baseline/", "against/", "edge/")  # contain test figures; see each run's metrics.json
_POLL_SECONDS = 0.05
_NOT_COMPARED = {"ledger"}  # has no effect on the results of a job

OnOutcome = Callable[[Outcome], None]


def val_skill(row: Row) -> float:
    """Return val/skill of a finished row, otherwise NaN."""
    value = row.metrics.get(FIGURE)
    return math.nan if value is None or row.state != FINISHED else float(value)


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Sort by val/skill, best first; rows without one follow, by state and number."""

    def key(row: Row) -> tuple[int, float, int, int]:
        skill = val_skill(row)
        member = -1 if row.member is None else row.member
        if math.isfinite(skill):
            return (-1, -skill, row.number, member)
        return (STATES.index(row.state), 0.0, row.number, member)

    return sorted(rows, key=key)


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the row with the largest val/skill; None if no finished row has one."""
    first = sort_rows(rows)[:1]
    return first[0] if first and math.isfinite(val_skill(first[0])) else None


def varied_keys(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
    """Return the keys that are swept or differ between rows."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    return [
        key for key in keys
        if key in swept or len({row.settings.get(key) for row in rows}) > 1
    ]  # fmt: skip


def sweep_table(
    rows: Sequence[Row], *, swept: Sequence[str], chosen: Row | None, folder: Path
) -> pd.DataFrame:
    """Return the table of a sweep, with the test figures of the chosen row only.

    Args:
        rows: of all ended jobs.
        swept: keys that are columns even if all rows have the same value.
        chosen: None until a row is chosen; then there are no test figures.
        folder: of the sweep; run folders are relative to it.
    """
    keys, rows = varied_keys(rows, swept), sort_rows(rows)
    columns: dict[str, pd.Series] = {}
    columns["job"] = pd.Series([row.number for row in rows], dtype="Int64")
    if any(row.member is not None for row in rows):
        columns["member"] = pd.Series([row.member for row in rows], dtype="Int64")
    columns["chosen"] = pd.Series([row is chosen for row in rows], dtype="boolean")
    for name in ("state", "reason"):
        columns[name] = pd.Series([getattr(row, name) for row in rows], dtype="string")
    for key in keys:
        columns[key] = infer_column([row.settings.get(key) for row in rows])
    figures = [_visible_figures(row, chosen=row is chosen) for row in rows]
    for name in _sort_figures(figures):
        if name not in columns:  # seed is both a setting and a figure
            columns[name] = _figure_column([values.get(name) for values in figures])
    columns["job_seconds"] = pd.Series([round(row.seconds, 1) for row in rows], dtype="Float64")
    runs = [row.folder.relative_to(folder).as_posix() for row in rows]
    columns["run"] = pd.Series(runs, dtype="string")
    columns["overrides"] = pd.Series([row.overrides for row in rows], dtype="string")
    return pd.DataFrame(columns)


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Write sweep.csv and sweep.parquet, each atomically."""
    write_atomic(folder / CSV, table.to_csv(index=False).encode())
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomic(folder / PARQUET, buffer.getvalue())


def infer_column(texts: Sequence[str | None]) -> pd.Series:
    """Convert texts to integers, floats or booleans if all can be; `null` is a missing value."""
    texts = [None if text == "null" else text for text in texts]
    known = [text.lower() for text in texts if text is not None]
    if known and set(known) <= {"true", "false"}:
        return pd.Series(
            [None if x is None else x.lower() == "true" for x in texts], dtype="boolean"
        )
    for kind, dtype in ((int, "Int64"), (float, "Float64")):
        try:
            return pd.Series([None if x is None else kind(x) for x in texts], dtype=dtype)
        except ValueError:
            continue
    return pd.Series(texts, dtype="string")


def _figure_column(values: Sequence[Figure]) -> pd.Series:
    integers = all(value is None or isinstance(value, int) for value in values)
    return pd.Series(list(values), dtype="Int64" if integers else "Float64")


def _visible_figures(row: Row, *, chosen: bool) -> Mapping[str, Figure]:
    hidden = _OMITTED if chosen else (*_OMITTED, *_TEST)
    return {name: value for name, value in row.metrics.items() if not name.startswith(hidden)}


def _sort_figures(rows: Sequence[Mapping[str, Figure]]) -> list[str]:
    """Order the names: val/skill, other val figures, train, figures of the run, test."""
    first = (FIGURE, "val/", "members/val/", "train/")

    def key(name: str) -> int:
        if name.startswith(_TEST):
            return len(first) + 1
        return next((n for n, prefix in enumerate(first) if name.startswith(prefix)), len(first))

    return sorted(dict.fromkeys(name for row in rows for name in row), key=key)


@dataclass(slots=True)
class Sweep:
    """The state of a sweep.

    Attributes:
        strategy: chooses the trials.
        executor: runs the jobs.
        composer: composes their configs.
        record: content of sweep.json.
        verb: module that each job's process runs.
        retry_failed: retry the jobs that failed in an earlier start.
        swept: keys that are columns of the table.
        outcomes: of all ended jobs, by number.
        running: started jobs without an outcome.
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

    def plan(self, overrides: Sequence[Override]) -> int | None:
        """Plan the jobs and restore earlier outcomes; return the total number of jobs, if known.

        Args:
            overrides: one per key.
        """
        self.swept = [
            one.get_key_element().lstrip("+") for one in overrides if one.is_sweep_override()
        ]
        done = self._read_outcomes()
        total = self.strategy.plan(overrides, folder=self.record.folder, done=done)
        self.outcomes = {number: one for number, one in done.items() if one.state != STOPPED}
        self.record.jobs = {number: self.record.jobs[number] for number in done}
        self.record.write()
        self.write_table(complete=False)
        return total

    def run(self, on_outcome: OnOutcome) -> bool:
        """Run all jobs; return False if Ctrl-C or SIGTERM stopped the sweep.

        Args:
            on_outcome: called with every outcome.
        """
        with count_signals() as signals:
            handled = 0
            while True:
                if not signals:
                    self._fill_workers(on_outcome)
                if not self.running:
                    return not signals
                if len(signals) > handled:
                    handled = len(signals)
                    for job in self.running:
                        job.handle.stop() if handled == 1 else job.handle.kill()
                self._collect(on_outcome, stopping=bool(signals))
                time.sleep(_POLL_SECONDS)

    def rows(self) -> list[Row]:
        """Return the rows of all ended jobs."""
        return [row for number in sorted(self.outcomes)
                for row in self.strategy.rows(self.outcomes[number])]  # fmt: skip

    def write_table(self, *, complete: bool) -> None:
        """Write the table; a complete sweep chooses a row and shows its test figures."""
        rows, folder = self.rows(), self.record.folder
        chosen = best_row(rows) if complete else None
        write_table(sweep_table(rows, swept=self.swept, chosen=chosen, folder=folder), folder)

    def _read_outcomes(self) -> dict[int, Outcome]:
        """Return the outcomes of an earlier start; the other jobs start again."""
        outcomes = {}
        for number, job in self.record.jobs.items():
            outcome = job.outcome(number, self.record.folder)
            if outcome.state == FAILED and self.retry_failed:
                continue
            if outcome.state in (FINISHED, STOPPED) and not self._has_same_config(outcome):
                log.warning("job %d has other settings than before; it starts again", number)
                continue
            outcomes[number] = outcome
        return outcomes

    def _has_same_config(self, outcome: Outcome) -> bool:
        """Compare a run's saved config with what its trial composes to now."""
        try:
            composed = self.composer.compose(outcome.trial)
            saved = read_flat_config(outcome.folder)
        except (*USER_ERRORS, BundleError):
            return outcome.state == STOPPED  # killed before it saved its config; it starts again
        now = flatten_config(composed.config)
        same = {key for key in {**now, **saved} if now.get(key) == saved.get(key)}
        return composed.folder == outcome.folder and {*now, *saved} - same <= _NOT_COMPARED

    def _fill_workers(self, on_outcome: OnOutcome) -> None:
        while len(self.running) < self.strategy.workers:
            trial = self.strategy.ask()
            if trial is None:
                return
            self._start(trial, on_outcome)

    def _start(self, trial: Trial, on_outcome: OnOutcome) -> None:
        """Start a job. If its config cannot be composed, the job has failed."""
        before = self.record.jobs.get(trial.number)
        seconds = 0.0 if before is None else before.seconds
        try:
            composed = self.composer.compose(trial)
        except USER_ERRORS as error:
            folder = self.composer.folder / str(trial.number)
            reason = join_lines(explain_error(error, verb="train", words=trial.overrides))
            write_failure(folder, type(error).__name__, reason)
            self._end(Outcome(trial, folder, FAILED, reason, {}, seconds), on_outcome)
            return
        self._check_folder(trial, composed)
        job = start_job(
            trial, composed, self.executor, verb=self.verb, previous_seconds=seconds,
            resume=before is not None and _can_resume(composed.folder),
        )  # fmt: skip
        self.running.append(job)
        self._record(Outcome(trial, job.folder, STOPPED, None, {}, seconds), state=RUNNING)

    def _check_folder(self, trial: Trial, composed: ComposedJob) -> None:
        """Raise ConfigError unless the job has its own folder below the sweep's."""
        sweep, folder = self.record.folder, composed.folder
        if not folder.resolve().is_relative_to(sweep.resolve()):
            raise ConfigError(
                f"hydra.sweep.subdir puts job {trial.number} into {folder}, which is not below "
                f"{sweep}. Leave hydra.sweep.subdir at its default, the job number"
            )
        for number, job in self.record.jobs.items():
            if number != trial.number and sweep / job.folder == folder:
                raise ConfigError(
                    f"hydra.sweep.subdir gives jobs {number} and {trial.number} the same folder "
                    f"{folder}. Leave hydra.sweep.subdir at its default, the job number"
                )

    def _collect(self, on_outcome: OnOutcome, *, stopping: bool) -> None:
        for job in list(self.running):
            code = job.handle.poll()
            if code is not None:
                self.running.remove(job)
                self._end(job.outcome(code, stopping=stopping), on_outcome)

    def _end(self, outcome: Outcome, on_outcome: OnOutcome) -> None:
        self.outcomes[outcome.trial.number] = outcome
        self._record(outcome, state=outcome.state)
        self.strategy.tell(outcome)
        self.write_table(complete=False)
        on_outcome(outcome)

    def _record(self, outcome: Outcome, *, state: str) -> None:
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


def _can_resume(run: Path) -> bool:
    return (run / CHECKPOINTS / LAST).is_file() and (run / "bundle" / "config.yaml").is_file()
