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
        if is_first():
            _keep(run, error)
        raise


@contextlib.contextmanager
def loss_kept(run: Path) -> Iterator[None]:
    """The same around the processes of a run: one that is lost cannot write its reason itself."""
    (run / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except RobustFinError as error:
        if not (run / FAILURE).exists():  # what a process said itself says more
            _keep(run, error)
        raise


def _keep(run: Path, error: RobustFinError) -> None:
    if run.is_dir():
        said = {"error": type(error).__name__, "message": str(error)}
        write_whole(run / FAILURE, (json.dumps(said, indent=2) + "\n").encode())
