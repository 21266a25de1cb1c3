"""Plan and start the ranks of one run on this machine, watch them, and end them together.

torch.distributed.elastic is not used: a killed parent leaves its children alive, and importing it
takes 2 s. Every rank is a process that reads one task file, so all ranks have the same settings and
run folder, and its environment is complete before Python starts in it.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from robust_fin.errors import ConfigError, Interrupted
from robust_fin.runtime.devices import Hardware, check_devices, check_trainer, this_machine
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.process_state import (
    INTERRUPTED,
    RankError,
    RankExit,
    count_signals,
    sign_of_life,
)
from robust_fin.runtime.rank_info import RankInfo, external_rank_info

LAUNCHED = "launched"  # key on the command line of a rank: launched=FOLDER
RANK, WORLD = "ROBUST_FIN_RANK", "ROBUST_FIN_WORLD"
_OTHER_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")  # Lightning would believe these
_TASK, _STORE = "task.json", "store"
_POLL_SECONDS = 0.05
# how long the remaining ranks may run on after one has ended with an error
_GRACE_SECONDS = 10.0  # it raised: the others may report more
_GRACE_SECONDS_KILLED = 2.0
_GRACE_SECONDS_ASKED = 30.0  # all were asked to stop, and write a checkpoint
_LOG_LINES = 30  # kept of a rank that wrote no exit


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How a run starts.

    Attributes:
        info: rank assigned by torchrun or srun; None where this process was started alone.
        processes: number to start, one per device; 0 where this process trains by itself.
        environment: variables that they need in addition to those of this process.
    """

    info: RankInfo | None
    processes: int
    environment: dict[str, str]


def plan_launch(
    trainer: Mapping[str, Any], hardware: Hardware, environ: Mapping[str, str]
) -> LaunchPlan:
    """Check trainer, hardware, machine and environment against each other, before reading bars.

    Missing environment variables require a new process even for a single device, because torch
    has been imported in this one.

    Args:
        trainer: settings of the Trainer.
        hardware: requested hardware.
        environ: of this process.

    Raises:
        ConfigError: they contradict each other; says what to write instead.
    """
    devices, nodes = check_trainer(trainer, hardware), int(trainer["num_nodes"])
    info, missing = external_rank_info(environ), hardware.missing(environ)
    if hardware.check and hardware.platform is not None:
        check_devices(hardware, this_machine(), processes=devices, environ=environ)
    if info is not None:
        info.check_world(devices=devices, nodes=nodes)
        return LaunchPlan(info, 1 if missing else 0, missing)
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes} needs torchrun or srun on every machine (see "
            "docs/hardware.md); alone, this command starts the processes of one machine"
        )
    return LaunchPlan(None, devices if devices > 1 or missing else 0, missing)


@dataclass(slots=True)
class RankProcess:
    """A started rank.

    Attributes:
        number: its rank.
        process: its process.
        log: its output; None for rank 0, which writes to the terminal.
        ended_at: monotonic time at which its end was noticed; None while it runs.
        killed_here: whether it was killed because another rank had failed.
        seen: its last sign of life (time of the file), and the monotonic time of noticing it.
        is_silent: whether it was killed because it gave no sign of life.
    """

    number: int
    process: subprocess.Popen[bytes]
    log: IO[bytes] | None
    ended_at: float | None = None
    killed_here: bool = False
    seen: tuple[float, float] | None = None
    is_silent: bool = False

    @property
    def code(self) -> int:
        """Exit code; the negative signal number where a signal killed it."""
        return int(self.process.returncode)

    def kill(self) -> None:
        """Kill the process if it is alive, and reap it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def launch(
    module: str,
    task: Mapping[str, Any],
    *,
    processes: int,
    environment: Mapping[str, str],
    advice: str,
    rank_timeout: float = math.inf,
) -> None:
    """Start the ranks of one run, wait for all, and raise the error that ended them.

    Args:
        module: run with `-m` in each rank, with the argument launched=FOLDER.
        task: JSON-serializable task, the same for all ranks.
        processes: number of ranks.
        environment: added to the environment of this process.
        advice: what to do when a rank is lost, for the message.
        rank_timeout: seconds after which a rank without a sign of life ends the launch.

    Raises:
        RankError: a rank was killed, gave no sign of life, or failed with a message.
        Interrupted: all ranks stopped on SIGINT or SIGTERM.
    """
    with tempfile.TemporaryDirectory(prefix="robust_fin_") as name, ExitStack() as stack:
        folder = Path(name)
        write_task(folder, task)
        # the ranks read the pipe's end when this process dies (see exit_with_parent)
        read, write = os.pipe()
        stack.callback(os.close, write)
        try:
            ranks = [
                _start_rank(module, folder, number, processes, environment, read, stack)
                for number in range(processes)
            ]
        finally:
            os.close(read)
        with _forward_signals(ranks) as signals:
            _wait(ranks, signals, folder, rank_timeout=rank_timeout)
        raise_rank_failure(ranks, folder, asked=bool(signals), advice=advice)


def _start_rank(
    module: str,
    folder: Path,
    number: int,
    processes: int,
    environment: Mapping[str, str],
    stdin: int,
    stack: ExitStack,
) -> RankProcess:
    variables = {**os.environ, **environment}
    if processes > 1:
        variables = {k: v for k, v in variables.items() if k not in _OTHER_LAUNCHERS}
        variables |= rank_environment(number, processes)
    log = None if number == 0 else stack.enter_context((folder / f"log_{number}").open("w+b"))
    process = subprocess.Popen(
        [sys.executable, "-m", module, f"{LAUNCHED}={folder}"],
        env=variables,
        stdin=stdin,
        stdout=log,
        stderr=log,
        # otherwise the terminal's Ctrl-C would reach the rank a second time
        process_group=0 if os.name == "posix" else None,
    )
    rank = RankProcess(number, process, log)
    stack.callback(rank.kill)
    return rank


def rank_environment(number: int, processes: int) -> dict[str, str]:
    """Return the environment variables of a rank; Lightning reads those without ROBUST_FIN."""
    return {
        RANK: str(number),
        WORLD: str(processes),
        "LOCAL_RANK": str(number),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(processes),
    }


@contextmanager
def _forward_signals(ranks: Sequence[RankProcess]) -> Iterator[list[int]]:
    """Forward SIGINT and SIGTERM to the ranks; the second signal kills them."""

    def forward(number: int, count: int) -> None:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number if count == 1 else signal.SIGKILL)

    with count_signals(forward) as received:
        yield received


def _wait(
    ranks: Sequence[RankProcess], signals: Sequence[int], folder: Path, *, rank_timeout: float
) -> None:
    """Wait for all ranks; a failed one ends the others after a grace period, a silent one now."""
    while running := [rank for rank in ranks if rank.ended_at is None]:
        now = time.monotonic()
        for rank in running:
            if rank.process.poll() is not None:
                rank.ended_at = now
            else:
                rank.is_silent = _is_silent(rank, folder, now, rank_timeout=rank_timeout)
        if any(rank.is_silent for rank in running) or _grace_is_over(
            ranks, now, asked=bool(signals)
        ):
            for rank in running:
                if rank.process.poll() is None:
                    rank.killed_here = not rank.is_silent
                    rank.process.kill()
        time.sleep(_POLL_SECONDS)


def _is_silent(rank: RankProcess, folder: Path, now: float, *, rank_timeout: float) -> bool:
    """Return whether a rank that has given signs of life gives none any more.

    The time of the file is compared with itself only: clocks may be set, and machines may sleep.
    """
    try:
        touched = sign_of_life(folder, rank.number).stat().st_mtime
    except FileNotFoundError:  # it is still importing
        return False
    if rank.seen is None or rank.seen[0] != touched:
        rank.seen = (touched, now)
    return now - rank.seen[1] > rank_timeout


def _grace_is_over(ranks: Sequence[RankProcess], now: float, *, asked: bool) -> bool:
    for rank in ranks:
        if rank.ended_at is None or rank.code == 0:
            continue
        grace = _GRACE_SECONDS_KILLED if rank.code < 0 else _GRACE_SECONDS
        if now - rank.ended_at > (_GRACE_SECONDS_ASKED if asked else grace):
            return True
    return False


def raise_rank_failure(
    ranks: Sequence[RankProcess], folder: Path, *, asked: bool, advice: str
) -> None:
    """Raise one error for all failed ranks.

    A killed rank is reported first, then a message, then a traceback: errors of the other ranks
    usually only say that they lost the connection to it.

    Args:
        ranks: ended ranks.
        folder: holds their `RankExit` files.
        asked: whether a signal was forwarded to them.
        advice: what to do when a rank is lost.

    Raises:
        RankError: a rank was killed, or has a message.
        Interrupted: the ranks stopped because they were asked to.
        RuntimeError: an unexpected error, with the rank's traceback as a note.
    """
    failed = sorted((r for r in ranks if r.code != 0), key=lambda rank: rank.ended_at or 0.0)
    if not failed:
        return
    exits = {rank.number: RankExit.read(folder, rank.number) for rank in failed}
    known = [exit_ for _, exit_ in sorted(exits.items()) if exit_ is not None]
    stopped = [exit_ for exit_ in known if exit_.code == INTERRUPTED]
    if asked and (stopped or all(rank.code < 0 for rank in failed)):
        raise Interrupted(stopped[0].message if stopped else "stopped")
    silent = [rank for rank in failed if rank.is_silent]
    if silent:
        raise RankError(
            f"rank {silent[0].number} of {len(ranks)} (process {silent[0].process.pid}) gave no "
            "sign of life for hardware.rank_timeout: it is stopped or hangs, and was killed with "
            f"the others. {advice}"
        )
    killed = [rank for rank in failed if rank.code < 0 and not rank.killed_here]
    if killed:
        raise RankError(f"{_describe_killed(killed[0], len(ranks))}. {advice}")
    error: Exception
    for exit_ in known:
        if exit_.message:
            error = RankError(exit_.message)
            error.add_note(exit_.trace)
            raise error
    first = failed[0]
    first_exit = exits[first.number]
    error = RuntimeError(f"rank {first.number} of {len(ranks)} failed (exit code {first.code})")
    error.add_note(first_exit.trace if first_exit is not None else _last_log_lines(first))
    raise error


def _describe_killed(rank: RankProcess, world: int) -> str:
    name = signal.Signals(-rank.code).name
    reason = " (the kernel does this when memory runs out)" if -rank.code == signal.SIGKILL else ""
    others = "" if world == 1 else "; the other ranks were stopped"
    return (
        f"rank {rank.number} of {world} (process {rank.process.pid}) was killed by {name}{reason}"
        f"{others}"
    )


def _last_log_lines(rank: RankProcess) -> str:
    if rank.log is None:
        return ""
    rank.log.seek(0)
    return "\n".join(rank.log.read().decode(errors="replace").splitlines()[-_LOG_LINES:])


def write_task(folder: Path, task: Mapping[str, Any]) -> None:
    """Write the task that the ranks of a launch read."""
    write_atomic(folder / _TASK, json.dumps(task).encode())


def read_task(folder: Path) -> dict[str, Any]:
    """Read the task of a launch."""
    task: dict[str, Any] = json.loads((folder / _TASK).read_text(encoding="utf-8"))
    return task


def launched_rank_info(folder: Path, environ: Mapping[str, str]) -> RankInfo | None:
    """Return the rank that `launch` assigned to this process; None where it is the only one."""
    if RANK not in environ:
        return None
    rank, world = int(environ[RANK]), int(environ[WORLD])
    return RankInfo(rank, world, rank, f"file://{folder / _STORE}", "this run")
