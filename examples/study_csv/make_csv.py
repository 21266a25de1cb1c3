"""Write a CSV of the study's kind: one-minute bars with naive UTC stamps, and a VIX on every row.

python examples/study_csv/make_csv.py FILE.csv [--rows 120000] [--signal 0.05] [--seed 0]

The bars are made up; a signal with the given rank correlation with the next return is planted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robust_fin.market.synthetic import synthetic_market

COLUMNS = ["date", "open", "high", "low", "close", "volume", "contract", "VIX", "session"]


def study_table(rows: int, *, signal: float, seed: int) -> pd.DataFrame:
    """Synthetic bars under the headers of the study's file, stamps without a zone."""
    bars = synthetic_market(rows, seed=seed, signal=signal).bars
    date = bars["time"].dt.strftime("%Y-%m-%d %H:%M:%S")
    return bars.assign(date=date, VIX=bars["vix"])[COLUMNS]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=120_000)
    parser.add_argument("--signal", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args(argv)
    table = study_table(wanted.rows, signal=wanted.signal, seed=wanted.seed)
    table.to_csv(wanted.file, index=False)
    sys.stdout.write(
        f"{len(table):,} bars of {table['contract'].nunique()} contracts: {wanted.file}\n"
    )


if __name__ == "__main__":
    main()
