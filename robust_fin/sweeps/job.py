"""One job of a sweep: its run folder, frozen config, processes and record."""

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
from robust_fin.runs.results import METRICS
from robust_fin.runs.schema import without_sweep_keys
from robust_fin.runs.settings import with_absolute_ledger
from robust_fin.runtime.atomic_files import write_atomic
from robust_fin.runtime.launcher import LAUNCHED, write_task
from robust_fin.runtime.process_state import RankExit
from robust_fin.sweeps.local import Executor, Handle
from robust_fin.sweeps.strategy import FAILED, FINISHED, PRUNED, STOPPED, Outcome, Trial


@dataclass(frozen=True, slots=True)
class Composed:
    """What Hydra made of a trial.

    Attributes:
        folder: of its run, absolute.
        config: of the run, every value resolved.
        files: of Hydra's own folder in the run folder, by name.
        logging: settings of the run's log file.
        environment: variables that its devices need, and those that Hydra is to set.
    """

    folder: Path
    config: DictConfig
    files: Mapping[str, str]
    logging: dict[str, Any]
    environment: dict[str, str]

    def write_files(self) -> None:
        """Write config and overrides into the run folder, as Hydra does for a single run."""
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content.encode())


class Composer:
    """Composes jobs as Hydra's own launcher does.

    Args:
        loader: of the command's configs.
        master: the command's config, Hydra's part included.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        """Keep both."""
        self._loader, self._master = loader, master
        self.folder = Path(str(master.hydra.sweep.dir)).absolute()

    def compose(self, trial: Trial) -> Composed:
        """Compose a trial's job; raises what Hydra raises where it cannot."""
        config = self._loader.load_sweep_config(self._master, list(trial.overrides))
        with open_dict(config):
            config.hydra.job.id = str(trial.number)
            config.hydra.job.num = trial.number
        with _in_hydra(config):
            folder = self.folder / str(config.hydra.sweep.subdir)
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = str(folder)
        with _in_hydra(config):
            return _frozen(config, folder)


def _frozen(config: DictConfig, folder: Path) -> Composed:
    hydra = config.hydra
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    settings = without_sweep_keys(plain)
    resolved = OmegaConf.create(OmegaConf.to_container(settings, resolve=True))
    assert isinstance(resolved, DictConfig)
    files = {
        "config.yaml": OmegaConf.to_yaml(settings),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(config, "hydra")),
        "overrides.yaml": OmegaConf.to_yaml(hydra.overrides.task),
    }
    kept = hydra.output_subdir
    missing = instantiate(resolved.hardware).missing(os.environ)
    variables = {name: str(value) for name, value in _plain(hydra.job.env_set).items()}
    return Composed(
        folder,
        with_absolute_ledger(resolved),
        {} if kept is None else {f"{kept}/{name}": text for name, text in files.items()},
        _plain(hydra.job_logging),
        {**missing, **variables},
    )


def _plain(node: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@contextmanager
def _in_hydra(config: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` be that of this job."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    try:
        yield
    finally:
        instance.cfg = before


RECORD = "sweep.json"
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job that was started.

    Attributes:
        overrides: of its trial.
        environment: of its trial.
        folder: of its run, seen from the sweep's.
        state: running, or one of an outcome.
        reason: one line where it has not finished.
        seconds: wall time so far.
    """

    overrides: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    state: str
    reason: str | None
    seconds: float

    def outcome(self, number: int, sweep: Path) -> Outcome:
        """What became of it, by what lies in its folder where nobody was left to say."""
        folder = sweep / self.folder
        trial = Trial(number, tuple(self.overrides), dict(self.environment))
        state, reason = self.state, self.reason
        if state in (RUNNING, STOPPED, FINISHED):
            state, reason = found_in(folder)
        metrics = read_metrics(folder) if state == FINISHED else {}
        return Outcome(trial, folder, state, reason, metrics, self.seconds)


@dataclass(slots=True)
class SweepRecord:
    """What a sweep was asked, and its jobs.

    Attributes:
        folder: of the sweep, absolute.
        words: of its command line, without where it goes and how it goes on.
        cwd: folder that relative paths in them start at.
        jobs: that were started, by number.
    """

    folder: Path
    words: list[str]
    cwd: str
    jobs: dict[int, JobRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "SweepRecord":
        """Of a sweep that was started.

        Raises:
            ConfigError: the folder holds none.
        """
        path = folder / RECORD
        try:
            content = json.loads(path.read_bytes())
            jobs = {int(number): JobRecord(**one) for number, one in content["jobs"].items()}
            return cls(folder.absolute(), content["words"], content["cwd"], jobs)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"{folder} is not the folder of a sweep: it has no {RECORD}. Give the one that "
                "holds the numbered folders, such as outputs/top5/2024-12-19_10-00-00_sweep"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {error}. Start another sweep") from error

    def write(self) -> None:
        """Write at once or not at all."""
        content = {
            "words": self.words,
            "cwd": self.cwd,
            "jobs": {str(number): asdict(one) for number, one in sorted(self.jobs.items())},
        }
        write_atomic(self.folder / RECORD, (json.dumps(content, indent=1) + "\n").encode())


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a run that has finished."""
    found: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return found


def found_in(folder: Path) -> tuple[str, str | None]:
    """State and reason of a run that nobody trains, by what lies in its folder."""
    if (folder / METRICS).is_file():
        return FINISHED, None
    if (folder / FAILURE).is_file():
        said = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        return PRUNED if said["error"] == Pruned.__name__ else FAILED, one_line(said["message"])
    return STOPPED, "stopped before its end"


def one_line(text: str) -> str:
    """A message without its line breaks."""
    return " ".join(text.split())


LOG, TASK = "output.log", ".job"  # in the run folder
_LOST = "JobLost"  # kind of error of a job that could not say what ended it


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that was started and has not been seen to end.

    Attributes:
        trial: what is tried.
        folder: of its run.
        handle: of the executor.
        began: when, by the monotonic clock.
        before: seconds it had run before an interruption.
    """

    trial: Trial
    folder: Path
    handle: Handle
    began: float
    before: float

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return self.before + time.monotonic() - self.began

    def outcome(self, code: int, *, asked: bool) -> Outcome:
        """What became of it; also tidies up after it.

        Args:
            code: of its exit.
            asked: whether it was asked to stop.
        """
        ending = RankExit.read(self.folder / TASK, 0)
        shutil.rmtree(self.folder / TASK, ignore_errors=True)
        state, reason = found_in(self.folder)
        if state == STOPPED and asked:
            reason = one_line(ending.message) if ending and ending.message else reason
        elif state == STOPPED:
            state, reason = FAILED, _last_words(code, ending, self.folder / LOG)
            keep_failure(self.folder, _LOST, reason)
        metrics = read_metrics(self.folder) if state == FINISHED else {}
        return Outcome(self.trial, self.folder, state, reason, metrics, self.seconds)


def start_job(
    trial: Trial, composed: Composed, executor: Executor, *, verb: str, resume: bool, before: float
) -> RunningJob:
    """Start a job in processes of its own.

    Args:
        trial: what is tried.
        composed: its folder and frozen config.
        executor: where it runs.
        verb: module that the process runs.
        resume: go on from the checkpoint in the folder.
        before: seconds it has run before.

    Raises:
        ConfigError: the executor can start no jobs.
    """
    folder, config = composed.folder, composed.config
    (folder / TASK).mkdir(parents=True, exist_ok=True)
    (folder / METRICS).unlink(missing_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    RankExit.path(folder / TASK, 0).unlink(missing_ok=True)
    if not resume:
        composed.write_files()
    task = job_task(Job(config, folder, resume), logging=composed.logging)
    write_task(folder / TASK, task | {"module": verb})
    handle = executor.start(
        ("-m", verb, f"{LAUNCHED}={folder / TASK}"),
        environment={**composed.environment, **trial.environment},
        log=folder / LOG,
        name=f"{config.name}-{trial.number}",
    )
    return RunningJob(trial, folder, handle, time.monotonic(), before)


def keep_failure(folder: Path, kind: str, reason: str) -> None:
    """Write why a run has not finished into its folder, where its own process could not."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"error": kind, "message": reason}
    write_atomic(folder / FAILURE, (json.dumps(said, indent=2) + "\n").encode())


def _last_words(code: int, ending: RankExit | None, log: Path) -> str:
    """Why a job failed that has left no failure.json; its traceback is added to its log."""
    if ending is not None and ending.trace:
        with log.open("a", encoding="utf-8") as file:
            file.write(ending.trace)
    if ending is not None:
        lines = [ending.message, *reversed(ending.trace.splitlines())]
        return one_line(next((line for line in lines if line.strip()), f"exit code {code}"))
    if code < 0:
        why = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        return f"the job's process was killed by {signal.Signals(-code).name}{why}"
    said = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line for line in reversed(said) if line.strip()), "it wrote nothing")
    return one_line(f"exit code {code} without {METRICS}; the last line of {log.name}: {last}")
