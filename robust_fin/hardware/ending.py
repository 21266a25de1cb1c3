"""How a rank ended, told to the process that started it."""

import json
import os
import shutil
import stat
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from robust_fin.errors import Interrupted, RobustFinError

INTERRUPTED, FAILED = 130, 1


class RankError(RobustFinError):
    """Processes that train together and do not agree, or one of them that was lost."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What a rank leaves behind.

    Attributes:
        code: exit code.
        message: what a user can act on; empty where there is nothing to say.
        trace: the traceback.
    """

    code: int
    message: str
    trace: str

    @staticmethod
    def path(folder: Path, rank: int) -> Path:
        """Where a rank leaves it."""
        return folder / f"ending_{rank}.json"

    def write(self, folder: Path, rank: int) -> None:
        """Leave it, at once or not at all."""
        path = self.path(folder, rank)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(self)), encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def read(cls, folder: Path, rank: int) -> "Ending | None":
        """What a rank left; None where it could not."""
        path = cls.path(folder, rank)
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def end_in(
    folder: Path,
    rank: int,
    work: Callable[[], object],
    *,
    errors: tuple[type[Exception], ...] = (RobustFinError,),
    readable: Callable[[BaseException], str] = str,
) -> int:
    """Do a rank's work and leave how it ended; nothing is printed here.

    An error that nobody foresaw goes to Python's own hook, which leaves its traceback.

    Args:
        folder: of the launch.
        rank: of this process.
        work: what there is to do.
        errors: that a user can fix.
        readable: their message.

    Returns:
        The exit code.
    """

    def leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        lines = "".join(traceback.format_exception(kind, error, trace))
        Ending(FAILED, "", lines).write(folder, rank)

    sys.excepthook = leave
    try:
        work()
    except errors as error:
        Ending(FAILED, readable(error), traceback.format_exc()).write(folder, rank)
        return FAILED
    except (Interrupted, KeyboardInterrupt) as stop:
        Ending(INTERRUPTED, str(stop) or "stopped", "").write(folder, rank)
        return INTERRUPTED
    return 0


def end_with_starter(folder: Path) -> None:
    """End this process when the one that started it is gone, which its standard input tells.

    Only a pipe tells it: a process that is to outlive its starter gets none.

    Args:
        folder: of the launch; removed then, since nobody else does.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(FAILED)

    threading.Thread(target=wait, daemon=True, name="starter").start()
