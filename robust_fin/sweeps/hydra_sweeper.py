"""The Hydra plugin that runs -m as a sweep, and the command line that resumes one."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle.config import check_words
from robust_fin.cli.composition import check_added_keys
from robust_fin.cli.suggestions import parse_modules, unquote
from robust_fin.errors import ConfigError, Interrupted, RobustFinError
from robust_fin.runs.job import check_not_in_rank
from robust_fin.runs.schema import SWEEP_KEYS
from robust_fin.runtime.files import lock_folder, write_atomic
from robust_fin.runtime.terminal import command_hint, hydra_text, show
from robust_fin.sweeps.job import RECORD, Composer, SweepRecord
from robust_fin.sweeps.strategy import FAILED, Outcome, Strategy
from robust_fin.sweeps.sweep import Sweep
from robust_fin.sweeps.sweep_summary import job_line, job_progress, show_summary

RESUME, RETRY, WORKERS = "sweep.resume", "sweep.retry_failed", "sweep.workers"
# Hydra accepts plugins below hydra_plugins only, wherever the class is defined
_PLUGIN = "hydra_plugins.robust_fin.JobSweeper"
_RESUME_KEYS = {
    "hydra.sweep.dir",
    "hydra.mode",
    "hydra.sweeper.resume",
    "hydra.sweeper.retry_failed",
}


class SweepError(RobustFinError):
    """A sweep in which jobs failed."""


class JobSweeper(Sweeper):
    """Hydra sweeper that runs each job in its own process.

    Args:
        params: swept values by key; the command line overrides them.
        verb: module that each job's process runs.
        resume: resume the sweep in the folder.
        retry_failed: on resume, retry the failed jobs too.
    """

    def __init__(
        self, params: Mapping[str, Any] | None, verb: str, resume: bool, retry_failed: bool
    ) -> None:
        self.params = {} if params is None else dict(params)
        self.verb, self.resume, self.retry_failed = verb, resume, retry_failed
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,  # noqa: ARG002
        config: DictConfig,
    ) -> None:
        """Store Hydra's context and the composed config."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs.

        Args:
            arguments: overrides of the command line, without those of Hydra.

        Raises:
            ConfigError: the sweep cannot be planned. No job has started.
            SweepError: a job failed. Raised when all jobs have ended.
            Interrupted: Ctrl-C or SIGTERM.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        check_not_in_rank(os.environ)
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = merge_overrides(
            parser.parse_overrides([f"{key}={value}" for key, value in self.params.items()]),
            parser.parse_overrides(arguments),
        )
        check_added_keys(self.config, verb="train", words=arguments)
        self._check_keys(overrides)
        composer = Composer(loader, self.config)
        composer.folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(composer.folder):
            record = self._open_record(composer.folder)
            strategy, executor = (instantiate(self.config[key]) for key in SWEEP_KEYS)
            check_workers(strategy)
            with contextlib.closing(executor):
                sweep = Sweep(strategy, executor, composer, record, self.verb, self.retry_failed)
                run_sweep(sweep, overrides)

    def _check_keys(self, overrides: Sequence[Override]) -> None:
        """Raise Hydra's error for a swept key that no job has, before any job starts.

        If a config group is swept too, its choices may have the key; then each job reports it.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        swept = [one for one in overrides if one.is_sweep_override() and one.is_discrete_sweep()]
        groups = self.config.hydra.runtime.choices
        if any(override.key_or_group in groups for override in swept):
            return
        missing = object()
        for override in swept:
            if override.is_add() or override.is_force_add():
                continue
            if OmegaConf.select(self.config, override.key_or_group, default=missing) is missing:
                first = next(iter(override.sweep_string_iterator()))
                self.hydra_context.config_loader.load_sweep_config(
                    self.config, [f"{override.get_key_element()}={first}"]
                )

    def _open_record(self, folder: Path) -> SweepRecord:
        """Read the record on resume; otherwise make a new one."""
        assert self.config is not None
        if self.resume:
            return SweepRecord.read(folder)
        if (folder / RECORD).exists():
            raise ConfigError(
                f"{folder} already contains a sweep. Resume it with "
                f"{command_hint('train', RESUME, folder)}, or use another folder: "
                "hydra.sweep.dir=FOLDER"
            )
        given = self.config.hydra.overrides
        words = [word for word in (*given.hydra, *given.task) if _key(word) not in _RESUME_KEYS]
        write_atomic(folder / "multirun.yaml", OmegaConf.to_yaml(self.config).encode())
        return SweepRecord(folder, words, os.getcwd())


def run_sweep(sweep: Sweep, overrides: Sequence[Override]) -> None:
    """Plan and run a sweep, write its table and show the summary.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
        SweepError: a job failed.
    """
    total = sweep.plan(overrides)
    with job_progress(total=total, done=len(sweep.outcomes)) as advance:

        def on_outcome(outcome: Outcome) -> None:
            advance(1)
            ended = len(sweep.outcomes)
            show(job_line(outcome, swept=sweep.swept, ended=ended, total=total))

        complete = sweep.run(on_outcome)
    sweep.write_table(complete=complete)
    show_summary(sweep, complete=complete)
    if not complete:
        raise Interrupted(
            "the sweep was stopped. Resume it with "
            f"{command_hint('train', RESUME, sweep.record.folder)}"
        )
    raise_failed(sweep.outcomes)


def raise_failed(outcomes: Mapping[int, Outcome]) -> None:
    """Raise SweepError with the reason of the first failed job, if any."""
    failed = [outcomes[number] for number in sorted(outcomes) if outcomes[number].state == FAILED]
    if failed:
        raise SweepError(
            f"job {failed[0].trial.number} failed: {failed[0].reason}. {len(failed)} of "
            f"{len(outcomes)} jobs failed; sweep.csv has all reasons"
        )


def merge_overrides(params: Sequence[Override], given: Sequence[Override]) -> list[Override]:
    """Return one override per key, in the order of the keys, without those of the sweep itself.

    Args:
        params: of an experiment's hydra.sweeper.params.
        given: on the command line; they win.

    Raises:
        ConfigError: a setting of the sweep itself is swept.
    """
    merged: dict[str, Override] = {}
    for override in (*params, *given):
        key = override.get_key_element().lstrip("+~")
        if key.partition(".")[0].partition("@")[0] not in SWEEP_KEYS:
            merged[key] = override
        elif override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line} cannot be swept: it is a setting of the sweep itself"
            )
    return list(merged.values())


def check_workers(strategy: Strategy) -> None:
    """Raise ConfigError unless sweep.workers is a positive integer."""
    if not isinstance(strategy.workers, int) or strategy.workers < 1:
        raise ConfigError(f"sweep.workers={strategy.workers} must be a positive integer")


def read_resume_command(words: Sequence[str]) -> tuple[list[str], Path]:
    """Return the command line and the working directory of a sweep to resume.

    Args:
        words: sweep.resume=FOLDER, and optionally sweep.workers, sweep.retry_failed, and
            modules=[...], your own modules that the sweep may use.

    Raises:
        ConfigError: there is another word, or the folder holds no sweep.
    """
    given = dict(word.partition("=")[::2] for word in words)
    folder = Path(unquote(given.pop(RESUME))).expanduser().absolute()
    modules = parse_modules(given.pop("modules", "[]"))
    for key in given:
        if key not in (RETRY, WORKERS):
            raise ConfigError(
                f"{key}={given[key]} cannot be combined with {RESUME}; only {WORKERS} and {RETRY} "
                "can. Start a new sweep for other settings"
            )
    record = SweepRecord.read(folder)
    check_words(record.words, modules=modules, origin=str(folder / RECORD))
    if not Path(record.cwd).is_dir():
        raise ConfigError(
            f"the sweep {folder} was started in {record.cwd}, where its relative paths start, but "
            "that folder no longer exists. Restore it, or start a new sweep"
        )
    kept = [word for word in record.words if WORKERS not in given or _key(word) != WORKERS]
    retry = given.get(RETRY, "false")
    added = [f"hydra.sweep.dir={hydra_text(str(folder))}", "hydra.mode=MULTIRUN"]
    added += ["hydra.sweeper.resume=true", f"hydra.sweeper.retry_failed={retry}"]
    added += [f"{WORKERS}={given[WORKERS]}"] if WORKERS in given else []
    return [*kept, *added], Path(record.cwd)


def is_sweep_resume(words: Sequence[str]) -> bool:
    """Check whether a command line resumes a sweep."""
    return any(_key(word) == RESUME for word in words)


def register_sweeper() -> None:
    """Register the sweeper under the name in conf/hydra/sweeper/jobs.yaml."""
    Plugins.instance().class_name_to_class[_PLUGIN] = JobSweeper


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")
