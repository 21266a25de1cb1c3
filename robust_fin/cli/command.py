"""Run a command: help, Hydra composition, and errors as one message with exit code 1."""

import functools
import inspect
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from robust_fin.cli.composition import (
    EXPERIMENT,
    Composition,
    check_added_keys,
    check_choices,
    compose_config,
    conf_folder,
    describe_option,
    explain_error,
    first_comment,
    group_choices,
)
from robust_fin.errors import ConfigError, Interrupted
from robust_fin.runs.run_folder import claim_folder
from robust_fin.runs.schema import USER_ERRORS, check_values, format_error, get_verbosity
from robust_fin.runtime.terminal import verbosity

HELP = ("--help", "-h")
_WIDTH = 80  # of an experiment's line


@dataclass(frozen=True, slots=True)
class CommandHelp:
    """Help of a command.

    Attributes:
        line: what the command does.
        keys: the most used keys and their meaning; for a group the text after its choices.
        examples: arguments of the command.
        experiments: whether the command takes +experiment=NAME.
    """

    line: str
    keys: tuple[tuple[str, str], ...]
    examples: tuple[str, ...]
    experiments: bool = False


_SOURCE = ("source.path", "bars: a CSV or Parquet file; null generates synthetic bars")
_RUN = ("run", "folder of a finished run")

COMMANDS = {
    "train": CommandHelp(
        "train a net on bars, score the test span once, print the verdict",
        (
            _SOURCE,
            ("features", "; features.names=[...] for your own"),
            ("model", ""),
            ("model.hidden", "widths of the layers"),
            ("loss", ""),
            ("optimizer.lr", "learning rate"),
            ("batch_size", "rows per batch"),
            ("trainer.max_epochs", "passes over the training rows"),
            ("split", ""),
            ("seed", "of initialisation, dropout and row order"),
        ),
        (
            "+experiment=top5 source.path=es.parquet model.hidden=[64,32]",
            "+experiment=top5 seed=0,1,2 -m                  # a sweep: three runs",
            "resume=outputs/top5/2026-01-31_10-00-00         # continue after Ctrl-C",
        ),
        experiments=True,
    ),
    "predict": CommandHelp(
        "score new bars with a finished run",
        (_RUN, _SOURCE, ("out", "output file, .parquet")),
        ("run=RUN_FOLDER source.path=new.parquet out=scores.parquet",),
    ),
    "evaluate": CommandHelp(
        "print figures and verdict of a run again, or compare runs",
        ((_RUN[0], f"{_RUN[1]}; [A,B] compares"), ("lockbox", "score the locked rows, once")),
        ("run=outputs/top5/2026-01-31_10-00-00", "run=[A,B]"),
    ),
    "select": CommandHelp(
        "rank features by what they add to a forecast",
        (
            _SOURCE,
            ("features", ": the candidates"),
            ("select.k", "number of features to propose"),
            ("select.learner", "ridge or lightgbm"),
        ),
        ("features=rich source.path=es.parquet",),
        experiments=True,
    ),
    "inspect": CommandHelp(
        "compare a bar file with the settings before training on it",
        (
            _SOURCE,
            ("source.timezone", "zone of times without one"),
            ("source.bar", "length of a bar"),
            ("source.stamp", "start or end: the end of the bar that a time marks"),
            ("source.calendar", "a name of pandas_market_calendars, or 24/7"),
            ("source.product", "keep the rows of one product"),
            ("source.accept", "checks whose disagreements do not stop"),
        ),
        ("source.path=es.csv", "source.path=es.csv source.timezone=America/Chicago"),
        experiments=True,
    ),
    "leakcheck": CommandHelp(
        "check that no feature, label or split sees the future",
        (
            _SOURCE,
            ("features.modules", "modules that register your own features"),
            ("leaks.every_feature", "check all registered features"),
            ("leaks.cuts", "number of cuts after which bars are changed"),
        ),
        ("+experiment=top5 source.path=es.parquet",),
        experiments=True,
    ),
    "doctor": CommandHelp(
        "check that this machine computes and trains correctly",
        (("hardware", ""), ("out", "JSON file for the findings")),
        ("hardware=cuda",),
    ),
    "replay": CommandHelp(
        "rerun a recorded step that was not finite",
        (
            ("record", "file in nonfinite/ of the run folder"),
            ("rows", "maximum number of rows shown"),
        ),
        ("record=outputs/top5/2026-01-31_10-00-00/nonfinite/step_120.safetensors",),
    ),
}


def wants_help(words: Sequence[str]) -> bool:
    """Return whether the arguments ask for help."""
    return any(word in HELP for word in words)


def print_help_if_asked(verb: str) -> None:
    """Print the help of this process's command and exit, if the arguments ask for it.

    Called before the slow imports of a command.
    """
    if wants_help(sys.argv[1:]):
        sys.stdout.write(format_help(verb))
        sys.exit(0)


def format_help(verb: str) -> str:
    """Format the help of a command."""
    usage = COMMANDS[verb]
    parts = [f"{usage.line[0].upper()}{usage.line[1:]}.", "", *_usage_lines(verb), ""]
    if verb == "train":
        parts += _section(
            "Commands, each with --help: python -m robust_fin.COMMAND, or robust-fin COMMAND",
            [(name, command.line) for name, command in COMMANDS.items()],
        )
    if usage.experiments and verb == "train":
        parts += _section(f"Experiments: +{EXPERIMENT}=NAME", list_experiments())
    composition = compose_config(verb, [])
    rows = [
        (f"{key}={_default(composition, key)}", ", ".join(group_choices(key)) + meaning)
        for key, meaning in usage.keys
    ]
    heading = "Most used keys, with their defaults"
    parts += _section(f"{heading}; experiments change some" if usage.experiments else heading, rows)
    parts += [
        "Examples",
        *(f"  python -m robust_fin.{verb} {words}" for words in usage.examples),
        "",
    ]
    parts += ["--cfg job shows the composed config, --info where its values come from,"]
    parts += ["--hydra-help other options of Hydra, -sc how to install shell completion."]
    return "\n".join(parts) + "\n"


def format_command_list() -> str:
    """Format the list of commands that the console script prints without arguments."""
    lines = _section("robust-fin COMMAND [key=value]", [(n, c.line) for n, c in COMMANDS.items()])
    return "\n".join([*lines, "robust-fin COMMAND --help shows details."]) + "\n"


def _usage_lines(verb: str) -> list[str]:
    return [f"  {line}" for line in first_comment(conf_folder() / f"{verb}.yaml")]


def list_experiments() -> list[tuple[str, str]]:
    """Return name and first line of each experiment."""
    folder = conf_folder() / EXPERIMENT
    lines = {name: first_comment(folder / f"{name}.yaml")[0] for name in group_choices(EXPERIMENT)}
    return [(name, shorten(line, _WIDTH, placeholder=" ...")) for name, line in lines.items()]


def _section(heading: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [heading, *(f"  {name:<{width}}  {text}" for name, text in rows), ""]


def _default(composition: Composition, key: str) -> str:
    """Format a default as an override; a group's choice; `?` where a value is required."""
    if key in composition.choices:
        return composition.choices[key] or "null"
    if OmegaConf.is_missing(composition.config, key):
        return "?"
    value = OmegaConf.select(composition.config, key)
    if isinstance(value, ListConfig):
        return str(list(value)).replace(" ", "")
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


ConfigJob = Callable[[DictConfig], None]
_CONFIGS = ("job", "hydra", "all")
_INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# Hydra's options: None takes no value, () any value
_OPTIONS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(("--hydra-help", "--version", "--resolve"), None),
    **dict.fromkeys(("--run", "-r", "--multirun", "-m", "--shell-completion", "-sc"), None),
    **dict.fromkeys(("--cfg", "-c"), _CONFIGS),
    **dict.fromkeys(("--info", "-i"), _INFOS),
    **dict.fromkeys(("--package", "-p", "--config-dir", "-cd"), ()),
}
_OPTIONAL_VALUE = ("--info", "-i")
_OWN_CONF = ("--config-dir", "-cd")  # a folder of the user, which adds choices
_FULL_ERROR = "HYDRA_FULL_ERROR"


class CallableModule(types.ModuleType):
    """A module that can be called as its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call that function."""
        return self.__dict__[self.__name__.rpartition(".")[2]](*args, **kwargs)


def make_module_callable(function: Callable[..., object]) -> None:
    """Make the module of a function callable as that function.

    `robust_fin.predict` is a module, because `python -m` runs it. `from robust_fin import predict`
    must give a function, whether or not the module has been imported before. help() of the module
    shows the parameters and the docstring of the function.
    """
    if function.__module__ == "__main__":
        return
    module, signature = sys.modules[function.__module__], inspect.signature(function)
    module.__class__ = CallableModule
    module.__dict__["__signature__"] = signature  # for help() and editors
    call = f"{function.__name__}{signature}"
    module.__doc__ = "\n\n".join(filter(None, (call, inspect.getdoc(function), module.__doc__)))


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
    entry = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)
    errors: list[Exception] = []

    def run_job(config: DictConfig) -> None:
        """Run the job; keep its error, which Hydra would print, except in a sweep."""
        try:
            check_added_keys(config, verb=config_name, words=HydraConfig.get().overrides.task)
            check_values(config, verb=config_name)
            with verbosity(get_verbosity(config)):
                job(config)
        except USER_ERRORS as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            errors.append(error)

    def run_hydra() -> None:
        options, overrides = split_options(words, verb=config_name)
        if not any(option.startswith(_OWN_CONF) for option in options):
            check_choices(overrides)
        sys.argv = [previous[0], *options, *overrides]  # Hydra wants its options first
        with claim_folder(overrides):
            entry(run_job)()
        if errors:
            raise errors[0]

    previous = sys.argv
    try:
        return report_errors(
            run_hydra,
            wants_traceback="debug=default" in words,
            explain=functools.partial(explain_error, verb=config_name, words=words),
        )
    finally:
        sys.argv = previous


def split_options(words: Sequence[str], *, verb: str) -> tuple[list[str], list[str]]:
    """Divide the words of a command line into Hydra's options with their values, and overrides.

    Args:
        words: arguments after the command, in any order.
        verb: the command.

    Raises:
        ConfigError: an option does not exist, or lacks its value.
    """
    options, overrides, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        option, equals, value = word.partition("=")
        if option not in _OPTIONS:
            following = rest[0] if rest and "=" not in rest[0] else ""
            raise ConfigError(describe_option(option, value if equals else following, verb=verb))
        options.append(word)
        choices = _OPTIONS[option]
        if choices is None or equals:
            continue
        if rest and (rest[0] in choices or not choices):
            options.append(rest.pop(0))
        elif option in _OPTIONAL_VALUE:
            options.append(_INFOS[0])  # otherwise it would take the next override as its value
        else:
            raise ConfigError(f"{option} needs a value: {', '.join(choices) or 'a name'}")
    return options, overrides


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
