"""Labelled rows for the tests of splits: stamps, label ends, trading dates and contracts."""

import numpy as np
import pandas as pd

from robust_fin.data.splits import Fold, LabelledRows, Split

NIGHT = 900  # minutes between the last bar of a trading date and the first of the next


def minutes(*values: int) -> np.ndarray:
    return np.array(values).astype("datetime64[m]").astype("datetime64[ns]")


def grid(rows: int, *, reach: int | np.ndarray = 2, dates: list[int] | None = None) -> LabelledRows:
    """One bar a minute of one contract.

    `reach` is how many minutes after its bar's start a label ends (2: the next bar), `dates` how
    many rows each trading date has.
    """
    start = np.arange(rows)
    days = np.repeat(np.arange(len(dates)), dates) if dates else np.zeros(rows, dtype=int)
    return LabelledRows(
        minutes(*start),
        minutes(*(start + reach)),
        days.astype("datetime64[D]"),
        pd.Categorical(["A"] * rows),
    )


def random_table(seed: int, *, rows: int = 500, contracts: int = 1) -> LabelledRows:
    """Bars with holes and nights, horizons of 1 to 20 bars, and contracts that overlap in time."""
    draw = np.random.default_rng(seed)
    stamps = np.cumsum(draw.choice([1, 1, 1, 2, 5], rows))
    day = np.arange(rows) * 20 // rows
    stamps += NIGHT * day
    parts = []
    for number in range(contracts):  # each lives for a part of the time, and overlaps the next
        first, last = rows * number // contracts, rows * (number + 2) // (contracts + 1)
        own = np.sort(draw.choice(np.arange(first, last), (last - first) * 4 // 5, replace=False))
        own = own if contracts > 1 else np.arange(rows)
        ahead = np.minimum(np.arange(own.size) + draw.integers(1, 21, own.size), own.size - 1)
        ends = stamps[own[ahead]] + 1
        parts.append(
            pd.DataFrame({"time": stamps[own], "end": ends, "day": day[own], "contract": number})
        )
    table = pd.concat(parts).sort_values(["time", "contract"], ignore_index=True)
    names = [f"C{number}" for number in range(contracts)]
    return LabelledRows(
        minutes(*table["time"]),
        minutes(*table["end"]),
        table["day"].to_numpy().astype("datetime64[D]"),
        pd.Categorical.from_codes(table["contract"], names),
    )


def cut(split: Split, table: LabelledRows) -> tuple[Fold, ...]:
    return split.folds(table)


def overlap(table: LabelledRows, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether any label of `some` shares time with any of `others`, pair by pair."""
    time, end = table.time, table.label_end
    starts_before = time[some][:, None] < end[others][None, :]
    ends_after = end[some][:, None] > time[others][None, :]
    return starts_before & ends_after


def lists(fold: Fold) -> list[list[int]]:
    """train, val and test as lists."""
    return [fold.train.tolist(), fold.val.tolist(), fold.test.tolist()]
