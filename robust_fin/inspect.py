"""python -m robust_fin.inspect source.path=FILE [+experiment=NAME] [any key of train].

Prints what a bar file says about itself beside the settings, and the option to type where they
differ. Exit code 0: a training with these settings would start; 1: it would stop.
"""

from robust_fin.cli.command import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("inspect")  # before any slow import

import sys
from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from robust_fin.cli.command import run_command
from robust_fin.market.sources import Bars
from robust_fin.runs.schema import register_schema
from robust_fin.runtime.terminal import RESULT, show

HEADINGS = ("subject", "configured", "the file says", "agreement", "option to type")


def inspect(config: DictConfig) -> None:
    """Compare a bar file with the settings and print the table.

    Raises:
        SchemaError: the bars contradict the settings, or break a rule of a bar table.
    """
    source = instantiate(config.source)
    bars = source.inspect()
    show(findings_table(bars))
    bars.findings.check(source.origin)
    contracts = bars.table["contract"].nunique()
    first, last = bars.table["time"].iloc[[0, -1]]
    show(
        f"A training would start: {len(bars.table):,} bars of {contracts} "
        f"{'contract' if contracts == 1 else 'contracts'}, {first:%Y-%m-%d} to {last:%Y-%m-%d}",
        level=RESULT,
    )


def findings_table(bars: Bars) -> Table:
    """Tabulate the layout of a file and the comparison with its settings."""
    table = Table(title=f"Inspection of {bars.origin}", title_justify="left")
    for name in HEADINGS:
        table.add_column(name, overflow="fold")
    for subject, found, option in bars.layout.rows():
        table.add_row(subject, "", found, "", option)
    table.add_section()
    for row in bars.findings.rows:
        table.add_row(row.subject, row.configured, row.found, row.agreement, row.option)
    for reason, count in bars.dropped.items():
        table.add_row("rows left out", "", f"{count:,}: {reason}", "", "")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    register_schema()
    return run_command(inspect, config_name="inspect", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
