"""python -m robust_fin.leakcheck [+experiment=NAME] [source.path=FILE] [any key of train]."""

from robust_fin.cli.help import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("leakcheck")  # before torch is imported

import logging
import sys
import time
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from robust_fin.cli.command import run_command
from robust_fin.data.examples import Examples, columns_of, make_examples
from robust_fin.data.folds import cut_folds
from robust_fin.data.splits import Split
from robust_fin.errors import ConfigError, RobustFinError, SchemaError
from robust_fin.features.registry import FEATURES, compute_features
from robust_fin.leaks.feature_check import check_features
from robust_fin.leaks.fold_check import check_folds
from robust_fin.leaks.label_check import SAME_DAY, VIX, check_labels, check_vix
from robust_fin.leaks.perturbations import Checked, Findings, Leak, cut_points
from robust_fin.market.sources import Bars
from robust_fin.runs.schema import register_schema
from robust_fin.runtime.terminal import RESULT, show

log = logging.getLogger(__name__)


class LeakError(RobustFinError):
    """Something sees what it cannot know."""


def check(config: DictConfig) -> Findings:
    """Bars, features, labels, transforms and spans of a config, held against their future.

    Args:
        config: of training, and the keys of `leaks`.

    Returns:
        The leaks, in the order in which a run would meet them, and what was checked.

    Raises:
        ConfigError: `leaks.cuts` is no count.
    """
    settings, seed = config.leaks, config.leaks.seed
    if not isinstance(settings.cuts, int) or settings.cuts < 1:
        raise ConfigError(f"leaks.cuts={settings.cuts} must be a whole number, at least 1")
    source, features, target, split, transform = (
        instantiate(config[key]) for key in ("source", "features", "target", "split", "transform")
    )
    bars = source.load()
    examples = make_examples(bars, names=features.names, target=target)
    ends = train_ends(examples, split, most=settings.cuts)
    cuts = cut_points(bars.table, count=settings.cuts, seed=seed, ends=ends)
    names = every_feature(bars, features.names) if settings.every_feature else features.names
    return joined(
        [
            check_vix(bars.table, source.labeller(), cuts),
            vix_of_the_bars(bars, names) if source.vix_path is None else Findings([], []),
            check_features(
                bars.table, columns_of(names), cuts, starts=settings.cuts // 2 + 1, seed=seed
            ),
            check_labels(bars.table, target, cuts, bar=bars.bar),
            check_folds(examples, features=features, transform=transform, split=split),
        ]
    )


def train_ends(examples: Examples, split: Split, *, most: int) -> list[np.datetime64]:
    """The last label ends of the training spans, of `most` folds at most."""
    cut = cut_folds(examples, split)
    return [examples.label_end[cut.rows[fold.train]].max() for fold in cut.folds[:most]]


def every_feature(bars: Bars, first: Sequence[str]) -> list[str]:
    """The features of the config, then all others of the registry that the bars have columns for.

    Args:
        bars: what they are computed from.
        first: names of the config's features.
    """
    names = [*first, *sorted(set(FEATURES) - set(first))]
    some = bars.table.iloc[:2]
    lacking = [name for name in names if not has_columns(some, name)]
    for name in lacking:
        log.info("%s is not checked: the bars lack a column that it needs", name)
    return [name for name in names if name not in lacking]


def vix_of_the_bars(bars: Bars, names: Sequence[str]) -> Findings:
    """A line that says what cannot be checked, where a feature needs a VIX the file came with."""
    some = bars.table.iloc[:2].drop(columns="vix", errors="ignore")
    if all(has_columns(some, name) for name in names):
        return Findings([], [])
    note = "not checked, taken as known at each bar; source.vix_path joins closes that can be"
    return Findings([], [Checked(VIX, SAME_DAY, 0, 0, note)])


def has_columns(bars: pd.DataFrame, name: str) -> bool:
    """Whether a feature finds the columns it needs."""
    try:
        compute_features(bars, [name])
    except SchemaError:
        return False
    return True


def joined(parts: Iterable[Findings]) -> Findings:
    """All leaks and all lines, in order."""
    every = list(parts)
    return Findings(
        [leak for part in every for leak in part.leaks],
        [line for part in every for line in part.checked],
    )


def checked_table(lines: Sequence[Checked], *, origin: str) -> Table:
    """What was checked, a line each."""
    table = Table(title=f"Leaks looked for in {origin}", title_justify="left")
    for name in ("column", "must not notice", "cuts", "values"):
        table.add_column(name, justify="right" if name in ("cuts", "values") else "left")
    for line in lines:
        table.add_row(line.column, line.what, f"{line.cuts:,}", f"{line.rows:,}")
    return table


def notes(lines: Sequence[Checked]) -> list[str]:
    """What could not be checked, a line a reason."""
    reasons = dict.fromkeys(line.note for line in lines if line.note)
    return [
        f"{', '.join(line.column for line in lines if line.note == reason)}: {reason}"
        for reason in reasons
    ]


def said(leaks: Sequence[Leak]) -> str:
    """The first leak, and the names of the others."""
    others = list(
        dict.fromkeys(leak.column for leak in leaks[1:] if leak.column != leaks[0].column)
    )
    also = f". Also leaking: {', '.join(others)}" if others else ""
    return f"{leaks[0]}{also}"


def leakcheck(config: DictConfig) -> None:
    """Check, and say what was checked.

    Raises:
        LeakError: names the first column that leaks, and how far it sees.
    """
    began = time.perf_counter()
    found = check(config)
    if found.leaks:
        raise LeakError(said(found.leaks))
    columns = len({line.column for line in found.checked})
    values = sum(line.rows for line in found.checked)
    show(
        checked_table(found.checked, origin=instantiate(config.source).origin),
        *notes(found.checked),
    )
    seconds = time.perf_counter() - began
    show(
        f"No leak: {columns} columns, {values:,} values compared, in {seconds:.0f} s",
        level=RESULT,
    )


def job(config: DictConfig) -> None:
    """What Hydra calls."""
    leakcheck(config)


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    register_schema()
    return run_command(job, config_name="leakcheck", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
