"""Measure how long each split takes to compute all its folds.

python benchmarks/splits.py [--quick] [--rows N] [--json FILE]

The rows are one-minute bars whose labels end 1 to 60 bars ahead. Measured are the first call of the
process, the median of five more calls, and the median when the folds are iterated without keeping
them (passing). `purgedcv` and `skfolio` are measured once if they are installed, because purgedcv
is slow; the table has the ratio to our median, and whether the index sets are equal. skfolio purges
by a number of rows, so its sets differ. "all" has an embargo of one trading date, a val span and a
lockbox.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.table import Table

from robust_fin.cli.composition import conf_folder
from robust_fin.data.splits import Fold, LabelledRows, Split
from robust_fin.runs.schema import register_schema
from robust_fin.runtime.terminal import show

ROWS, QUICK = 1_142_809, 114_280
REACH, CONTRACTS, BARS_A_DATE = 60, 12, 1380
TIMES = 5
ALL_SPANS = ("split.embargo=1380", "split.val_fraction=0.1", "split.lockbox=0.1")
SCHEMES = {  # name in the table -> overrides
    "holdout": ("holdout",),
    "walk_forward, rows": ("walk_forward", "split.by=rows"),
    "walk_forward, dates": ("walk_forward", "split.by=trading_date"),
    "walk_forward, contracts": ("walk_forward", "split.by=contract", "split.test_blocks=null"),
    "purged_kfold": ("purged_kfold",),
    "purged_kfold, all": ("purged_kfold", *ALL_SPANS),
    "cpcv": ("cpcv",),
    "cpcv, all": ("cpcv", *ALL_SPANS),
}
MINUTE = np.timedelta64(1, "m")
COLUMNS = {
    "folds": ("folds", "{}"),
    "first s": ("first_seconds", "{:.3f}"),
    "s": ("seconds", "{:.3f}"),
    "passing s": ("seconds_one_by_one", "{:.3f}"),
    "ratio": ("ratio", "{:,.0f}"),
    "same": ("same_sets", "{}"),
}

Pairs = Iterable[tuple[np.ndarray, np.ndarray]]  # train and test of each fold


def bars(rows: int) -> dict[str, Any]:
    """Create the rows to split: one bar per minute, with horizons that vary by row."""
    number, draw = np.arange(rows), np.random.default_rng(0)
    start = np.datetime64("2020-01-01", "ns") + number * MINUTE
    dates = np.datetime64("2020-01-01", "D") + number // BARS_A_DATE
    names = [f"C{code:02}" for code in range(CONTRACTS)]
    return {
        "time": start,
        "label_end": start + (1 + draw.integers(1, REACH + 1, rows)) * MINUTE,
        "trading_date": dates.astype("datetime64[s]"),
        "contract": pd.Categorical.from_codes(number * CONTRACTS // rows, names),
    }


def split_of(words: Sequence[str]) -> Split:
    """Build the split from the config."""
    register_schema()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return instantiate(compose("train", overrides=[f"split={words[0]}", *words[1:]]).split)


def seconds(work: Callable[[], object]) -> float:
    """Time a single call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ours(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the table."""
    split = split_of(SCHEMES[name])

    def one_by_one() -> int:
        return sum(fold.test.size for fold in split.each_fold(LabelledRows(**given)))

    first = seconds(lambda: split.folds(LabelledRows(**given)))
    again = [seconds(lambda: split.folds(LabelledRows(**given))) for _ in range(TIMES)]
    passing = [seconds(one_by_one) for _ in range(TIMES)]
    return {
        "split": name,
        "package": "robust_fin",
        "folds": len(split.folds(LabelledRows(**given))),
        "first_seconds": first,
        "seconds": statistics.median(again),
        "seconds_one_by_one": statistics.median(passing),
    }


def purgedcv_pairs(package: ModuleType, scheme: str, given: dict[str, Any]) -> Pairs:
    """Return the folds of purgedcv."""
    known = {"prediction_times": given["time"], "evaluation_times": given["label_end"]}
    if scheme == "cpcv":
        return package.CombinatorialPurgedCV(6, 2, **known).split(given["time"])
    return package.PurgedKFold(5, **known).split(given["time"])


def skfolio_pairs(package: ModuleType, scheme: str, given: dict[str, Any]) -> Pairs:
    """Return the folds of skfolio, purging as many rows as the longest label reaches ahead."""
    if scheme != "cpcv":
        return []
    make = package.CombinatorialPurgedCV
    cut = make(n_folds=6, n_test_folds=2, purged_size=REACH, embargo_size=0)
    rows = np.zeros((given["time"].size, 1))
    return ((train, np.concatenate(tests)) for train, tests in cut.split(rows))


OTHERS = {
    "purgedcv": ("purgedcv", purgedcv_pairs),
    "skfolio": ("skfolio.model_selection", skfolio_pairs),
}


def theirs(name: str, scheme: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """Return one row of the table; None if the package is not installed or lacks the split."""
    module, pairs = OTHERS[name]
    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    found: list[tuple[np.ndarray, np.ndarray]] = []
    taken = seconds(lambda: found.extend(pairs(package, scheme, given)))
    if not found:
        return None
    folds = split_of([scheme]).folds(LabelledRows(**given))
    equal = all(same(fold, *pair) for fold, pair in zip(folds, found, strict=True))
    return {
        "split": scheme,
        "package": name,
        "folds": len(found),
        "first_seconds": taken,
        "same_sets": equal,
    }


def same(fold: Fold, train: np.ndarray, test: np.ndarray) -> bool:
    """Return True if both index sets are equal."""
    return np.array_equal(fold.train, train) and np.array_equal(fold.test, test)


def measured(rows: int) -> list[dict[str, Any]]:
    """Return all rows of the table."""
    given = bars(rows)
    found = [ours(name, given) for name in SCHEMES]
    for scheme in ("purged_kfold", "cpcv"):
        mine = next(row["seconds"] for row in found if row["split"] == scheme)
        others = [theirs(name, scheme, given) for name in OTHERS]
        found += [{**row, "ratio": row["first_seconds"] / mine} for row in others if row]
    return [{"rows": rows, **row} for row in found]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Format the rows for the console."""
    text = Table(title=f"All folds of {rows[0]['rows']:,} rows", title_justify="left")
    text.add_column("split", no_wrap=True)
    for name in COLUMNS:
        text.add_column(name, justify="right")
    for row in rows:
        cells = [form.format(row[key]) if key in row else "" for key, form in COLUMNS.values()]
        other = "" if row["package"] == "robust_fin" else f" ({row['package']})"
        text.add_row(row["split"] + other, *cells)
    return text


def main() -> None:
    """Measure, print the table, and write the file given on the command line."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows")
    words.add_argument("--rows", type=int, help="number of rows")
    words.add_argument("--json", type=Path, help="write the rows as a list of objects")
    given = words.parse_args()
    rows = measured(given.rows or (QUICK if given.quick else ROWS))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(table(rows))


if __name__ == "__main__":
    main()
