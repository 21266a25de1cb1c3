"""Jobs on the machines of a Ray cluster."""

import importlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from robust_fin.errors import ConfigError
from robust_fin.runtime.process_state import INTERRUPTED
from robust_fin.sweeps.local import LocalExecutor, LocalJob

_SECONDS_POLL = 0.1
_SECONDS_CLOSE = 10.0  # for the jobs to be gone
# no word to Ray's makers, and no warning of what a later Ray will do
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class NodeJob:
    """The end of a job that is on the node: an actor, whose methods run side by side."""

    def __init__(self) -> None:
        """Nothing started yet."""
        self._job: LocalJob | None = None

    def run(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        inherited: Mapping[str, str],
        log: Path,
        cwd: str,
    ) -> int:
        """Run the job; its exit code, minus the signal where one killed it.

        Args:
            words: for the node's Python.
            environment: variables of the job.
            inherited: variables of the sweep, for those that the node has none of its own for.
            log: file that everything the job writes is added to.
            cwd: folder that relative paths start at.

        Raises:
            ConfigError: the node has not the same folders.
        """
        for folder in (log.parent, Path(cwd)):
            if not folder.is_dir():
                raise ConfigError(
                    f"{os.uname().nodename} cannot see the folder {folder}. Put it on a disk that "
                    "all machines share, with hydra.sweep.dir=FOLDER"
                )
        os.chdir(cwd)
        # Ray blocks it in the threads of its actors, and a process inherits that
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        added = {name: value for name, value in inherited.items() if name not in os.environ}
        executor = LocalExecutor()
        self._job = executor.start(
            words, environment={**added, **environment}, log=log, name=log.parent.name
        )
        while (code := self._job.poll()) is None:
            time.sleep(_SECONDS_POLL)
        executor.close()
        return code

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        while self._job is None:
            time.sleep(_SECONDS_POLL)
        self._job.stop()


class RayJob:
    """A job that was handed to Ray.

    Args:
        ray: the package.
        actor: of `NodeJob`.
        ended: what its `run` returns one day.
        log: file that the job writes to.
    """

    def __init__(self, ray: ModuleType, actor: Any, ended: Any, *, log: Path) -> None:
        """Nothing known of it yet."""
        self._ray, self._actor, self._ended, self._log = ray, actor, ended, log
        self._placed = actor.__ray_ready__.remote()
        self._code: int | None = None

    def poll(self) -> int | None:
        """See `Handle.poll`."""
        if self._code is None and self._is_there(self._ended):
            self._code = self._result()
            self._ray.kill(self._actor)  # gives back what it holds of the machine
        return self._code

    def stop(self) -> None:
        """See `Handle.stop`; one that waits for a machine is taken back."""
        if self.poll() is not None:
            return
        if self._is_there(self._placed):
            self._actor.stop.remote()
        else:
            self._ray.kill(self._actor)
            self._code = INTERRUPTED

    def kill(self) -> None:
        """See `Handle.kill`; the process and its ranks see their standard input end."""
        if self.poll() is None:
            self._ray.kill(self._actor)

    def _is_there(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    def _result(self) -> int:
        try:
            return int(self._ray.get(self._ended))
        except (ConfigError, self._ray.exceptions.RayError) as error:
            said = str(getattr(error, "cause", None) or error)
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{' '.join(said.split())}\n")
        return 1


class RayExecutor:
    """Hands jobs to Ray, which finds a machine for each.

    Args:
        address: of the cluster; auto joins the one of this machine; None starts Ray here.
        num_cpus: cores of a job.
        num_gpus: of a job, as many as trainer.devices asks for; with 0 it sees none.
        resources: of the cluster's own, by name, that a job takes.

    Raises:
        ConfigError: Ray is not there.
    """

    def __init__(
        self,
        *,
        address: str | None,
        num_cpus: float,
        num_gpus: float,
        resources: Mapping[str, float],
    ) -> None:
        """Start nothing yet."""
        self._ray = _ray()
        self._address = address
        self._needs = {"CPU": num_cpus, "GPU": num_gpus, **resources}
        self._options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": dict(resources),
            "max_concurrency": 2,  # run and stop
        }
        self._jobs: list[RayJob] = []
        self._folder: Path | None = None  # of a Ray of our own

    def start(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        name: str,
    ) -> RayJob:
        """See `Executor.start`."""
        if not self._ray.is_initialized():
            self._join()
        actor = self._ray.remote(NodeJob).options(**self._options).remote()
        inherited = {one: value for one, value in os.environ.items() if not one.startswith("RAY_")}
        ended = actor.run.options(name=name).remote(
            tuple(words), dict(environment), inherited, log, os.getcwd()
        )
        job = RayJob(self._ray, actor, ended, log=log)
        self._jobs.append(job)
        return job

    def close(self) -> None:
        """See `Executor.close`."""
        for job in self._jobs:
            job.kill()
        until = time.monotonic() + _SECONDS_CLOSE
        while any(job.poll() is None for job in self._jobs) and time.monotonic() < until:
            time.sleep(_SECONDS_POLL)
        self._jobs.clear()
        self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self) -> None:
        """Start Ray on this machine, or join a cluster.

        Raises:
            ConfigError: there is no such cluster, or this machine has not what a job needs.
        """
        own: dict[str, Any] = {}
        if self._address is None:
            self._folder = Path(tempfile.mkdtemp(prefix="robust_fin_ray_"))
            own = {"include_dashboard": False, "_temp_dir": str(self._folder)}
            # who may hand it work; else Ray writes one into the user's home
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.update(_QUIET)
        logging.getLogger("ray").setLevel(logging.ERROR)  # before init, which talks already
        try:
            with _signals_kept():
                self._ray.init(
                    address=self._address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **own,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"executor.address={self._address} leads to no Ray cluster "
                f"({' '.join(str(error).split())}). `ray start --head` starts one; "
                "executor.address=null starts Ray on this machine alone"
            ) from error
        if self._address is None:
            self._require_room()

    def _require_room(self) -> None:
        """Refuse what a machine that stays alone can never give.

        Raises:
            ConfigError: says what it has.
        """
        there = self._ray.cluster_resources()
        for what, needed in self._needs.items():
            if needed > there.get(what, 0.0):
                raise ConfigError(
                    f"a job needs {needed:g} {what}, and Ray found {there.get(what, 0.0):g} on "
                    "this machine. Lower executor.num_cpus, executor.num_gpus or "
                    "executor.resources, or join a cluster with executor.address"
                )


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Leave SIGTERM to the sweep, which lets its jobs write checkpoints; Ray would exit at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ray() -> ModuleType:
    """The package.

    Raises:
        ConfigError: it is not there; names the extra.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"executor=ray needs Ray ({error}). Install the extra: "
            'pip install -c constraints.txt -e ".[ray]"'
        ) from error
