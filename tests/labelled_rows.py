"""LabelledRows for tests of splits: times, label ends, trading dates and contracts."""

import numpy as np
import pandas as pd

from robust_fin.data.splits import Fold, LabelledRows, Split

NIGHT = 900  # minutes between the last bar of a trading date and the first of the next


def minutes(*values: int) -> np.ndarray:
    return np.array(values).astype("datetime64[m]").astype("datetime64[ns]")


def grid(rows: int, *, reach: int | np.ndarray = 2, dates: list[int] | None = None) -> LabelledRows:
    """Create one bar per minute of one contract.

    Args:
        rows: number of bars.
        reach: minutes from the start of a bar to the end of its label; 2 is the next bar.
        dates: number of rows of each trading date; one date by default.
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
    """Create bars with gaps, nights, horizons of 1 to 20 bars, and overlapping contracts."""
    draw = np.random.default_rng(seed)
    stamps = np.cumsum(draw.choice([1, 1, 1, 2, 5], rows))
    day = np.arange(rows) * 20 // rows
    stamps += NIGHT * day
    parts = []
    for number in range(contracts):  # each covers a part of the time and overlaps the next
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
    """Compare labels pairwise: True where a label of `some` overlaps one of `others` in time."""
    time, end = table.time, table.label_end
    starts_before = time[some][:, None] < end[others][None, :]
    ends_after = end[some][:, None] > time[others][None, :]
    return starts_before & ends_after


def lists(fold: Fold) -> list[list[int]]:
    """Return train, val and test as lists."""
    return [fold.train.tolist(), fold.val.tolist(), fold.test.tolist()]
