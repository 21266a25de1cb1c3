"""The sweep as Hydra's -m runs it, and going on with one."""

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

from robust_fin.cli.composition import check_added_keys
from robust_fin.errors import ConfigError, Interrupted, RobustFinError
from robust_fin.runs.job import check_not_in_rank
from robust_fin.runs.schema import SWEEP_KEYS
from robust_fin.runtime.terminal import show
from robust_fin.sweeps.job import RECORD, Composer, SweepRecord
from robust_fin.sweeps.strategy import FAILED, Outcome, Strategy
from robust_fin.sweeps.sweep import Sweep, only_command
from robust_fin.sweeps.sweep_summary import job_line, jobs_shown, stopped_words, tell

RESUME, RETRY, WORKERS = "sweep.resume", "sweep.retry_failed", "sweep.workers"
# Hydra takes a plugin by a name below hydra_plugins alone, wherever its class is
_PLUGIN = "hydra_plugins.robust_fin.JobSweeper"
_OURS = ("hydra.sweep.dir", "hydra.mode", "hydra.sweeper.resume", "hydra.sweeper.retry_failed")


class SweepError(RobustFinError):
    """Jobs of a sweep that failed."""


class JobSweeper(Sweeper):
    """Runs each job in fresh processes, and makes of each a row.

    Args:
        params: swept beside the command line, by key.
        verb: module that each job is a process of.
        resume: go on with the sweep in the folder.
        retry_failed: likewise, with what had failed too.
    """

    def __init__(
        self, params: Mapping[str, Any] | None, verb: str, resume: bool, retry_failed: bool
    ) -> None:
        """Keep the settings; Hydra calls `setup` next."""
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
        """Keep what the command came to."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs.

        Args:
            arguments: of the command line, without Hydra's own.

        Raises:
            ConfigError: what is asked cannot be swept.
            SweepError: a job failed; raised at the end.
            Interrupted: Ctrl-C or SIGTERM.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        check_not_in_rank(os.environ)
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        words = one_a_key(
            parser.parse_overrides([f"{key}={value}" for key, value in self.params.items()]),
            parser.parse_overrides(arguments),
        )
        check_added_keys(self.config, verb="train", words=arguments)
        self._require_keys(words)
        composer = Composer(loader, self.config)
        record = self._record(composer.folder)
        strategy, executor = (instantiate(self.config[key]) for key in SWEEP_KEYS)
        check_workers(strategy)
        with only_command(record.folder), contextlib.closing(executor):
            sweep = Sweep(strategy, executor, composer, record, self.verb, self.retry_failed)
            run_sweep(sweep, words)

    def _require_keys(self, words: Sequence[Override]) -> None:
        """Refuse a swept key that no job would know, before any is started.

        Where a group is swept too, its choices may know it; then each job says so for itself.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        swept = [word for word in words if word.is_sweep_override() and word.is_discrete_sweep()]
        groups = self.config.hydra.runtime.choices
        if any(word.key_or_group in groups for word in swept):
            return
        for word in swept:
            if word.is_add() or word.is_force_add():
                continue
            absent = object()
            if OmegaConf.select(self.config, word.key_or_group, default=absent) is absent:
                first = next(iter(word.sweep_string_iterator()))
                self.hydra_context.config_loader.load_sweep_config(
                    self.config, [f"{word.get_key_element()}={first}"]
                )

    def _record(self, folder: Path) -> SweepRecord:
        """The sweep's record, new or found; the folder is there then."""
        assert self.config is not None
        if self.resume:
            return SweepRecord.read(folder)
        if (folder / RECORD).exists():
            raise ConfigError(
                f"{folder} holds a sweep already. python -m robust_fin.train {RESUME}={folder} "
                "goes on with it; hydra.sweep.dir=FOLDER starts another elsewhere"
            )
        folder.mkdir(parents=True, exist_ok=True)
        overrides = self.config.hydra.overrides
        words = [
            word for word in (*overrides.hydra, *overrides.task)
            if word.partition("=")[0].lstrip("+") not in _OURS
        ]  # fmt: skip
        OmegaConf.save(self.config, folder / "multirun.yaml")
        return SweepRecord(folder, words, os.getcwd())


def run_sweep(sweep: Sweep, words: Sequence[Override]) -> None:
    """The whole of it, from the plan to the table."""
    total = sweep.plan(words)
    done = len(sweep.outcomes)
    with jobs_shown(total=total, done=done) as advance:

        def told(outcome: Outcome) -> None:
            advance(1)
            ended = len(sweep.outcomes)
            show(job_line(outcome, swept=sweep.swept, ended=ended, total=total))

        whole = sweep.run(told)
    sweep.write_table(over=whole)
    tell(sweep, over=whole)
    if not whole:
        raise Interrupted(stopped_words(sweep.record))
    raise_failed(sweep.outcomes)


def raise_failed(outcomes: Mapping[int, Outcome]) -> None:
    """Say at the very end that not all went well.

    Raises:
        SweepError: a job failed; says why the first did.
    """
    failed = [outcomes[number] for number in sorted(outcomes) if outcomes[number].state == FAILED]
    if failed:
        raise SweepError(
            f"{failed[0].reason}. So ended job {failed[0].trial.number}; {len(failed)} of "
            f"{len(outcomes)} jobs failed, and sweep.csv has the reason of each"
        )


def one_a_key(swept: Sequence[Override], given: Sequence[Override]) -> list[Override]:
    """One word a key, in the order in which the keys came; what is given later counts.

    What only the sweep needs is left out.

    Args:
        swept: by an experiment.
        given: on the command line, which comes after.

    Raises:
        ConfigError: a setting of the sweep itself is to be swept.
    """
    found: dict[str, Override] = {}
    for word in (*swept, *given):
        key = word.get_key_element().lstrip("+~")
        if key.partition(".")[0].partition("@")[0] not in SWEEP_KEYS:
            found[key] = word
        elif word.is_sweep_override():
            raise ConfigError(f"{word.input_line} cannot be swept: it is a setting of the sweep")
    return list(found.values())


def check_workers(strategy: Strategy) -> None:
    """Refuse a number of workers that is none.

    Raises:
        ConfigError: it is below 1.
    """
    if not isinstance(strategy.workers, int) or strategy.workers < 1:
        raise ConfigError(f"sweep.workers={strategy.workers} must be a whole number above 0")


def read_resume_command(words: Sequence[str]) -> tuple[list[str], Path]:
    """The command line of the sweep that `sweep.resume=FOLDER` goes on with, and where it starts.

    Args:
        words: beside it only sweep.workers and sweep.retry_failed.

    Raises:
        ConfigError: another word stands beside it, or the folder holds no sweep.
    """
    given = dict(word.partition("=")[::2] for word in words)
    folder = Path(given.pop(RESUME)).expanduser().absolute()
    for key in given:
        if key not in (RETRY, WORKERS):
            raise ConfigError(
                f"{key}={given[key]} cannot be changed on {RESUME}; only {WORKERS} and {RETRY} "
                "can. Start another sweep for other settings"
            )
    record = SweepRecord.read(folder)
    if not Path(record.cwd).is_dir():
        raise ConfigError(
            f"the folder {record.cwd}, in which the sweep {folder} was started and its relative "
            "paths begin, is gone. Make it again, or start another sweep"
        )
    kept = [word for word in record.words if WORKERS not in given or not _sets(word, WORKERS)]
    retry = given.get(RETRY, "false")
    ours = [f"hydra.sweep.dir={_quoted(folder)}", "hydra.mode=MULTIRUN"]
    ours += ["hydra.sweeper.resume=true", f"hydra.sweeper.retry_failed={retry}"]
    ours += [f"{WORKERS}={given[WORKERS]}"] if WORKERS in given else []
    return [*kept, *ours], Path(record.cwd)


def is_sweep_resume(words: Sequence[str]) -> bool:
    """Whether a command line goes on with a sweep."""
    return any(_sets(word, RESUME) for word in words)


def register_sweeper() -> None:
    """Let conf/hydra/sweeper/jobs.yaml name the sweeper."""
    Plugins.instance().class_name_to_class[_PLUGIN] = JobSweeper


def _sets(word: str, key: str) -> bool:
    return word.partition("=")[0].lstrip("+") == key


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
