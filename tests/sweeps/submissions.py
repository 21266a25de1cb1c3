"""Jobs of executors that reach other machines, in a sweep and without one around them."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from robust_fin import train
from robust_fin.runtime.launcher import write_task
from robust_fin.sweeps.local import Executor, Handle
from tests.sweeps.fake_process_job import MODULE


def sweep(executor: str, folder: Path, *words: str) -> tuple[int, pd.DataFrame]:
    """The exit code and the table of a sweep of pretended jobs."""
    base = ["+experiment=smoke", f"hydra.sweep.dir={folder}", f"hydra.sweeper.verb={MODULE}"]
    result = train.main([*base, f"executor={executor}", "-m", *words])
    return result, pd.read_csv(folder / "sweep.csv").set_index("job").sort_index()


def submit(executor: Executor, run: Path, *, seed: int, resume: bool = False) -> Handle:
    """A pretended job, as a sweep starts it."""
    (run / ".job").mkdir(parents=True, exist_ok=True)
    task = {"config": f"seed: {seed}\n", "run": str(run), "resume": resume, "logging": None}
    write_task(run / ".job", task)
    return executor.start(
        ("-m", MODULE, f"launched={run / '.job'}"),
        environment={"TOLD": "seven"},
        log=run / "output.log",
        name=f"pretended-{seed}",
    )


def until(is_so: Callable[[], bool], *, seconds: float = 12) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def code(job: Handle) -> int:
    until(lambda: job.poll() is not None)
    found = job.poll()
    assert found is not None
    return found


def processes_of(run: Path) -> list[str]:
    """Command lines that name the run folder, except this process's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if path.parent.name != str(os.getpid()) and any(str(run) in one for one in words):
                found.append(" ".join(words))
    return found
