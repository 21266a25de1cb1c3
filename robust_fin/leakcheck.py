"""python -m robust_fin.leakcheck [+experiment=NAME] [source.path=FILE] [any key of train]."""

from robust_fin.cli.command import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("leakcheck")  # before torch is imported

import sys
import time
from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from robust_fin.cli.command import run_command
from robust_fin.errors import RobustFinError
from robust_fin.leaks.checks import check_leaks
from robust_fin.leaks.feature_check import UNCHANGED
from robust_fin.leaks.perturbations import CheckedColumn, Leak
from robust_fin.market.schema import log_warnings
from robust_fin.runs.schema import register_schema
from robust_fin.runtime.terminal import RESULT, show


class LeakError(RobustFinError):
    """A feature, label, transform or span depends on data it cannot know."""


def leakcheck(config: DictConfig) -> None:
    """Check bars, features, labels, transforms and spans for leaks, and print what was checked.

    Raises:
        LeakError: names the first column that leaks, and how far it sees.
    """
    started, source = time.perf_counter(), instantiate(config.source)
    parts = {key: instantiate(config[key]) for key in ("features", "target", "split", "transform")}
    bars = source.load()
    log_warnings(bars.findings.facts(), origin=source.origin)
    findings = check_leaks(bars, labeller=source.labeller(), **parts, **config.leaks)
    if findings.leaks:
        raise LeakError(leak_message(findings.leaks))
    columns = len({line.column for line in findings.checked})
    values = sum(line.rows for line in findings.checked)
    show(checks_table(findings.checked, origin=source.origin), *notes(findings.checked))
    seconds = time.perf_counter() - started
    unmoved = [line.column for line in findings.checked if line.note == UNCHANGED]
    but = f". Nothing was checked of {', '.join(unmoved)}: no bar moves it" if unmoved else ""
    show(
        f"No leak: {columns} columns, {values:,} values compared, in {seconds:.0f} s{but}",
        level=RESULT,
    )


def checks_table(lines: Sequence[CheckedColumn], *, origin: str) -> Table:
    """Tabulate what was checked."""
    table = Table(title=f"Leak checks of {origin}", title_justify="left")
    for name in ("column", "must not depend on", "cuts", "values"):
        table.add_column(name, justify="right" if name in ("cuts", "values") else "left")
    for line in lines:
        table.add_row(line.column, line.what, f"{line.cuts:,}", f"{line.rows:,}")
    return table


def notes(lines: Sequence[CheckedColumn]) -> list[str]:
    """Return one line per limitation, with the columns that have it."""
    columns: dict[str, list[str]] = {}
    for line in lines:
        if line.note:
            columns.setdefault(line.note, []).append(line.column)
    return [f"{', '.join(names)}: {note}" for note, names in columns.items()]


def leak_message(leaks: Sequence[Leak]) -> str:
    """Format the first leak, and the names of the others."""
    others = [leak.column for leak in leaks if leak.column != leaks[0].column]
    also = f". Also leaking: {', '.join(dict.fromkeys(others))}" if others else ""
    return f"{leaks[0]}{also}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    register_schema()
    return run_command(leakcheck, config_name="leakcheck", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
