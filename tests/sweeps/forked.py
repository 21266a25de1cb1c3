"""An executor whose jobs are forked from a process that has already imported the package.

The jobs are real: they train, end and are killed like others, but start without delay.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.background_runs import SERVER


def _run_train(words: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    os.environ.update(environment)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from robust_fin import train

    os._exit(train.main(list(words[2:])))


class ForkedJob:
    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.exitcode

    def stop(self) -> None:
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()


class ForkedExecutor:
    def start(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        name: str,  # noqa: ARG002
    ) -> ForkedJob:
        args = (tuple(words), dict(environment), str(log))
        process = SERVER.Process(target=_run_train, args=args)
        process.start()
        return ForkedJob(process)

    def close(self) -> None:
        pass
