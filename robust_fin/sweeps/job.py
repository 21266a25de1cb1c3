"""One job of a sweep: its frozen config, its processes, and what sweep.json records of it."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from robust_fin.errors import ConfigError, Pruned
from robust_fin.runs.job import FAILURE, Job, job_task
from robust_fin.runs.results import METRICS, SWEEP
from robust_fin.runs.schema import with_absolute_ledger, without_sweep_keys
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.launcher import LAUNCHED, write_task
from robust_fin.runtime.process_state import RankExit
from robust_fin.runtime.records import read_json, read_metrics_file
from robust_fin.sweeps.executors import Executor, Handle
from robust_fin.sweeps.strategy import FAILED, FINISHED, PRUNED, STOPPED, Outcome, Trial

RECORD = SWEEP
RUNNING = "running"  # state of a job that has no outcome
LOG, TASK = "output.log", ".job"  # in the run folder
_LOST = "JobLost"  # error name of a job whose processes left no reason


@dataclass(frozen=True, slots=True)
class ComposedJob:
    """A trial as composed by Hydra.

    Attributes:
        folder: run folder, absolute.
        config: of the run, resolved.
        files: content of the run folder's .hydra files, by path in the run folder.
        logging: settings of the run's log file.
        environment: variables required by the hardware, and those of hydra.job.env_set.
    """

    folder: Path
    config: DictConfig
    files: Mapping[str, str]
    logging: dict[str, Any]
    environment: dict[str, str]


class Composer:
    """Composes the config of a job as Hydra's own launcher does.

    Args:
        loader: of the command's configs.
        master: the command's config, with the hydra node.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self.folder = Path(str(master.hydra.sweep.dir)).absolute()

    def compose(self, trial: Trial) -> ComposedJob:
        """Compose a trial's job; Hydra's errors pass through."""
        config = self._loader.load_sweep_config(self._master, list(trial.overrides))
        with open_dict(config):
            config.hydra.job.id = str(trial.number)
            config.hydra.job.num = trial.number
        with _hydra_config(config):
            folder = self.folder / str(config.hydra.sweep.subdir)
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = str(folder)
        with _hydra_config(config):
            return _freeze(config, folder)


def _freeze(config: DictConfig, folder: Path) -> ComposedJob:
    hydra = config.hydra
    names = [str(key) for key in config if key != "hydra"]
    settings = without_sweep_keys(OmegaConf.masked_copy(config, names))
    resolved = OmegaConf.create(OmegaConf.to_container(settings, resolve=True))
    assert isinstance(resolved, DictConfig)
    files = {
        "config.yaml": OmegaConf.to_yaml(settings),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(config, "hydra")),
        "overrides.yaml": OmegaConf.to_yaml(hydra.overrides.task),
    }
    subdir = hydra.output_subdir
    required = instantiate(resolved.hardware).missing(os.environ)
    env_set = {name: str(value) for name, value in _to_dict(hydra.job.env_set).items()}
    return ComposedJob(
        folder,
        with_absolute_ledger(resolved),
        {} if subdir is None else {f"{subdir}/{name}": text for name, text in files.items()},
        _to_dict(hydra.job_logging),
        {**required, **env_set},
    )


def _to_dict(node: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@contextmanager
def _hydra_config(config: DictConfig) -> Iterator[None]:
    """Resolve `${hydra:...}` from this job's config within the context."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    try:
        yield
    finally:
        instance.cfg = before


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The entry of a started job in sweep.json.

    Attributes:
        overrides: of its trial.
        environment: of its trial.
        folder: run folder, relative to the sweep's folder.
        state: running, or the state of an outcome.
        reason: one line, unless it finished.
        seconds: wall time so far.
    """

    overrides: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    state: str
    reason: str | None
    seconds: float

    def outcome(self, number: int, sweep: Path) -> Outcome:
        """Return the outcome, read from the run folder unless the job failed or was pruned."""
        folder = sweep / self.folder
        trial = Trial(number, tuple(self.overrides), dict(self.environment))
        state, reason = self.state, self.reason
        if state in (RUNNING, STOPPED, FINISHED):
            state, reason = read_state(folder)
        return Outcome(trial, folder, state, reason, read_metrics(folder, state), self.seconds)


@dataclass(slots=True)
class SweepRecord:
    """The content of sweep.json: the command and the started jobs.

    Attributes:
        folder: of the sweep, absolute.
        words: command line, without folder and resume options.
        cwd: folder that relative paths in the words start from.
        jobs: started jobs, by number.
    """

    folder: Path
    words: list[str]
    cwd: str
    jobs: dict[int, JobRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "SweepRecord":
        """Read the record of a sweep.

        Raises:
            ConfigError: the folder has no record, or it is damaged.
        """
        path = folder / RECORD
        try:
            content = read_json(path, {"words": list, "cwd": str, "jobs": dict}, error=ConfigError)
            jobs = {int(number): JobRecord(**entry) for number, entry in content["jobs"].items()}
            return cls(folder.absolute(), content["words"], content["cwd"], jobs)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"{folder} is not the folder of a sweep: it has no {RECORD}. Use the folder that "
                "contains the numbered run folders, e.g. outputs/top5/2024-12-19_10-00-00_sweep"
            ) from error
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {error}. Start a new sweep") from error

    def write(self) -> None:
        """Write sweep.json atomically."""
        content = {
            "words": self.words,
            "cwd": self.cwd,
            "jobs": {str(number): asdict(job) for number, job in sorted(self.jobs.items())},
        }
        write_atomic(self.folder / RECORD, (json.dumps(content, indent=1) + "\n").encode())


def read_metrics(folder: Path, state: str) -> dict[str, Any]:
    """Return metrics.json of a run; empty unless it finished."""
    if state != FINISHED:
        return {}
    return read_metrics_file(folder / METRICS)


def read_state(folder: Path) -> tuple[str, str | None]:
    """Return state and reason of a run that is not running, from the files in its folder."""
    if (folder / METRICS).is_file():
        return FINISHED, None
    if (folder / FAILURE).is_file():
        failure = read_json(folder / FAILURE, {"error": str, "message": str})
        state = PRUNED if failure["error"] == Pruned.__name__ else FAILED
        return state, join_lines(failure["message"])
    return STOPPED, "stopped before its end"


def join_lines(text: str) -> str:
    """Return a message on a single line."""
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A started job without an outcome.

    Attributes:
        trial: the job's trial.
        folder: run folder.
        handle: of the executor.
        started: time of the monotonic clock.
        previous_seconds: wall time before an interruption.
    """

    trial: Trial
    folder: Path
    handle: Handle
    started: float
    previous_seconds: float

    def outcome(self, code: int, *, stopping: bool) -> Outcome:
        """Return the outcome of an ended job, and remove its task folder.

        Args:
            code: exit code.
            stopping: the sweep has asked its jobs to stop.
        """
        rank_exit = RankExit.read(self.folder / TASK, 0)
        shutil.rmtree(self.folder / TASK, ignore_errors=True)
        state, reason = read_state(self.folder)
        if state == STOPPED and stopping:
            reason = join_lines(rank_exit.message) if rank_exit and rank_exit.message else reason
        elif state == STOPPED:
            state, reason = FAILED, _failure_reason(code, rank_exit, self.folder / LOG)
            write_failure(self.folder, _LOST, reason)
        seconds = self.previous_seconds + time.monotonic() - self.started
        metrics = read_metrics(self.folder, state)
        return Outcome(self.trial, self.folder, state, reason, metrics, seconds)


def start_job(
    trial: Trial,
    composed: ComposedJob,
    executor: Executor,
    *,
    verb: str,
    resume: bool,
    previous_seconds: float,
) -> RunningJob:
    """Start a job in its own process.

    Args:
        trial: the job's trial.
        composed: its folder and config.
        executor: runs the process.
        verb: module that the process runs.
        resume: continue from the checkpoint in the run folder.
        previous_seconds: wall time before an interruption.

    Raises:
        ConfigError: the executor cannot start jobs.
    """
    folder, config = composed.folder, composed.config
    (folder / TASK).mkdir(parents=True, exist_ok=True)
    for path in (folder / METRICS, folder / FAILURE, RankExit.path(folder / TASK, 0)):
        path.unlink(missing_ok=True)
    if not resume:
        for name, content in composed.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, content.encode())
    task = job_task(Job(config, folder, resume), logging=composed.logging)
    write_task(folder / TASK, task | {"module": verb})
    handle = executor.start(
        ("-m", verb, f"{LAUNCHED}={folder / TASK}"),
        environment={**composed.environment, **trial.environment},
        log=folder / LOG,
        name=f"{config.name}-{trial.number}",
    )
    return RunningJob(trial, folder, handle, time.monotonic(), previous_seconds)


def write_failure(folder: Path, error: str, message: str) -> None:
    """Write failure.json for a job whose process could not."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"error": error, "message": message}
    write_atomic(folder / FAILURE, (json.dumps(content, indent=2) + "\n").encode())


def _failure_reason(code: int, rank_exit: RankExit | None, log: Path) -> str:
    """Return why a job without failure.json failed; append its traceback to its log."""
    if rank_exit is not None:
        if rank_exit.trace:
            with log.open("a", encoding="utf-8") as file:
                file.write(rank_exit.trace)
        lines = [rank_exit.message, *reversed(rank_exit.trace.splitlines())]
        return join_lines(next((line for line in lines if line.strip()), f"exit code {code}"))
    if code < 0:
        cause = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        return f"the job's process was killed by {signal.Signals(-code).name}{cause}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line for line in reversed(lines) if line.strip()), "(empty)")
    return join_lines(f"exit code {code} without {METRICS}; last line of {log.name}: {last}")
