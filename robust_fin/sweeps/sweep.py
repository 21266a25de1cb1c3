"""The sweep itself: places filled, jobs watched, every end a row, until nothing is left to try."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.types import Override

from robust_fin.bundle import read_config
from robust_fin.command import USER_ERRORS
from robust_fin.errors import BundleError, ConfigError
from robust_fin.hardware.signals import counted_signals
from robust_fin.suggestions import explained
from robust_fin.sweeps.composition import Composed, Composer
from robust_fin.sweeps.executor import Executor
from robust_fin.sweeps.job import RunningJob, keep_failure, start_job
from robust_fin.sweeps.record import RUNNING, JobRecord, SweepRecord, one_line
from robust_fin.sweeps.strategy import Strategy
from robust_fin.sweeps.table import chosen_row, sweep_table, write_table
from robust_fin.sweeps.trial import FAILED, FINISHED, STOPPED, Outcome, Row, Trial
from robust_fin.training.checkpoint_files import LAST
from robust_fin.training.lineage import CHECKPOINTS, dotted

log = logging.getLogger(__name__)

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
        with counted_signals() as signals:
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
            kept = dotted(read_config(one.folder))
        except (*USER_ERRORS, BundleError):
            return one.state == STOPPED  # killed before it wrote any; it starts anew
        now = dotted(composed.config)
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
            reason = one_line(explained(error, verb="train", words=trial.overrides))
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
