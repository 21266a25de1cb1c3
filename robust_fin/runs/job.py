"""A training job in this process or in several ranks, and the record of why it failed."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.runs.schema import USER_ERRORS, apply_schema, format_error
from robust_fin.runtime.atomic_files import write_atomic
from robust_fin.runtime.devices import check_trainer
from robust_fin.runtime.launcher import (
    LAUNCHED,
    launch,
    launched_rank_info,
    plan_launch,
    rank_environment,
    read_task,
)
from robust_fin.runtime.process_state import RankError, exit_with_parent, run_and_record_exit
from robust_fin.runtime.rank_info import (
    RankInfo,
    all_gather,
    broadcast_from_first,
    external_rank,
    external_rank_info,
    is_first,
    process_group,
    require_equal_on_ranks,
)

FAILURE = "failure.json"


@contextlib.contextmanager
def reason_kept(run: Path) -> Iterator[None]:
    """Write an error that a user can fix into the run folder, on its way to the command line.

    A sweep prints the first error of its jobs alone. The file of an earlier attempt is removed.

    Args:
        run: the run folder.
    """
    path = run / FAILURE
    if is_first():
        path.unlink(missing_ok=True)
    try:
        yield
    except RobustFinError as error:
        if is_first():
            _keep(run, error)
        raise


@contextlib.contextmanager
def loss_kept(run: Path) -> Iterator[None]:
    """The same around the processes of a run: one that is lost cannot write its reason itself."""
    (run / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except RobustFinError as error:
        if not (run / FAILURE).exists():  # what a process said itself says more
            _keep(run, error)
        raise


def _keep(run: Path, error: RobustFinError) -> None:
    if run.is_dir():
        said = {"error": type(error).__name__, "message": str(error)}
        write_atomic(run / FAILURE, (json.dumps(said, indent=2) + "\n").encode())


Work = Callable[["Job"], object]


@dataclass(frozen=True, slots=True)
class Job:
    """What every process of a run does.

    Attributes:
        config: as composed, or read from the bundle of the run that is resumed.
        run: the run folder.
        resume: go on from the checkpoints in it.
    """

    config: DictConfig
    run: Path
    resume: bool


def start(job: Job, work: Work, *, module: str, logging: Mapping[str, Any] | None = None) -> None:
    """Do the work here, or start the processes that do it and wait for them.

    Args:
        job: what to do.
        work: how.
        module: whose `main` does the same in a process with the word launched=FOLDER.
        logging: settings of the run's log file; None takes Hydra's where it has a part in the run.

    Raises:
        ConfigError: trainer, hardware, machine and environment do not fit together.
        RankError: one of the processes was lost, or failed with a message.
    """
    config = job.config
    if _is_sweep():
        refuse_outside_ranks(os.environ)
    plan = plan_launch(config.trainer, instantiate(config.hardware), os.environ)
    if plan.processes == 0:
        _take_part(job, work, plan.info)
        return
    task = task_of(job, logging=logging or _logging(job.run))
    with loss_kept(job.run):
        launch(
            module,
            task,
            processes=plan.processes,
            environment=plan.environment,
            advice=f"python -m robust_fin.train resume={job.run} goes on from the last checkpoint",
        )


def task_of(job: Job, *, logging: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a process is told of a job: its settings to the last digit, where, and how to log."""
    return {
        "config": OmegaConf.to_yaml(job.config, resolve=True),
        "run": str(job.run),
        "resume": job.resume,
        "logging": logging,
    }


def refuse_outside_ranks(environ: Mapping[str, str]) -> None:
    """Refuse a sweep in each of the processes that torchrun or srun started.

    Raises:
        ConfigError: there are several of them.
    """
    if external_rank_info(environ) is not None:
        raise ConfigError(
            "a sweep cannot be run under torchrun or srun: every process would go through all jobs "
            "by itself. Start it alone; each job then starts its own processes on this machine"
        )


def is_launched(words: Sequence[str]) -> bool:
    """Whether a command line is that of a rank that `start` has started."""
    return any(word.startswith(f"{LAUNCHED}=") for word in words)


def run_rank(words: Sequence[str], work: Work) -> int:
    """What a started process does; returns its exit code.

    One that was started for a whole job (its task names a `module`) starts the job's ranks itself.
    """
    (folder,) = (Path(one.partition("=")[2]) for one in words if one.startswith(f"{LAUNCHED}="))
    exit_with_parent(folder)
    task = read_task(folder)
    module = task.get("module")
    if module is not None:
        for name in rank_environment(0, 1):
            os.environ.pop(name, None)  # whoever set it, it is not of this job
    place = launched_rank_info(folder, os.environ) or external_rank_info(os.environ)
    if task["logging"] and (place is None or place.rank == 0):
        configure_log(OmegaConf.create(task["logging"]))
    config = OmegaConf.create(task["config"])
    assert isinstance(config, DictConfig)
    job = Job(apply_schema(config), Path(task["run"]), task["resume"])
    if module is not None:
        part = partial(start, job, work, module=module, logging=task["logging"])
    else:
        part = partial(_take_part, job, work, place)
    return run_and_record_exit(
        folder,
        0 if place is None else place.rank,
        part,
        errors=USER_ERRORS,
        readable=format_error,
    )


def words_of_rank(environ: Mapping[str, str]) -> list[str]:
    """Overrides that keep Hydra from writing in all but the first process of torchrun or srun."""
    if external_rank(environ) == 0:
        return []
    return ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]


def _take_part(job: Job, work: Work, place: RankInfo | None) -> None:
    if place is None:
        work(job)
        return
    _require_world(job.config, place)
    # Lightning would set torch's threads itself
    os.environ.setdefault("OMP_NUM_THREADS", str(job.config.threads))
    with process_group(place, accelerator=job.config.trainer.accelerator):
        work(_agreed(job))


def _require_world(config: DictConfig, place: RankInfo) -> None:
    """Refuse to train with another number of processes than the settings ask for.

    Raises:
        ConfigError: says both numbers.
    """
    devices = check_trainer(config.trainer, instantiate(config.hardware))
    place.check_world(devices=devices, nodes=int(config.trainer.num_nodes))


def _agreed(job: Job) -> Job:
    """The same job in every process: rank 0's folder, and settings that are equal."""
    settings = OmegaConf.to_yaml(job.config, resolve=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    require_equal_on_ranks(digest, what="the hashes of the settings")
    run = Path(broadcast_from_first(str(job.run)))
    blind = [rank for rank, sees in enumerate(all_gather(run.is_dir())) if not sees]
    if blind:
        raise RankError(
            f"rank {', '.join(map(str, blind))} cannot see the run folder {run}, which rank 0 has "
            "made. Put it on a disk that all machines share, with hydra.run.dir=FOLDER"
        )
    return Job(job.config, run, job.resume)


def _is_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def _logging(run: Path) -> dict[str, Any] | None:
    """Hydra's settings of the run's log file; None on resume, which Hydra has no part in."""
    if not HydraConfig.initialized() or HydraConfig.get().runtime.output_dir != str(run):
        return None
    found = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
