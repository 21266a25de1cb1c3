"""Run a command: Hydra composes its config, and an error is one message with exit code 1."""

import functools
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from robust_fin.cli.composition import check_added_keys, conf_folder, explain_error
from robust_fin.cli.help import format_help, wants_help
from robust_fin.errors import Interrupted
from robust_fin.runs.schema import USER_ERRORS, format_error, get_verbosity
from robust_fin.runtime.terminal import verbosity

ConfigJob = Callable[[DictConfig], None]
_FULL_ERROR = "HYDRA_FULL_ERROR"


class CallableModule(types.ModuleType):
    """A module that can be called as its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call that function."""
        return self.__dict__[self.__name__.rpartition(".")[2]](*args, **kwargs)


def make_module_callable(function: Callable[..., object]) -> None:
    """Make the module of a function callable as that function.

    `robust_fin.predict` is a module, because `python -m` runs it. `from robust_fin import predict`
    must give a function, whether or not the module has been imported before.
    """
    if function.__module__ != "__main__":
        sys.modules[function.__module__].__class__ = CallableModule


def run_command(job: ConfigJob, *, config_name: str, argv: Sequence[str] | None = None) -> int:
    """Compose the config, run the job, and print an error that a user can fix as one message.

    Args:
        job: takes the composed config.
        config_name: primary YAML of the command.
        argv: arguments after the command; None takes those of the process.

    Returns:
        The exit code: 0, 1 for an error, 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if wants_help(words):
        sys.stdout.write(format_help(config_name))
        return 0
    words.sort(key=lambda word: not word.startswith("-"))  # Hydra wants its flags first
    entry = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)
    errors: list[Exception] = []

    def run_job(config: DictConfig) -> None:
        """Run the job; keep its error, which Hydra would print, except in a sweep."""
        try:
            check_added_keys(config, verb=config_name, words=HydraConfig.get().overrides.task)
            with verbosity(get_verbosity(config)):
                job(config)
        except USER_ERRORS as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            errors.append(error)

    def run_hydra() -> None:
        entry(run_job)()
        if errors:
            raise errors[0]

    previous = sys.argv
    sys.argv = [previous[0], *words]
    try:
        return report_errors(
            run_hydra,
            wants_traceback="debug=default" in words,
            explain=functools.partial(explain_error, verb=config_name, words=words),
        )
    finally:
        sys.argv = previous


def report_errors(
    work: Callable[[], object],
    *,
    wants_traceback: bool = False,
    explain: Callable[[BaseException], str] = format_error,
) -> int:
    """Run `work`; print an error that a user can fix as one message and return the exit code.

    Other errors propagate. With HYDRA_FULL_ERROR=1 every error keeps its traceback.

    Args:
        work: the work.
        wants_traceback: print the traceback of every error.
        explain: formats an error.
    """
    was_set = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"  # otherwise Hydra prints errors itself, with a traceback
    try:
        work()
    except USER_ERRORS as error:
        if wants_traceback or was_set:
            traceback.print_exception(error)
        else:
            sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    except Interrupted as stop:
        sys.stderr.write(f"{stop}\n")
        return 130
    except KeyboardInterrupt:
        return 130
    finally:
        if not was_set:
            os.environ.pop(_FULL_ERROR, None)
    return 0
