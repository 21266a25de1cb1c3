"""Submit fake jobs to executors for other machines, in a sweep and one by one."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from robust_fin import train
from robust_fin.runtime.launcher import write_task
from robust_fin.sweeps.executors import Executor, Handle
from tests.sweeps.fake_process_job import MODULE


def sweep(executor: str, folder: Path, *words: str) -> tuple[int, pd.DataFrame]:
    """Run a sweep of fake jobs; return its exit code and table."""
    base = ["+experiment=smoke", f"hydra.sweep.dir={folder}", f"hydra.sweeper.verb={MODULE}"]
    exit_code = train.main([*base, f"executor={executor}", "-m", *words])
    return exit_code, pd.read_csv(folder / "sweep.csv").set_index("job").sort_index()


def submit(executor: Executor, run: Path, *, seed: int, resume: bool = False) -> Handle:
    """Submit a fake job as a sweep does."""
    (run / ".job").mkdir(parents=True, exist_ok=True)
    task = {"config": f"seed: {seed}\n", "run": str(run), "resume": resume, "logging": None}
    write_task(run / ".job", task)
    return executor.start(
        ("-m", MODULE, f"launched={run / '.job'}"),
        environment={"TOLD": "seven"},
        log=run / "output.log",
        name=f"fake-{seed}",
    )


def until(condition: Callable[[], bool], *, seconds: float = 12) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def code(job: Handle) -> int:
    until(lambda: job.poll() is not None)
    exit_code = job.poll()
    assert exit_code is not None
    return exit_code


def processes_of(run: Path) -> list[str]:
    """Return the command lines of other processes that name the run folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if path.parent.name != str(os.getpid()) and any(str(run) in word for word in words):
                commands.append(" ".join(words))
    return commands
