"""Jobs as those of a SLURM cluster, through submitit."""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_fin.errors import ConfigError
from robust_fin.runtime.launcher import LAUNCHED, read_task
from robust_fin.sweeps.slurm_node import STOP, NodeCommand

if TYPE_CHECKING:
    from submitit import Job

SLURM, LOCAL = "slurm", "local"
_FOLDER, _ID = ".submitit", "job_id"  # in the run folder, while the job is there
_NEEDED = ("checkpoints/last.ckpt", "bundle/config.yaml")  # of a run folder, to go on from
_SECONDS_POLL = 0.5  # a job's files lie on a shared disk
_SECONDS_RESULT = 15.0  # until a file of another machine is seen here


class SlurmJob:
    """A job that was submitted.

    Args:
        job: submitit's.
        log: file that the job writes to.
        cluster: slurm or local.
    """

    def __init__(self, job: "Job[int]", *, log: Path, cluster: str) -> None:
        """Nothing known of it yet."""
        self.job, self._log, self._cluster = job, log, cluster
        self._code: int | None = None
        self._due, self._over = 0.0, 0.0

    def poll(self) -> int | None:
        """See `Handle.poll`; SLURM itself is asked ever more seldom, once for all jobs."""
        now = time.monotonic()
        if self._code is None and now >= self._due:
            self._due = now + _SECONDS_POLL
            self._code = self._ended(now)
            if self._code is not None:
                shutil.rmtree(self._log.parent / _FOLDER, ignore_errors=True)
        return self._code

    def stop(self) -> None:
        """See `Handle.stop`; one that still waits in the queue leaves it."""
        if self._code is not None:
            return
        if self._cluster == LOCAL:
            self._signal(signal.SIGTERM)  # submitit passes this one on
            return
        _slurm("scancel", "--state=PENDING", self.job.job_id)
        _slurm("scancel", f"--signal={STOP.name.removeprefix('SIG')}", self.job.job_id)
        self.job.watcher.clear()  # so that the end is seen soon

    def kill(self) -> None:
        """See `Handle.kill`; SLURM takes its KillWait where the job does not answer."""
        if self._code is not None:
            return
        if self._cluster == LOCAL:
            self._signal(signal.SIGKILL)  # what is below it ends with it
            return
        _slurm("scancel", self.job.job_id)
        self.job.watcher.clear()

    def _signal(self, number: signal.Signals) -> None:
        """To submitit's process, of which the job is one below."""
        if not self.job.done():
            os.kill(int(self.job.job_id), number)

    def _ended(self, now: float) -> int | None:
        if not self.job.done():
            return None
        if self.job.paths.result_pickle.exists():
            trace = self.job.exception()
            return self._lost(str(trace)) if trace is not None else self.job.result()
        self._over = self._over or now
        if self._cluster == SLURM and now - self._over < _SECONDS_RESULT:
            return None
        what = "SLURM" if self._cluster == SLURM else "submitit"
        return self._lost(
            f"{self.job.stderr() or ''}\n{what} says that job {self.job.job_id} is over "
            f"({self.job.state}), and it left no result in {self._log.parent}; that folder must "
            "lie on a disk that all machines share"
        )

    def _lost(self, what: str) -> int:
        """Say in the job's log what it could not say itself."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{what.strip()}\n")
        return 1


class SlurmExecutor:
    """Submits jobs of one task each, on one machine, where a job starts its ranks itself.

    Args:
        cluster: slurm; local, on this machine without SLURM, to try it out.
        partition: of the cluster; None leaves it to the cluster, as below.
        account: that pays.
        qos: quality of service.
        constraint: features that a machine must have.
        timeout_min: time of a job, after which it writes a checkpoint and waits in the queue again.
        requeues: how often it does so at most.
        signal_delay_s: seconds before that time is over at which the checkpoint is begun.
        cpus_per_task: cores of a job.
        mem_gb: memory of a job; None leaves it to the cluster.
        gpus_per_node: of a job, as many as trainer.devices asks for.
        setup: lines of shell that come before a job.
        additional_parameters: of sbatch, by name.

    Raises:
        ConfigError: submitit is not there, or the cluster has another name.
    """

    def __init__(
        self,
        *,
        cluster: str,
        partition: str | None,
        account: str | None,
        qos: str | None,
        constraint: str | None,
        timeout_min: int,
        requeues: int,
        signal_delay_s: int,
        cpus_per_task: int,
        mem_gb: float | None,
        gpus_per_node: int,
        setup: Sequence[str],
        additional_parameters: Mapping[str, Any],
    ) -> None:
        """Submit nothing yet."""
        if cluster not in (SLURM, LOCAL):
            raise ConfigError(f"executor.cluster={cluster} must be {SLURM} or {LOCAL}")
        _require_submitit()
        self._cluster, self._requeues = cluster, requeues
        of_slurm = {
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "signal_delay_s": signal_delay_s,
            "additional_parameters": dict(additional_parameters) or None,
        }
        self._parameters = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "mem_gb": mem_gb,
            "gpus_per_node": gpus_per_node or None,
            "nodes": 1,
            "tasks_per_node": 1,
            "stderr_to_stdout": False,
            f"{cluster}_setup": list(setup) or None,
            **{f"slurm_{name}": value for name, value in of_slurm.items()},
        }
        self._jobs: list[SlurmJob] = []

    def start(
        self, words: Sequence[str], *, environment: Mapping[str, str], log: Path, name: str
    ) -> SlurmJob:
        """See `Executor.start`."""
        (task,) = (Path(one.partition("=")[2]) for one in words if one.startswith(f"{LAUNCHED}="))
        command = NodeCommand(
            words=tuple(words),
            environment=dict(environment),
            log=log,
            folder=task,
            task=read_task(task),
            needed=tuple(log.parent / one for one in _NEEDED),
            starter=os.getpid() if self._cluster == LOCAL else None,
        )
        job = SlurmJob(
            self._submitted(command, log.parent / _FOLDER, name), log=log, cluster=self._cluster
        )
        self._jobs.append(job)
        return job

    def close(self) -> None:
        """See `Executor.close`."""
        for job in self._jobs:
            job.kill()
        while self._cluster == LOCAL and any(job.poll() is None for job in self._jobs):
            time.sleep(0.02)
        self._jobs.clear()

    def _submitted(self, command: NodeCommand, folder: Path, name: str) -> "Job[int]":
        """What submitit made of it.

        Raises:
            ConfigError: SLURM is not there, or refuses it.
        """
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        before = {} if self._cluster == LOCAL else _left_before(folder)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            executor = AutoExecutor(
                folder, cluster=self._cluster, slurm_max_num_timeout=self._requeues
            )
            executor.update_parameters(name=name, **self._parameters, **before)
            with _terminal_kept():
                job: Job[int] = executor.submit(command)
        except (RuntimeError, NameError, AssertionError, OSError) as error:
            if isinstance(error, RuntimeError) and not isinstance(
                error, FailedJobError | FailedSubmissionError
            ):
                raise ConfigError(
                    "executor=submitit needs a machine from which jobs of a SLURM cluster are "
                    f"submitted ({error}); executor.cluster={LOCAL} tries it out without SLURM"
                ) from error
            raise ConfigError(
                f"SLURM takes no job: {error}. See the settings of executor"
            ) from error
        (folder / _ID).write_text(job.job_id, encoding="utf-8")
        return job


def _require_submitit() -> None:
    """Refuse to go on without submitit.

    Raises:
        ConfigError: names the extra.
    """
    try:
        importlib.import_module("submitit")
    except ImportError as error:
        raise ConfigError(
            f"executor=submitit needs submitit ({error}). Install the extra: "
            'pip install -c constraints.txt -e ".[slurm]"'
        ) from error


def _left_before(folder: Path) -> dict[str, str]:
    """What keeps a job waiting for the one that a killed sweep has left in the same run folder."""
    path = folder / _ID
    job = path.read_text(encoding="utf-8") if path.is_file() else None
    if job is None or not _slurm("squeue", "--noheader", f"--jobs={job}").strip():
        return {}
    _slurm("scancel", job)
    return {"slurm_dependency": f"afterany:{job}"}


def _slurm(*words: str) -> str:
    """What a command of SLURM says; nothing where it fails, as for a job that is gone."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """Let what is started now not be ended by the terminal's Ctrl-C, which the sweep passes on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
