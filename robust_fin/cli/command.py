"""From the command line to a job: Hydra composes, an error is one message and a true exit code."""

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

from robust_fin.cli.composition import conf_folder, explained, require_known
from robust_fin.cli.help import help_of, wants_help
from robust_fin.errors import Interrupted
from robust_fin.runs.settings import USER_ERRORS, readable

Job = Callable[[DictConfig], None]
_FULL = "HYDRA_FULL_ERROR"


class CallableModule(types.ModuleType):
    """A module that can be called as the function of its own name."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call that function."""
        return self.__dict__[self.__name__.rpartition(".")[2]](*given, **named)


def callable_as(function: Callable[..., object]) -> None:
    """Let the module that defines a function of its own name be called as that function.

    `robust_fin.predict` is a module, because `python -m` runs it, and `from robust_fin import
    predict` is to give something that predicts, whoever has imported the module before.
    """
    if function.__module__ != "__main__":
        sys.modules[function.__module__].__class__ = CallableModule


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
    if wants_help(words):
        sys.stdout.write(help_of(config_name))
        return 0
    words.sort(key=lambda word: not word.startswith("-"))  # Hydra wants its flags together
    entry = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)
    kept: list[Exception] = []

    def deferring(config: DictConfig) -> None:
        """In a sweep a failure must reach Hydra; alone it is kept, as Hydra would print it too."""
        try:
            # here, because what it says it with takes a second that help is not to wait for
            from robust_fin.runs.settings import verbosity_of
            from robust_fin.runtime.terminal import verbosity

            require_known(config, verb=config_name, words=HydraConfig.get().overrides.task)
            with verbosity(verbosity_of(config)):
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
        return guarded(
            work,
            wants_traceback="debug=default" in words,
            explain=functools.partial(explained, verb=config_name, words=words),
        )
    finally:
        sys.argv = before


def guarded(
    work: Callable[[], object],
    *,
    wants_traceback: bool = False,
    explain: Callable[[BaseException], str] = readable,
) -> int:
    """Run `work`; print what a user can fix as one message, anything else with its traceback.

    With HYDRA_FULL_ERROR=1 every error keeps its traceback.

    Args:
        work: to be run.
        wants_traceback: print one also for what a user can fix.
        explain: an error -> its message.
    """
    already = os.environ.get(_FULL) == "1"
    os.environ[_FULL] = "1"  # else Hydra prints the errors itself, with a traceback
    try:
        work()
    except USER_ERRORS as error:
        _report(error, explain, wants_traceback=wants_traceback or already)
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


def _report(
    error: BaseException, explain: Callable[[BaseException], str], *, wants_traceback: bool
) -> None:
    if wants_traceback:
        traceback.print_exception(error)
        return
    sys.stderr.write(f"error: {explain(error)}\n")
