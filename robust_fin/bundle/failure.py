"""Why a run ended early, where a table of many runs can read it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from robust_fin.bundle.whole_files import write_whole
from robust_fin.errors import RobustFinError
from robust_fin.hardware.group import is_first

FAILURE = "failure.json"


@contextlib.contextmanager
def reason_kept(run: Path) -> Iterator[None]:
    """Write an error that a user can fix into the run folder, on its way to the command line.

    A sweep prints the first error of its jobs alone. The file of an earlier attempt is removed.

    Args:
        run: the run folder.
    """
    path = run / FAILURE
    if is_first():
        path.unlink(missing_ok=True)
    try:
        yield
    except RobustFinError as error:
        if is_first() and run.is_dir():
            said = {"error": type(error).__name__, "message": str(error)}
            write_whole(path, (json.dumps(said, indent=2) + "\n").encode())
        raise
