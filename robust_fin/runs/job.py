"""A training job in this process or in several ranks, and the record of why it failed."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.runs.schema import USER_ERRORS, apply_schema, format_error, plain_values
from robust_fin.runtime.devices import check_trainer
from robust_fin.runtime.files import lock_folder, write_atomic
from robust_fin.runtime.launcher import (
    LAUNCHED,
    launch,
    launched_rank_info,
    plan_launch,
    rank_environment,
    read_task,
)
from robust_fin.runtime.process_state import (
    RankError,
    exit_with_parent,
    report_alive,
    run_and_record_exit,
)
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
from robust_fin.runtime.terminal import command_hint

FAILURE = "failure.json"


@contextlib.contextmanager
def record_failure(run: Path) -> Iterator[None]:
    """Write an error that a user can fix to failure.json in the run folder, and re-raise it.

    A sweep prints only the first error of its jobs. The file of an earlier attempt is removed.
    """
    path = run / FAILURE
    if is_first():
        path.unlink(missing_ok=True)
    try:
        yield
    except RobustFinError as error:
        if is_first():
            _write_failure(run, error)
        raise


@contextlib.contextmanager
def record_lost_rank(run: Path) -> Iterator[None]:
    """Write failure.json on behalf of a rank that died before it could write its own."""
    (run / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except RobustFinError as error:
        if not (run / FAILURE).exists():  # the rank's own message says more
            _write_failure(run, error)
        raise


def _write_failure(run: Path, error: RobustFinError) -> None:
    if run.is_dir():
        content = {"error": type(error).__name__, "message": str(error)}
        write_atomic(run / FAILURE, (json.dumps(content, indent=2) + "\n").encode())


@dataclass(frozen=True, slots=True)
class Job:
    """One training, as every rank of it is told.

    Attributes:
        config: composed by Hydra, or read from the bundle of the run that is resumed.
        run: the run folder.
        resume: continue from the checkpoints in the run folder.
    """

    config: DictConfig
    run: Path
    resume: bool


Work = Callable[[Job], object]


def start_job(
    job: Job, work: Work, *, module: str, logging: Mapping[str, Any] | None = None
) -> None:
    """Do the work in this process, or start ranks that do it and wait for them.

    Args:
        job: the training.
        work: called with the job, once per rank.
        module: the module whose `main` does the same work in a rank started with launched=FOLDER.
        logging: settings of the run's log file; None for those of Hydra, if it started the run.

    Raises:
        ConfigError: trainer, hardware, machine and environment variables contradict each other, or
            another command is working in the run folder.
        RankError: a rank died, or failed with a message.
    """
    with lock_folder(job.run) if external_rank(os.environ) == 0 else contextlib.nullcontext():
        _start_ranks(job, work, module=module, logging=logging)


def _start_ranks(job: Job, work: Work, *, module: str, logging: Mapping[str, Any] | None) -> None:
    config = job.config
    if _is_sweep():
        check_not_in_rank(os.environ)
    plan = plan_launch(config.trainer, instantiate(config.hardware), os.environ)
    if plan.processes == 0:
        _run_as_rank(job, work, plan.info)
        return
    task = job_task(job, logging=logging or _log_settings(job.run))
    with record_lost_rank(job.run):
        launch(
            module,
            task,
            processes=plan.processes,
            environment=plan.environment,
            advice=f"{command_hint('train', 'resume', job.run)} continues from the last checkpoint",
            rank_timeout=float(config.hardware.rank_timeout),
        )


def job_task(job: Job, *, logging: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a job as plain values, for the process that is started to do it."""
    return {
        "config": OmegaConf.to_yaml(job.config, resolve=True),
        "run": str(job.run),
        "resume": job.resume,
        "logging": logging,
    }


def check_not_in_rank(environ: Mapping[str, str]) -> None:
    """Raise ConfigError if torchrun or srun started several processes, each with this sweep."""
    if external_rank_info(environ) is not None:
        raise ConfigError(
            "a sweep cannot be run under torchrun or srun: every process would run all jobs. "
            "Start it without them; each job then starts its own ranks on this machine"
        )


def is_launched_rank(words: Sequence[str]) -> bool:
    """Return True for the command line of a rank that `start_job` started."""
    return any(word.startswith(f"{LAUNCHED}=") for word in words)


def run_rank(words: Sequence[str], work: Work) -> int:
    """Do the work of a started process and return its exit code.

    A process that was started for a whole job (its task names a `module`) starts the job's ranks.
    """
    (folder,) = (Path(word.partition("=")[2]) for word in words if word.startswith(f"{LAUNCHED}="))
    exit_with_parent(folder)
    task = read_task(folder)
    module = task.get("module")
    if module is not None:
        for name in rank_environment(0, 1):
            os.environ.pop(name, None)  # set by the starter, not for this job
    rank_info = launched_rank_info(folder, os.environ) or external_rank_info(os.environ)
    rank = 0 if rank_info is None else rank_info.rank
    report_alive(folder, rank)
    if task["logging"] and rank == 0:
        configure_log(OmegaConf.create(task["logging"]))
    config = OmegaConf.create(task["config"])
    assert isinstance(config, DictConfig)
    job = Job(apply_schema(config), Path(task["run"]), task["resume"])
    if module is not None:
        part = partial(start_job, job, work, module=module, logging=task["logging"])
    else:
        part = partial(_run_as_rank, job, work, rank_info)
    return run_and_record_exit(folder, rank, part, errors=USER_ERRORS, readable=format_error)


def rank_overrides(environ: Mapping[str, str]) -> list[str]:
    """Return overrides that stop Hydra from writing in all ranks but rank 0 of torchrun or srun."""
    if external_rank(environ) == 0:
        return []
    return ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]


def _run_as_rank(job: Job, work: Work, rank_info: RankInfo | None) -> None:
    """Do the work in this process, as one of several ranks unless `rank_info` is None."""
    if rank_info is None:
        work(job)
        return
    trainer = job.config.trainer
    devices = check_trainer(trainer, instantiate(job.config.hardware))
    rank_info.check_world(devices=devices, nodes=int(trainer.num_nodes))
    # otherwise Lightning sets torch's number of threads
    os.environ.setdefault("OMP_NUM_THREADS", str(job.config.threads))
    with process_group(rank_info, accelerator=trainer.accelerator):
        work(_agree_on_job(job))


def _agree_on_job(job: Job) -> Job:
    """Check that all ranks have the same settings, and return the job in rank 0's run folder."""
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
    return replace(job, run=run)


def _is_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def _log_settings(run: Path) -> dict[str, Any] | None:
    """Return Hydra's settings of the run's log file; None on resume, which Hydra does not start."""
    if not HydraConfig.initialized() or HydraConfig.get().runtime.output_dir != str(run):
        return None
    return plain_values(cast(DictConfig, HydraConfig.get().job_logging))
