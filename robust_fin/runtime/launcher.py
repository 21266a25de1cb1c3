"""Plan and start the ranks of one run on this machine, watch them, and end them together."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from robust_fin.errors import ConfigError, Interrupted
from robust_fin.runtime.devices import Hardware, check_devices, check_trainer, this_machine
from robust_fin.runtime.process_state import INTERRUPTED, RankError, RankExit, count_signals
from robust_fin.runtime.rank_info import RankInfo, external_rank_info


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How a run starts.

    Attributes:
        place: that torchrun or srun gave this process; None where it was started alone.
        processes: to start, one a device of this machine; 0 where this process trains itself.
        environment: that they need beside this process's own.
    """

    place: RankInfo | None
    processes: int
    environment: dict[str, str]


def plan_launch(
    trainer: Mapping[str, Any], hardware: Hardware, environ: Mapping[str, str]
) -> LaunchPlan:
    """Check that trainer, hardware, machine and environment fit together, before any bar is read.

    Variables that are not in the environment yet cost a process of its own even for one device,
    because torch has been imported here.

    Args:
        trainer: the Trainer's settings.
        hardware: what the run asks for.
        environ: of this process.

    Raises:
        ConfigError: they do not; says what to write instead.
    """
    devices, nodes = check_trainer(trainer, hardware), int(trainer["num_nodes"])
    place, missing = external_rank_info(environ), hardware.missing(environ)
    if hardware.check and hardware.platform is not None:
        check_devices(hardware, this_machine(), processes=devices, environ=environ)
    if place is not None:
        place.check_world(devices=devices, nodes=nodes)
        return LaunchPlan(place, 1 if missing else 0, missing)
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes} needs torchrun or srun on every machine, as the README "
            "shows; alone, this command starts the processes of one machine"
        )
    return LaunchPlan(None, devices if devices > 1 or missing else 0, missing)


LAUNCHED = "launched"  # of a rank's command line: launched=FOLDER
RANK, WORLD = "ROBUST_FIN_RANK", "ROBUST_FIN_WORLD"
_OTHER_STARTERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")  # else Lightning would count on them
_TASK, _STORE = "task.json", "store"
_SECONDS_POLL = 0.05
_SECONDS_GRACE = 10.0  # for the others to say what they know, once a rank has failed
_SECONDS_GRACE_LOST = 2.0  # likewise, once a rank was killed
_SECONDS_GRACE_ASKED = 30.0  # likewise, where all were asked to stop, for a checkpoint
_LINES_KEPT = 30  # of what a rank wrote that left no ending


@dataclass(slots=True)
class RankProcess:
    """One process, and how it went.

    Attributes:
        number: its rank.
        process: as started.
        log: what it writes; None for rank 0, which writes to the terminal.
        seconds: when it ended, by the monotonic clock.
        ended_here: whether it was killed because another had failed.
    """

    number: int
    process: subprocess.Popen[bytes]
    log: IO[bytes] | None
    seconds: float | None = field(default=None)
    ended_here: bool = field(default=False)

    @property
    def code(self) -> int:
        """Exit code; minus the signal that killed it."""
        return int(self.process.returncode)


def launch(
    module: str,
    task: Mapping[str, Any],
    *,
    processes: int,
    environment: Mapping[str, str],
    advice: str,
) -> None:
    """Start the ranks of one run, wait for all, and raise what ended them.

    Args:
        module: run with `-m` in each rank, with the word launched=FOLDER.
        task: for all ranks, as JSON.
        processes: on this machine.
        environment: added to this process's own.
        advice: what to do when a rank is lost.

    Raises:
        RankError: a rank was lost, or failed with a message.
        Interrupted: Ctrl-C or SIGTERM was answered by all.
    """
    with tempfile.TemporaryDirectory(prefix="robust_fin_") as name, ExitStack() as files:
        folder = Path(name)
        write_task(folder, task)
        # a rank whose standard input ends knows that this process is gone
        read, write = os.pipe()
        files.callback(os.close, write)
        try:
            ranks = [
                _start(module, folder, number, processes, environment, read, files)
                for number in range(processes)
            ]
        finally:
            os.close(read)
        with _passed_on(ranks) as signals:
            _wait(ranks, signals)
        raise_rank_failure(ranks, folder, asked=bool(signals), advice=advice)


def _start(
    module: str,
    folder: Path,
    number: int,
    processes: int,
    environment: Mapping[str, str],
    stdin: int,
    files: ExitStack,
) -> RankProcess:
    inherited, own = dict(os.environ), {}
    if processes > 1:
        own = rank_environment(number, processes)
        for name in _OTHER_STARTERS:
            inherited.pop(name, None)
    log = None if number == 0 else files.enter_context((folder / f"log_{number}").open("w+b"))
    process = subprocess.Popen(
        [sys.executable, "-m", module, f"{LAUNCHED}={folder}"],
        env={**inherited, **environment, **own},
        stdin=stdin,
        stdout=log,
        stderr=log,
        process_group=0
        if os.name == "posix"
        else None,  # else the terminal's Ctrl-C reaches it beside the one passed on
    )
    files.callback(_end, process)
    return RankProcess(number, process, log)


def rank_environment(number: int, processes: int) -> dict[str, str]:
    """What tells a process its rank; the names without ROBUST_FIN are those Lightning reads."""
    return {
        RANK: str(number),
        WORLD: str(processes),
        "LOCAL_RANK": str(number),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(processes),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


@contextmanager
def _passed_on(ranks: Sequence[RankProcess]) -> Iterator[list[int]]:
    """Hand Ctrl-C and SIGTERM to the ranks, which answer them together; the second one kills."""

    def pass_on(number: int, count: int) -> None:
        for one in ranks:
            if one.process.poll() is None:
                one.process.send_signal(number if count == 1 else signal.SIGKILL)

    with count_signals(pass_on) as received:
        yield received


def _wait(ranks: Sequence[RankProcess], signals: Sequence[int]) -> None:
    """Until all have ended; one that fails ends the others."""
    while running := [one for one in ranks if one.seconds is None]:
        now = time.monotonic()
        for one in running:
            if one.process.poll() is not None:
                one.seconds = now
        if _is_over(ranks, now, asked=bool(signals)):
            for one in running:
                if one.process.poll() is None:
                    one.ended_here = True
                    one.process.kill()
        time.sleep(_SECONDS_POLL)


def _is_over(ranks: Sequence[RankProcess], now: float, *, asked: bool) -> bool:
    """Whether a rank has failed long enough ago."""
    for one in ranks:
        if one.seconds is None or one.code == 0:
            continue
        grace = _SECONDS_GRACE_LOST if one.code < 0 else _SECONDS_GRACE
        if now - one.seconds > (_SECONDS_GRACE_ASKED if asked else grace):
            return True
    return False


def raise_rank_failure(
    ranks: Sequence[RankProcess], folder: Path, *, asked: bool, advice: str
) -> None:
    """Raise what ended the ranks, once, whatever number of them it ended.

    A rank that was killed comes before the message of another, and that before a traceback: what
    follows a failure in the other ranks is only that they lost it.

    Args:
        ranks: all ended.
        folder: where they left their endings.
        asked: whether Ctrl-C or SIGTERM was passed on.
        advice: what to do when a rank is lost.

    Raises:
        RankError: a rank was killed, or has a message.
        Interrupted: all were asked to stop.
        RuntimeError: an error that nobody foresaw, with its traceback.
    """
    failed = [one for one in ranks if one.code != 0]
    if not failed:
        return
    failed.sort(key=lambda one: one.seconds or 0.0)
    endings = {one.number: RankExit.read(folder, one.number) for one in failed}
    told = [one for _, one in sorted(endings.items()) if one is not None]
    stopped = [one for one in told if one.code == INTERRUPTED]
    if asked and (stopped or all(one.code < 0 for one in failed)):
        raise Interrupted(stopped[0].message if stopped else "stopped")
    killed = [one for one in failed if one.code < 0 and not one.ended_here]
    if killed:
        raise RankError(f"{_lost(killed[0], len(ranks))}. {advice}")
    spoken = [one for one in told if one.message]
    if spoken:
        error: Exception = RankError(spoken[0].message)
        error.add_note(spoken[0].trace)
        raise error
    first = failed[0]
    ending = endings[first.number]
    error = RuntimeError(f"rank {first.number} of {len(ranks)} failed (exit code {first.code})")
    error.add_note(ending.trace if ending is not None else _last_lines(first))
    raise error


def _lost(rank: RankProcess, world: int) -> str:
    name = signal.Signals(-rank.code).name
    why = ", as the kernel does when memory runs out" if -rank.code == signal.SIGKILL else ""
    others = "" if world == 1 else "; the other processes were ended with it"
    return (
        f"rank {rank.number} of {world} (process {rank.process.pid}) was killed by {name}{why}"
        f"{others}"
    )


def _last_lines(rank: RankProcess) -> str:
    if rank.log is None:
        return ""
    rank.log.seek(0)
    lines = rank.log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LINES_KEPT:])


def write_task(folder: Path, task: Mapping[str, Any]) -> None:
    """Leave what the processes of a launch are to do where they look for it."""
    (folder / _TASK).write_text(json.dumps(task), encoding="utf-8")


def read_task(folder: Path) -> dict[str, Any]:
    """What the ranks of a launch are to do."""
    found: dict[str, Any] = json.loads((folder / _TASK).read_text(encoding="utf-8"))
    return found


def launched_rank_info(folder: Path, environ: Mapping[str, str]) -> RankInfo | None:
    """This rank's place in a launch; None where it is the only one."""
    if RANK not in environ:
        return None
    rank, world = int(environ[RANK]), int(environ[WORLD])
    return RankInfo(rank, world, rank, f"file://{folder / _STORE}", "this run")
