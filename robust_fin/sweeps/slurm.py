"""Jobs on a SLURM cluster, through submitit: the submitting side and the command on the node."""

import importlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from robust_fin.errors import ConfigError
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.launcher import LAUNCHED, read_task, write_task
from robust_fin.runtime.process_state import INTERRUPTED
from robust_fin.sweeps.executors import LocalExecutor

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

SLURM, LOCAL = "slurm", "local"
_FOLDER, _ID = ".submitit", "job_id"  # in the run folder while the job is queued or runs
_RESUME_FILES = ("checkpoints/last.ckpt", "bundle/config.yaml")  # in a run folder that can resume
_POLL_SECONDS = 0.5  # submitit's files are on a shared disk
_NODE_POLL_SECONDS = 0.1
_RESULT_SECONDS = 15.0  # until a file written on another machine is visible here
_STOP = signal.SIGUSR1  # from the sweep: write a checkpoint and exit
_TIMEOUT = signal.SIGUSR2  # from SLURM: the time limit is near, or the job is preempted
# the job starts its own ranks; Lightning must not take it for a task of srun
_SRUN_VARIABLES = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclass(frozen=True, slots=True)
class NodeCommand:
    """The callable that submitit runs on the node: it runs the job as a child process.

    Attributes:
        words: arguments for the node's Python.
        environment: variables added to those of the submission.
        log: file that the job's output is appended to.
        folder: task folder of the job.
        task: the job's task; a requeued job resumes.
        resume_files: files that a resume needs; without them the job starts again.
        parent: id of a process on this machine that the job ends with; None if it is on another.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    task: Mapping[str, Any]
    resume_files: tuple[Path, ...]
    parent: int | None

    def __call__(self) -> int:
        """Run the job and return its exit code, minus the signal if one killed it."""
        requeue = signal.getsignal(_TIMEOUT)  # submitit's handler
        with _collect_signals() as received:
            # SIGINT was blocked in the process that started this one
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            self._write_task()
            code = self._run(received)
        if _TIMEOUT in received and code == INTERRUPTED and callable(requeue):
            requeue(_TIMEOUT, None)  # ends this process
        return code

    def checkpoint(self) -> "DelayedSubmission":
        """Return what submitit runs after a requeue: the same command."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _write_task(self) -> None:
        """Write the task. A job that ran before resumes, whatever ended it."""
        from submitit import JobEnvironment

        submission = JobEnvironment()
        marker = submission.paths.folder / f"{submission.job_id}.started"
        requeued = marker.exists() and all(path.is_file() for path in self.resume_files)
        self.folder.mkdir(exist_ok=True)
        write_task(self.folder, {**self.task, "resume": self.task["resume"] or requeued})
        marker.touch()

    def _run(self, received: Sequence[int]) -> int:
        for name in _SRUN_VARIABLES:
            os.environ.pop(name, None)
        parent, stopped = os.getppid(), False
        with _ignore_signals(_STOP, _TIMEOUT):
            job = LocalExecutor().start(
                self.words, environment=self.environment, log=self.log, name=self.log.parent.name
            )
        while (code := job.poll()) is None:
            if received and not stopped:
                stopped = True
                job.stop()
            if _must_kill(received) or os.getppid() != parent or self._parent_is_gone():
                job.kill()
            time.sleep(_NODE_POLL_SECONDS)
        job.close()
        return code

    def _parent_is_gone(self) -> bool:
        if self.parent is None:
            return False
        try:
            os.kill(self.parent, 0)
        except (ProcessLookupError, PermissionError):  # the id may belong to another user by now
            return True
        return False


def _must_kill(received: Sequence[int]) -> bool:
    """Check for SIGTERM after another request; scancel sends SIGTERM before it kills.

    SIGINT is not counted: a terminal's Ctrl-C may reach this process beside the sweep's signal.
    """
    requests = [number for number in received if number in (_STOP, signal.SIGTERM)]
    return len(requests) > 1 and requests[-1] == signal.SIGTERM


@contextmanager
def _ignore_signals(*numbers: int) -> Iterator[None]:
    """Start child processes that ignore these signals, which are meant for this process.

    Some clusters send them to every process of a job, and they would kill it.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Collect the signals that would end this process, and yield the list."""
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, _STOP, _TIMEOUT)
    before = {number: signal.signal(number, collect) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SlurmJob:
    """A submitted job.

    Args:
        job: submitit's job.
        log: file that the job's output is appended to.
        cluster: slurm or local.
    """

    def __init__(self, job: "Job[int]", *, log: Path, cluster: str) -> None:
        self.job, self._log, self._cluster = job, log, cluster
        self._code: int | None = None
        self._next_poll, self._ended_at = 0.0, 0.0

    def poll(self) -> int | None:
        """See `Handle.poll`. Submitit asks SLURM once for all jobs, at growing intervals."""
        now = time.monotonic()
        if self._code is None and now >= self._next_poll:
            self._next_poll = now + _POLL_SECONDS
            self._code = self._exit_code(now)
            if self._code is not None:
                shutil.rmtree(self._log.parent / _FOLDER, ignore_errors=True)
        return self._code

    def stop(self) -> None:
        """See `Handle.stop`. A pending job leaves the queue."""
        if self._code is not None:
            return
        if self._cluster == LOCAL:
            self._signal_local(signal.SIGTERM)  # submitit passes it on
            return
        _run_slurm("scancel", "--state=PENDING", self.job.job_id)
        _run_slurm("scancel", f"--signal={_STOP.name.removeprefix('SIG')}", self.job.job_id)
        self.job.watcher.clear()  # so that the next poll asks SLURM

    def kill(self) -> None:
        """See `Handle.kill`. SLURM waits for KillWait if the job does not exit."""
        if self._code is not None:
            return
        if self._cluster == LOCAL:
            self._signal_local(signal.SIGKILL)  # its child processes exit too
            return
        _run_slurm("scancel", self.job.job_id)
        self.job.watcher.clear()

    def _signal_local(self, number: signal.Signals) -> None:
        """Send a signal to submitit's process, the parent of the job."""
        if not self.job.done():
            os.kill(int(self.job.job_id), number)

    def _exit_code(self, now: float) -> int | None:
        if not self.job.done():
            return None
        if self.job.paths.result_pickle.exists():
            error = self.job.exception()
            return self._log_failure(str(error)) if error is not None else self.job.result()
        self._ended_at = self._ended_at or now
        if self._cluster == SLURM and now - self._ended_at < _RESULT_SECONDS:
            return None
        scheduler = "SLURM" if self._cluster == SLURM else "submitit"
        return self._log_failure(
            f"{self.job.stderr() or ''}\n{scheduler} reports that job {self.job.job_id} ended "
            f"({self.job.state}), but it left no result in {self._log.parent}; that folder must "
            "be on a disk that all machines share"
        )

    def _log_failure(self, reason: str) -> int:
        """Append to the job's log what the job itself could not write; return exit code 1."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{reason.strip()}\n")
        return 1


class SlurmExecutor:
    """Submits jobs of one task on one machine; the job starts its own ranks there.

    Args:
        cluster: `slurm`, or `local` to try it on this machine without SLURM.
        partition: SLURM partition; None, here and below, uses the cluster's default.
        account: account to charge.
        qos: quality of service.
        constraint: node features that the job requires.
        timeout_min: time limit of a job in minutes; then it writes a checkpoint and is requeued.
        requeues: how often a job is requeued at most.
        signal_delay_s: seconds before the time limit at which the checkpoint starts.
        cpus_per_task: cores of a job.
        mem_gb: memory of a job.
        gpus_per_node: GPUs of a job, as many as trainer.devices.
        setup: shell lines run before the job.
        additional_parameters: further options of sbatch, by name.

    Raises:
        ConfigError: submitit is not installed, or the cluster has another name.
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
        if cluster not in (SLURM, LOCAL):
            raise ConfigError(f"executor.cluster={cluster} must be {SLURM} or {LOCAL}")
        _require_submitit()
        self._cluster, self._requeues = cluster, requeues
        self._parameters = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "mem_gb": mem_gb,
            "gpus_per_node": gpus_per_node or None,
            "nodes": 1,
            "tasks_per_node": 1,
            "stderr_to_stdout": False,
            f"{cluster}_setup": list(setup) or None,
            "slurm_partition": partition,
            "slurm_account": account,
            "slurm_qos": qos,
            "slurm_constraint": constraint,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_additional_parameters": dict(additional_parameters) or None,
        }
        self._jobs: list[SlurmJob] = []

    def start(
        self, words: Sequence[str], *, environment: Mapping[str, str], log: Path, name: str
    ) -> SlurmJob:
        """See `Executor.start`."""
        prefix = f"{LAUNCHED}="
        (folder,) = (Path(word.removeprefix(prefix)) for word in words if word.startswith(prefix))
        command = NodeCommand(
            words=tuple(words),
            environment=dict(environment),
            log=log,
            folder=folder,
            task=read_task(folder),
            resume_files=tuple(log.parent / name for name in _RESUME_FILES),
            parent=os.getpid() if self._cluster == LOCAL else None,
        )
        job = self._submit(command, log.parent / _FOLDER, name)
        self._jobs.append(SlurmJob(job, log=log, cluster=self._cluster))
        return self._jobs[-1]

    def close(self) -> None:
        """See `Executor.close`."""
        for job in self._jobs:
            job.kill()
        while self._cluster == LOCAL and any(job.poll() is None for job in self._jobs):
            time.sleep(0.02)
        self._jobs.clear()

    def _submit(self, command: NodeCommand, folder: Path, name: str) -> "Job[int]":
        """Submit a command, after the job that a killed sweep left in the same run folder.

        Raises:
            ConfigError: SLURM is not installed, or rejects the job.
        """
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        dependency = {} if self._cluster == LOCAL else _cancel_previous(folder)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            executor = AutoExecutor(
                folder, cluster=self._cluster, slurm_max_num_timeout=self._requeues
            )
            executor.update_parameters(name=name, **self._parameters, **dependency)
            with _block_sigint():
                job: Job[int] = executor.submit(command)
        except (FailedJobError, FailedSubmissionError, NameError, AssertionError, OSError) as error:
            raise ConfigError(
                f"SLURM rejects the job: {error}. Check the settings of executor"
            ) from error
        except RuntimeError as error:
            raise ConfigError(
                "executor=submitit needs a machine that can submit jobs to a SLURM cluster "
                f"({error}). To try it without SLURM, use executor.cluster={LOCAL}"
            ) from error
        write_atomic(folder / _ID, job.job_id.encode())
        return job


def _require_submitit() -> None:
    try:
        importlib.import_module("submitit")
    except ImportError as error:
        raise ConfigError(
            f"executor=submitit needs submitit ({error}). Install the extra: "
            'pip install -c constraints.txt -e ".[slurm]"'
        ) from error


def _cancel_previous(folder: Path) -> dict[str, str]:
    """Cancel the job that a killed sweep left in a run folder; return the dependency on its end."""
    path = folder / _ID
    job = path.read_text(encoding="utf-8") if path.is_file() else None
    if job is None or not _run_slurm("squeue", "--noheader", f"--jobs={job}").strip():
        return {}
    _run_slurm("scancel", job)
    return {"slurm_dependency": f"afterany:{job}"}


def _run_slurm(*words: str) -> str:
    """Run a SLURM command; return its output, empty if it fails, as for a job that is gone."""
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    return process.stdout if process.returncode == 0 else ""


@contextmanager
def _block_sigint() -> Iterator[None]:
    """Block SIGINT in the child process started here: the sweep passes the terminal's Ctrl-C on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
