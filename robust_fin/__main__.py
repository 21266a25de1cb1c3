"""The console script: `robust-fin COMMAND` is `python -m robust_fin.COMMAND`."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from robust_fin.cli.command import (
    COMMANDS,
    format_command_list,
    format_help,
    run_command,
    wants_help,
)
from robust_fin.runs.schema import register_schema

_COMPLETION = ("--shell-completion", "-sc")
_LINE = "COMP_LINE"  # the shell's variable for the typed line


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in _COMPLETION for word in words):
        return complete(words)
    if not words or words[0] in ("--help", "-h"):
        sys.stdout.write(format_command_list())
        return 0
    verb, *rest = words
    if verb not in COMMANDS:
        sys.stderr.write(f"error: {describe_unknown_command(verb)}\n")
        return 1
    if wants_help(rest):  # before torch is imported
        sys.stdout.write(format_help(verb))
        return 0
    code: int = importlib.import_module(f"robust_fin.{verb}").main(rest)
    return code


def describe_unknown_command(name: str) -> str:
    """Format the error for an unknown command, with the closest match."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{name} is not a command{hint} Commands: {', '.join(COMMANDS)}"


def complete(words: Sequence[str]) -> int:
    """Run Hydra's shell completion for the command in the typed line.

    Hydra knows one config per program, so the command is removed from the line first.

    Args:
        words: -sc, and query=SHELL, install=SHELL or uninstall=SHELL.
    """
    register_schema()
    program, *typed = os.environ.get(_LINE, "").split(" ")
    typed = [word for index, word in enumerate(typed) if word or index == len(typed) - 1]
    if any(word.startswith("query=") for word in words):
        if len(typed) < 2:
            begun = typed[0] if typed else ""
            sys.stdout.write(" ".join(name for name in COMMANDS if name.startswith(begun)) + "\n")
            return 0
        if typed[0] not in COMMANDS:
            return 1
        os.environ[_LINE] = " ".join([program, *typed[1:]])
    verb = typed[0] if typed and typed[0] in COMMANDS else "train"
    return run_command(_nothing, config_name=verb, argv=words)


def _nothing(config: DictConfig) -> None:
    """Do nothing: completion runs no job."""


if __name__ == "__main__":
    sys.exit(main())
