"""The executor interface: jobs as processes of this machine, or on a Ray cluster."""

import importlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from robust_fin.errors import ConfigError
from robust_fin.runtime.process_state import INTERRUPTED


@runtime_checkable
class Handle(Protocol):
    """A started job."""

    def poll(self) -> int | None:
        """Return the exit code, minus the signal if one killed it, or None if it has not ended."""
        ...

    def stop(self) -> None:
        """Ask the job to write a checkpoint and exit, as SIGINT does. No effect once it ended."""
        ...

    def kill(self) -> None:
        """End the job and all its processes at once. No effect once it ended."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Starts jobs without blocking. All calls come from one thread.

    A job is one process, which starts its own ranks. Its input and output are files in its run
    folder, so an executor for other machines needs a shared disk and nothing else.
    """

    def start(
        self, words: Sequence[str], *, environment: Mapping[str, str], log: Path, name: str
    ) -> Handle:
        """Start a job.

        Args:
            words: arguments for the Python of this environment, run in this working directory,
                e.g. `-m robust_fin.train launched=/sweep/3/.job`. Standard input must be empty, or
                a pipe that closes when the job should end together with this process.
            environment: variables added to those of this process.
            log: file that the job's output is appended to.
            name: job name shown in queues, e.g. `top5-3`.

        Raises:
            ConfigError: the executor cannot start jobs. This ends the sweep.
        """
        ...

    def close(self) -> None:
        """Kill the jobs that still run, and release all resources."""
        ...


_CTRL_C = signal.SIGINT if os.name == "posix" else signal.SIGTERM


class LocalJob:
    """A child process that ends together with this process.

    Args:
        process: started with a pipe as standard input.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        """See `Handle.poll`."""
        return self.process.poll()

    def stop(self) -> None:
        """See `Handle.stop`."""
        if self.process.poll() is None:
            self.process.send_signal(_CTRL_C)

    def kill(self) -> None:
        """See `Handle.kill`. The job's ranks exit when their standard input closes."""
        if self.process.poll() is None:
            self.process.kill()

    def close(self) -> None:
        """Kill the process, reap it and close its pipe."""
        self.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class LocalExecutor:
    """Runs each job as a child process."""

    def __init__(self) -> None:
        self._jobs: list[LocalJob] = []

    def start(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        name: str,  # noqa: ARG002
    ) -> LocalJob:
        """See `Executor.start`."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                # otherwise the terminal's Ctrl-C reaches the job in addition to the sweep's signal
                process_group=0 if os.name == "posix" else None,
            )
        self._jobs.append(LocalJob(process))
        return self._jobs[-1]

    def close(self) -> None:
        """See `Executor.close`."""
        for job in self._jobs:
            job.close()
        self._jobs.clear()


_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 10.0  # time for killed jobs to disappear
# no usage statistics, no warning about a future Ray
_RAY_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayNodeJob:
    """A Ray actor that runs a job on a node. `stop` is called while `run` blocks."""

    def __init__(self) -> None:
        self._job: LocalJob | None = None

    def run(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        inherited: Mapping[str, str],
        log: Path,
        cwd: str,
    ) -> int:
        """Run the job and return its exit code, minus the signal if one killed it.

        Args:
            words: arguments for the node's Python.
            environment: variables of the job.
            inherited: variables of the sweep; those that the node defines itself are ignored.
            log: file that the job's output is appended to.
            cwd: working directory.

        Raises:
            ConfigError: the node does not see the same folders.
        """
        for folder in (log.parent, Path(cwd)):
            if not folder.is_dir():
                raise ConfigError(
                    f"{os.uname().nodename} cannot see the folder {folder}. Use a folder on a disk "
                    "that all machines share: hydra.sweep.dir=FOLDER"
                )
        os.chdir(cwd)
        # Ray blocks SIGINT in actor threads, and child processes inherit that
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        added = {name: value for name, value in inherited.items() if name not in os.environ}
        executor = LocalExecutor()
        self._job = executor.start(
            words, environment={**added, **environment}, log=log, name=log.parent.name
        )
        while (code := self._job.poll()) is None:
            time.sleep(_POLL_SECONDS)
        executor.close()
        return code

    def stop(self) -> None:
        """Ask the job to write a checkpoint and exit."""
        while self._job is None:
            time.sleep(_POLL_SECONDS)
        self._job.stop()


class RayJob:
    """A job submitted to Ray.

    Args:
        ray: the package.
        actor: handle of a `RayNodeJob`.
        result: future of the actor's `run`.
        log: the job's log file.
    """

    def __init__(self, ray: ModuleType, actor: Any, result: Any, *, log: Path) -> None:
        self._ray, self._actor, self._result, self._log = ray, actor, result, log
        self._ready = actor.__ray_ready__.remote()
        self._code: int | None = None

    def poll(self) -> int | None:
        """See `Handle.poll`."""
        if self._code is None and self._is_done(self._result):
            self._code = self._exit_code()
            self._ray.kill(self._actor)  # releases its CPUs and GPUs
        return self._code

    def stop(self) -> None:
        """See `Handle.stop`. A job that still waits for resources is cancelled."""
        if self.poll() is not None:
            return
        if self._is_done(self._ready):
            self._actor.stop.remote()
        else:
            self._ray.kill(self._actor)
            self._code = INTERRUPTED

    def kill(self) -> None:
        """See `Handle.kill`. The process and its ranks exit when their standard input closes."""
        if self.poll() is None:
            self._ray.kill(self._actor)

    def _is_done(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    def _exit_code(self) -> int:
        try:
            return int(self._ray.get(self._result))
        except (ConfigError, self._ray.exceptions.RayError) as error:
            message = str(getattr(error, "cause", None) or error)
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{' '.join(message.split())}\n")
        return 1


class RayExecutor:
    """Submits jobs to Ray, which schedules them on the cluster's machines.

    Args:
        address: of the cluster; `auto` joins the cluster that this machine belongs to, None starts
            Ray on this machine.
        num_cpus: cores per job.
        num_gpus: GPUs per job, as many as trainer.devices; with 0 a job sees none.
        resources: custom resources of the cluster that a job takes, by name.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(
        self,
        *,
        address: str | None,
        num_cpus: float,
        num_gpus: float,
        resources: Mapping[str, float],
    ) -> None:
        self._ray = _import_ray()
        self._address = address
        self._required = {"CPU": num_cpus, "GPU": num_gpus, **resources}
        self._options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": dict(resources),
            "max_concurrency": 2,  # run and stop
        }
        self._jobs: list[RayJob] = []
        self._temp_folder: Path | None = None  # of a Ray started here

    def start(
        self, words: Sequence[str], *, environment: Mapping[str, str], log: Path, name: str
    ) -> RayJob:
        """See `Executor.start`."""
        if not self._ray.is_initialized():
            self._connect()
        actor = self._ray.remote(RayNodeJob).options(**self._options).remote()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        result = actor.run.options(name=name).remote(
            tuple(words), dict(environment), inherited, log, os.getcwd()
        )
        self._jobs.append(RayJob(self._ray, actor, result, log=log))
        return self._jobs[-1]

    def close(self) -> None:
        """See `Executor.close`."""
        for job in self._jobs:
            job.kill()
        deadline = time.monotonic() + _CLOSE_SECONDS
        while any(job.poll() is None for job in self._jobs) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._jobs.clear()
        self._ray.shutdown()
        if self._temp_folder is not None:
            shutil.rmtree(self._temp_folder, ignore_errors=True)

    def _connect(self) -> None:
        """Start Ray on this machine, or join a cluster.

        Raises:
            ConfigError: there is no such cluster, or this machine lacks what a job needs.
        """
        settings: dict[str, Any] = {}
        if self._address is None:
            self._temp_folder = Path(tempfile.mkdtemp(prefix="robust_fin_ray_"))
            settings = {"include_dashboard": False, "_temp_dir": str(self._temp_folder)}
            # otherwise Ray writes an authentication token into the user's home
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.update(_RAY_VARIABLES)
        logging.getLogger("ray").setLevel(logging.ERROR)  # init logs before it reads logging_level
        try:
            with _preserve_sigterm():
                self._ray.init(
                    address=self._address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **settings,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"executor.address={self._address} leads to no Ray cluster "
                f"({' '.join(str(error).split())}). Start one with `ray start --head`, or use "
                "executor.address=null to start Ray on this machine alone"
            ) from error
        if self._address is None:
            self._check_resources()

    def _check_resources(self) -> None:
        """Raise ConfigError unless this machine alone has what a job requires."""
        available = self._ray.cluster_resources()
        for resource, required in self._required.items():
            if required > available.get(resource, 0.0):
                raise ConfigError(
                    f"a job needs {required:g} {resource}, but this machine has "
                    f"{available.get(resource, 0.0):g}. Lower executor.num_cpus, executor.num_gpus "
                    "or executor.resources, or join a cluster with executor.address"
                )


@contextmanager
def _preserve_sigterm() -> Iterator[None]:
    """Restore the SIGTERM handler, which lets jobs write checkpoints; Ray's would exit at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _import_ray() -> ModuleType:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"executor=ray needs Ray ({error}). Install the extra: "
            'pip install -c constraints.txt -e ".[ray]"'
        ) from error
