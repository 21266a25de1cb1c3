"""From the command line to a job: Hydra composes, an error is one message and a true exit code."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from robust_fin.errors import Interrupted, RobustFinError

Job = Callable[[DictConfig], None]
USER_ERRORS = (RobustFinError, HydraException, OmegaConfBaseException)
_FULL = "HYDRA_FULL_ERROR"


def conf_folder() -> Path:
    """The folder of YAML files: inside the package in a wheel, beside it in a source tree.

    The source tree comes first, because an editable install can leave a stale copy in the package.
    """
    package = Path(__file__).parent
    beside = package.parent / "conf"
    return beside if (package.parent / "pyproject.toml").is_file() else package / "conf"


def run_job(job: Job, *, config_name: str, argv: Sequence[str] | None = None) -> int:
    """Compose the config, run the job, and turn what a user can fix into one message.

    Args:
        job: takes the composed config.
        config_name: the primary YAML of the verb.
        argv: command-line words after the verb; None takes those of the process.

    Returns:
        The exit code: 0, 1 for an error, 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    words.sort(key=lambda word: not word.startswith("-"))  # Hydra wants its flags together
    entry = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)
    kept: list[Exception] = []

    def deferring(config: DictConfig) -> None:
        """In a sweep a failure must reach Hydra; alone it is kept, as Hydra would print it too."""
        try:
            job(config)
        except USER_ERRORS as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            kept.append(error)

    def work() -> None:
        entry(deferring)()
        if kept:
            raise kept[0]

    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        return guarded(work, wants_traceback="debug=default" in words)
    finally:
        sys.argv = before


def guarded(work: Callable[[], object], *, wants_traceback: bool = False) -> int:
    """Run `work`; print what a user can fix as one message, anything else with its traceback.

    With HYDRA_FULL_ERROR=1 every error keeps its traceback.
    """
    already = os.environ.get(_FULL) == "1"
    os.environ[_FULL] = "1"  # else Hydra prints the errors itself, with a traceback
    try:
        work()
    except USER_ERRORS as error:
        _report(error, wants_traceback=wants_traceback or already)
        return 1
    except Interrupted as stop:
        sys.stderr.write(f"{stop}\n")
        return 130
    except KeyboardInterrupt:
        return 130
    finally:
        if not already:
            os.environ.pop(_FULL, None)
    return 0


def _report(error: BaseException, *, wants_traceback: bool) -> None:
    if wants_traceback:
        traceback.print_exception(error)
        return
    sys.stderr.write(f"error: {readable(error)}\n")


def readable(error: BaseException) -> str:
    """The message that helps: ours as it is, Hydra's with the cause it hides."""
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, RobustFinError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    if isinstance(error.__cause__, OmegaConfBaseException) and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    return text
