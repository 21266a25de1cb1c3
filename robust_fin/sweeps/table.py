"""sweep.csv and sweep.parquet: a row a trial, the best on val first."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from robust_fin.bundle.whole_files import write_whole
from robust_fin.sweeps.trial import FINISHED, STATES, Figure, Row

CSV, PARQUET = "sweep.csv", "sweep.parquet"
FIGURE = "val/skill"  # choices are made by it, and by nothing else
_TEST = ("test/", "members/test/")
_LEFT_OUT = ("baseline/", "against/", "edge/")  # of the test span too; each run's metrics.json
_WORDS = {"true": True, "false": False}


def skill_of(row: Row) -> float:
    """val/skill; NaN where there is none."""
    value = row.metrics.get(FIGURE)
    return math.nan if value is None or row.state != FINISHED else float(value)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Finished ones by val/skill, the best first; then those without one, by state and number."""

    def place(row: Row) -> tuple[int, float, int, int]:
        skill = skill_of(row)
        member = -1 if row.member is None else row.member
        if math.isfinite(skill):
            return (-1, -skill, row.number, member)
        return (STATES.index(row.state), 0.0, row.number, member)

    return sorted(rows, key=place)


def chosen_row(rows: Sequence[Row]) -> Row | None:
    """The one with the greatest val/skill; None where no finished trial has one."""
    first = in_order(rows)[:1]
    return first[0] if first and math.isfinite(skill_of(first[0])) else None


def varied_keys(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
    """Keys that differ between rows, and those that were to be swept, in the order they came."""
    every = dict.fromkeys(key for row in rows for key in row.settings)
    return [
        key for key in every
        if key in swept or len({row.settings.get(key) for row in rows}) > 1
    ]  # fmt: skip


def sweep_table(
    rows: Sequence[Row], *, swept: Sequence[str], chosen: Row | None, folder: Path
) -> pd.DataFrame:
    """The table, with test/* of the chosen row alone.

    Args:
        rows: of all jobs that have ended.
        swept: keys that are columns whether or not they differ.
        chosen: None as long as nothing is chosen: then no test figure is shown.
        folder: of the sweep, that run folders are seen from.
    """
    ordered = in_order(rows)
    found: dict[str, pd.Series] = {}
    found["job"] = pd.Series([row.number for row in ordered], dtype="Int64")
    if any(row.member is not None for row in ordered):
        found["member"] = pd.Series([row.member for row in ordered], dtype="Int64")
    found["chosen"] = pd.Series([row is chosen for row in ordered], dtype="boolean")
    for name in ("state", "reason"):
        found[name] = pd.Series([getattr(row, name) for row in ordered], dtype="string")
    for key in varied_keys(rows, swept):
        found[key] = typed_column([row.settings.get(key) for row in ordered])
    shown = [_shown(row, chosen=row is chosen) for row in ordered]
    for name in _metric_names(shown):
        if name in found:  # seed is a setting and a figure of the run
            continue
        found[name] = figure_column([one.get(name) for one in shown])
    found["job_seconds"] = pd.Series([round(row.seconds, 1) for row in ordered], dtype="Float64")
    runs = [Path(row.folder).relative_to(folder).as_posix() for row in ordered]
    found["run"] = pd.Series(runs, dtype="string")
    found["overrides"] = pd.Series([row.overrides for row in ordered], dtype="string")
    return pd.DataFrame(found)


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Write both files, each at once or not at all."""
    write_whole(folder / CSV, table.to_csv(index=False).encode())
    held = io.BytesIO()
    table.to_parquet(held, index=False)
    write_whole(folder / PARQUET, held.getvalue())


def typed_column(values: Sequence[str | None]) -> pd.Series:
    """Values of a key as what they say: whole numbers, numbers, true and false, else text.

    `null` is a missing value.
    """
    plain = [None if one in (None, "null") else str(one) for one in values]
    known = [one for one in plain if one is not None]
    if known and all(one.lower() in _WORDS for one in known):
        return pd.Series([None if x is None else _WORDS[x.lower()] for x in plain], dtype="boolean")
    for kind, dtype in ((int, "Int64"), (float, "Float64")):
        try:
            return pd.Series([None if one is None else kind(one) for one in plain], dtype=dtype)
        except ValueError:
            continue
    return pd.Series(plain, dtype="string")


def figure_column(values: Sequence[Figure]) -> pd.Series:
    """Whole numbers where all are; what could not be computed is missing."""
    whole = all(one is None or isinstance(one, int) for one in values)
    return pd.Series(list(values), dtype="Int64" if whole else "Float64")


def _shown(row: Row, *, chosen: bool) -> Mapping[str, Figure]:
    hidden = _LEFT_OUT if chosen else (*_LEFT_OUT, *_TEST)
    return {name: value for name, value in row.metrics.items() if not name.startswith(hidden)}


def _metric_names(shown: Sequence[Mapping[str, Figure]]) -> list[str]:
    """val/skill, the rest of val, train, the run's own figures, test."""
    every = dict.fromkeys(name for one in shown for name in one)
    first = (FIGURE, "val/", "members/val/", "train/")

    def place(name: str) -> int:
        if name.startswith(_TEST):
            return len(first) + 1
        found = [number for number, start in enumerate(first) if name.startswith(start)]
        return found[0] if found else len(first)

    return sorted(every, key=place)
