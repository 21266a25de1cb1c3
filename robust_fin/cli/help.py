"""What `--help` says: short, with the defaults as the config has them, and quick to come."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

from omegaconf import ListConfig, OmegaConf

from robust_fin.cli.composition import (
    EXPERIMENT,
    Composition,
    choices,
    composed,
    conf_folder,
    first_comment,
)

HELP = ("--help", "-h")
_WIDTH = 80  # of an experiment's line


@dataclass(frozen=True, slots=True)
class Usage:
    """What there is to say of a verb.

    Attributes:
        line: what it does.
        keys: those one gives or changes most, with what they mean; of a group what follows after
            the list of its choices.
        examples: words after the verb.
        experiments: whether it takes +experiment=NAME.
    """

    line: str
    keys: tuple[tuple[str, str], ...]
    examples: tuple[str, ...]
    experiments: bool = False


_SOURCE = ("source.path", "bars: a CSV or Parquet file; null makes synthetic ones")
_RUN = ("run", "folder of a finished run, as train prints it")

VERBS = {
    "train": Usage(
        "train a net on bars, score the test span once, say what it is worth",
        (
            _SOURCE,
            ("features", "; features.names=[...] for your own"),
            ("model", ""),
            ("model.hidden", "widths of the layers"),
            ("loss", ""),
            ("optimizer.lr", "learning rate"),
            ("batch_size", "rows a batch"),
            ("trainer.max_epochs", "passes over the training rows"),
            ("split", ""),
            ("seed", "of initialisation, dropout and the order of rows"),
        ),
        (
            "+experiment=top5 source.path=es.parquet model.hidden=[64,32]",
            "+experiment=top5 seed=0,1,2 -m                  # a sweep: three runs",
            "resume=outputs/top5/2026-01-31_10-00-00         # go on after Ctrl-C",
        ),
        experiments=True,
    ),
    "predict": Usage(
        "score new bars with a finished run",
        (_RUN, _SOURCE, ("out", "where the scores go, a .parquet file")),
        ("run=RUN_FOLDER source.path=new.parquet out=scores.parquet",),
    ),
    "evaluate": Usage(
        "the figures and the verdict of a run again, or of several side by side",
        ((_RUN[0], f"{_RUN[1]}; [A,B] compares"), ("lockbox", "look at the locked rows, once")),
        ("run=outputs/top5/2026-01-31_10-00-00", "run=[A,B]"),
    ),
    "select": Usage(
        "which features are worth having",
        (
            _SOURCE,
            ("features", ": the candidates"),
            ("select.k", "features to propose"),
            ("select.learner", "ridge or lightgbm"),
        ),
        ("features=rich source.path=es.parquet",),
        experiments=True,
    ),
    "leakcheck": Usage(
        "does any feature, label or span see the future?",
        (
            _SOURCE,
            ("features.modules", "your own modules that register features"),
            ("leaks.every_feature", "all registered ones, not features.names alone"),
            ("leaks.cuts", "moments after which the bars are changed"),
        ),
        ("+experiment=top5 source.path=es.parquet",),
        experiments=True,
    ),
    "doctor": Usage(
        "does this machine train what the tests train?",
        (("hardware", ""), ("out", "a file for the findings, as JSON")),
        ("hardware=cuda",),
    ),
    "replay": Usage(
        "run a step again that was not finite",
        (("record", "the file that it left in nonfinite/"), ("rows", "shown at most")),
        ("record=outputs/top5/2026-01-31_10-00-00/nonfinite/step_120.safetensors",),
    ),
}


def wants_help(words: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return any(word in HELP for word in words)


def answer_help(verb: str) -> None:
    """Print the help of the verb that this process runs, and end it, where that was asked for.

    A verb calls it before it imports what takes seconds.
    """
    if wants_help(sys.argv[1:]):
        sys.stdout.write(help_of(verb))
        sys.exit(0)


def help_of(verb: str) -> str:
    """What `--help` prints."""
    usage = VERBS[verb]
    line = usage.line[0].upper() + usage.line[1:] + ("" if usage.line.endswith("?") else ".")
    parts = [line, "", *_usage_lines(verb), ""]
    if verb == "train":
        parts += _section(
            "Verbs, each with --help: python -m robust_fin.VERB, or robust-fin VERB",
            [(name, one.line) for name, one in VERBS.items()],
        )
    if usage.experiments and verb == "train":
        parts += _section(f"Experiments: +{EXPERIMENT}=NAME", experiments())
    found = composed(verb, [])
    told = [
        (f"{key}={_default(found, key)}", ", ".join(choices(key)) + meaning)
        for key, meaning in usage.keys
    ]
    heading = "Keys one changes most, with their defaults"
    parts += _section(f"{heading}; experiments have others" if usage.experiments else heading, told)
    parts += ["Examples", *(f"  python -m robust_fin.{verb} {one}" for one in usage.examples), ""]
    parts += ["--cfg job shows the whole config with your words in it, --info where it comes from,"]
    parts += ["--hydra-help what else Hydra knows, -sc how to complete words with Tab."]
    return "\n".join(parts) + "\n"


def verbs_help() -> str:
    """What the console script prints without a verb."""
    lines = _section("robust-fin VERB [key=value]", [(n, one.line) for n, one in VERBS.items()])
    return "\n".join([*lines, "robust-fin VERB --help says more."]) + "\n"


def _usage_lines(verb: str) -> list[str]:
    return [f"  {one}" for one in first_comment(conf_folder() / f"{verb}.yaml")]


def experiments() -> list[tuple[str, str]]:
    """Name and first line of each."""
    folder = conf_folder() / EXPERIMENT
    lines = {one: first_comment(folder / f"{one}.yaml")[0] for one in choices(EXPERIMENT)}
    return [(one, shorten(line, _WIDTH, placeholder=" ...")) for one, line in lines.items()]


def _section(heading: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [heading, *(f"  {name:<{width}}  {said}" for name, said in rows), ""]


def _default(found: Composition, key: str) -> str:
    """The default as one would write it; of a group, its choice; ? where one must be given."""
    if key in found.choices:
        return found.choices[key]
    if OmegaConf.is_missing(found.config, key):
        return "?"
    value = OmegaConf.select(found.config, key)
    if isinstance(value, ListConfig):
        return str(list(value)).replace(" ", "")
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
