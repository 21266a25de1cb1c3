"""Count false claims of the verdict on noise, by number of test dates.

python benchmarks/judge.py [--seeds 200] [--document docs/honesty.md]

The predictions are simulated without any signal, and nothing is trained. A table has trading dates
of 60 rows. Outcomes follow Student's t with 3 degrees of freedom and have one volatility per date.
Forecasts are small normal noise, a part of which is common to a date. Each number of dates is
simulated with and without a further date of three rows. 4,800 tables take one to two minutes.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from robust_fin.evaluation.significance import significance
from robust_fin.evaluation.verdict import claims_order, claims_skill

DATES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20)
ROWS, SHORT_ROWS = 60, 3
START, END = "<!-- judge: written by benchmarks/judge.py -->", "<!-- end of judge -->"


def noise_table(seed: int, *, dates: int, short: bool) -> pd.DataFrame:
    """Simulate predictions that are independent of their outcomes.

    Args:
        seed: of the random numbers.
        dates: number of trading dates of `ROWS` rows.
        short: add a date of `SHORT_ROWS` rows in front.
    """
    rng = np.random.default_rng(seed)
    sizes = [SHORT_ROWS] * short + [ROWS] * dates
    date = np.repeat(np.arange(len(sizes)), sizes)
    outcome = np.exp(0.4 * rng.normal(size=len(sizes)))[date] * rng.standard_t(3, size=date.size)
    score = 0.5 + 0.002 * rng.normal(size=date.size) + 0.0005 * rng.normal(size=len(sizes))[date]
    first = np.datetime64("2024-01-01", "s")
    return pd.DataFrame(
        {
            "trading_date": first + date * np.timedelta64(86400, "s"),
            "score": score,
            "target": (pd.Series(outcome).rank().to_numpy() - 1) / (date.size - 1),
            "outcome": 1e-4 * outcome,
        }
    )


def count_claims(*, dates: int, short: bool, seeds: int) -> int:
    """Count the seeds for which the verdict claims skill or order."""
    claims = 0
    for seed in range(seeds):
        table = noise_table(seed, dates=dates, short=short)
        result = significance(table, trivial=0.5)
        claims += claims_skill(result) or claims_order(result)
    return claims


def claims_table(*, seeds: int) -> list[str]:
    """Return the lines of a Markdown table of the claims."""
    lines = [
        f"| full test dates | claims of {seeds} | with one more date of {SHORT_ROWS} rows |",
        "|---|---|---|",
    ]
    for dates in DATES:
        plain, short = (count_claims(dates=dates, short=s, seeds=seeds) for s in (False, True))
        lines.append(f"| {dates} | {plain} | {short} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table to standard output or into a document; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--document", type=Path)
    options = parser.parse_args(argv)
    started = time.perf_counter()
    text = "\n".join(claims_table(seeds=options.seeds))
    if options.document is None:
        sys.stdout.write(f"{text}\n{time.perf_counter() - started:.0f} s\n")
        return 0
    page = options.document.read_text(encoding="utf-8")
    before, rest = page.split(START)
    options.document.write_text(
        f"{before}{START}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
