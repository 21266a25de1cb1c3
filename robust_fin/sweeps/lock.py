"""One command at a time on the folder of a sweep."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robust_fin.errors import ConfigError

if sys.platform != "win32":
    import fcntl

LOCK = "sweep.lock"


@contextmanager
def only_command(folder: Path) -> Iterator[None]:
    """Be the only command that fills a sweep's folder, until the block or the process ends.

    Two would start the same jobs into the same run folders. Several commands, each with a folder
    of its own, share a study through `sweep.storage`.

    Args:
        folder: of the sweep; it exists.

    Raises:
        ConfigError: another command is at it.
    """
    with (folder / LOCK).open("ab") as file:
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another command works on the sweep in {folder}; wait for its end, or stop it "
                "with Ctrl-C"
            ) from error
        yield
