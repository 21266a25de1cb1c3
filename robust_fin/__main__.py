"""robust-fin VERB [key=value]: the verbs by one name; python -m robust_fin VERB is the same."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from robust_fin.cli.command import run_job
from robust_fin.cli.help import VERBS, help_of, verbs_help, wants_help
from robust_fin.runs.settings import register_schema

_COMPLETION = ("--shell-completion", "-sc")
_LINE = "COMP_LINE"  # what a shell says has been typed


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in _COMPLETION for word in words):
        return complete(words)
    if not words or words[0] in ("--help", "-h"):
        sys.stdout.write(verbs_help())
        return 0
    verb, *rest = words
    if verb not in VERBS:
        sys.stderr.write(f"error: {no_verb(verb)}\n")
        return 1
    if wants_help(rest):  # before torch is imported
        sys.stdout.write(help_of(verb))
        return 0
    code: int = importlib.import_module(f"robust_fin.{verb}").main(rest)
    return code


def no_verb(name: str) -> str:
    """That there is none of that name, and which is most like it."""
    near = difflib.get_close_matches(name, VERBS, n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    return f"{name} is not a verb{meant} There are {', '.join(VERBS)}"


def complete(words: Sequence[str]) -> int:
    """What Tab asks for: Hydra's own completion, of the verb that stands in the line.

    Hydra knows one config a program, so the verb is taken out of the line before it looks at it.

    Args:
        words: -sc, and query=SHELL, install=SHELL or uninstall=SHELL.
    """
    register_schema()
    program, *typed = os.environ.get(_LINE, "").split(" ")
    typed = [word for place, word in enumerate(typed) if word or place == len(typed) - 1]
    if any(word.startswith("query=") for word in words):
        if len(typed) < 2:
            begun = typed[0] if typed else ""
            sys.stdout.write(" ".join(one for one in VERBS if one.startswith(begun)) + "\n")
            return 0
        if typed[0] not in VERBS:
            return 1
        os.environ[_LINE] = " ".join([program, *typed[1:]])
    verb = typed[0] if typed and typed[0] in VERBS else "train"
    return run_job(_nothing, config_name=verb, argv=words)


def _nothing(config: DictConfig) -> None:
    """Of the job, of which no completion comes."""


if __name__ == "__main__":
    sys.exit(main())
