"""One job of a sweep: started in fresh processes, watched, and what became of it."""

import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from robust_fin.bundle.failure import FAILURE
from robust_fin.bundle.whole_files import write_whole
from robust_fin.hardware.ending import Ending
from robust_fin.hardware.launch import WORD, write_task
from robust_fin.processes import Job, task_of
from robust_fin.results import METRICS
from robust_fin.sweeps.composition import Composed
from robust_fin.sweeps.executor import Executor, Handle
from robust_fin.sweeps.record import found_in, one_line, read_metrics
from robust_fin.sweeps.trial import FAILED, FINISHED, STOPPED, Outcome, Trial

LOG, TASK = "output.log", ".job"  # in the run folder
_LOST = "JobLost"  # kind of error of a job that could not say what ended it


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that was started and has not been seen to end.

    Attributes:
        trial: what is tried.
        folder: of its run.
        handle: of the executor.
        began: when, by the monotonic clock.
        before: seconds it had run before an interruption.
    """

    trial: Trial
    folder: Path
    handle: Handle
    began: float
    before: float

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return self.before + time.monotonic() - self.began

    def outcome(self, code: int, *, asked: bool) -> Outcome:
        """What became of it; also tidies up after it.

        Args:
            code: of its exit.
            asked: whether it was asked to stop.
        """
        ending = Ending.read(self.folder / TASK, 0)
        shutil.rmtree(self.folder / TASK, ignore_errors=True)
        state, reason = found_in(self.folder)
        if state == STOPPED and asked:
            reason = one_line(ending.message) if ending and ending.message else reason
        elif state == STOPPED:
            state, reason = FAILED, _last_words(code, ending, self.folder / LOG)
            keep_failure(self.folder, _LOST, reason)
        metrics = read_metrics(self.folder) if state == FINISHED else {}
        return Outcome(self.trial, self.folder, state, reason, metrics, self.seconds)


def start_job(
    trial: Trial, composed: Composed, executor: Executor, *, verb: str, resume: bool, before: float
) -> RunningJob:
    """Start a job in processes of its own.

    Args:
        trial: what is tried.
        composed: its folder and frozen config.
        executor: where it runs.
        verb: module that the process runs.
        resume: go on from the checkpoint in the folder.
        before: seconds it has run before.

    Raises:
        ConfigError: the executor can start no jobs.
    """
    folder, config = composed.folder, composed.config
    (folder / TASK).mkdir(parents=True, exist_ok=True)
    (folder / METRICS).unlink(missing_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    Ending.path(folder / TASK, 0).unlink(missing_ok=True)
    if not resume:
        composed.write_files()
    task = task_of(Job(config, folder, resume), logging=composed.logging)
    write_task(folder / TASK, task | {"module": verb})
    handle = executor.start(
        ("-m", verb, f"{WORD}={folder / TASK}"),
        environment={**composed.environment, **trial.environment},
        log=folder / LOG,
        name=f"{config.name}-{trial.number}",
    )
    return RunningJob(trial, folder, handle, time.monotonic(), before)


def keep_failure(folder: Path, kind: str, reason: str) -> None:
    """Write why a run has not finished into its folder, where its own process could not."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"error": kind, "message": reason}
    write_whole(folder / FAILURE, (json.dumps(said, indent=2) + "\n").encode())


def _last_words(code: int, ending: Ending | None, log: Path) -> str:
    """Why a job failed that has left no failure.json; its traceback is added to its log."""
    if ending is not None and ending.trace:
        with log.open("a", encoding="utf-8") as file:
            file.write(ending.trace)
    if ending is not None:
        lines = [ending.message, *reversed(ending.trace.splitlines())]
        return one_line(next((line for line in lines if line.strip()), f"exit code {code}"))
    if code < 0:
        why = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        return f"the job's process was killed by {signal.Signals(-code).name}{why}"
    said = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line for line in reversed(said) if line.strip()), "it wrote nothing")
    return one_line(f"exit code {code} without {METRICS}; the last line of {log.name}: {last}")
