"""Count how often the checks of a bar file stop correct files, and files with a planted mistake.

python benchmarks/intake.py [--data ../shared/data] [--document docs/inspect.md]

Real one-minute bars of ES, NQ and GC are cut into windows of 20, 60 and 300 days. Every window is
compared with right settings, and every third one with wrong settings. The table has the number of
windows that stop at the check that names the mistake; for right settings, at any check. It takes
about one minute of CPU time.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.intake.clock import read_in_zone
from robust_fin.market.intake.findings import DIFFERS, BarFindings, Expected, examine
from robust_fin.market.schema import bar_starts

FILES = {  # name -> calendar, root and tick
    "es_1m_12contracts.parquet": ("CME_Equity", "ES", 0.25),
    "nq_1m.parquet": ("CME_Equity", "NQ", 0.25),
    "gc_1m.parquet": ("CMEGlobex_GC", "GC", 0.1),
}
WINDOWS = {20: 15, 60: 40, 300: 120}  # days -> days from the start of a window to the next
EVERY = 3  # every third window is compared with wrong settings
CHICAGO, NEW_YORK = "America/Chicago", "America/New_York"
MINUTE = pd.Timedelta("1min")
START, END = "<!-- windows: written by benchmarks/intake.py -->", "<!-- end of windows -->"

Window = tuple[pd.DataFrame, Expected]


def load(path: Path) -> Window:
    """Return the bars of a file and the settings that are right for it."""
    calendar, root, tick = FILES[path.name]
    table = pd.read_parquet(path).rename(columns={"timestamp": "time"})
    table["time"] = pd.to_datetime(table["time"], utc=True).astype("datetime64[ns, UTC]")
    table["contract"] = table["contract"].astype("category")
    named = TradingCalendar.named(calendar)
    expected = Expected(bar=MINUTE, zone=None, stamp="start", calendar=named, root=root, tick=tick)
    return table[["time", "close", "contract"]].assign(volume=1.0), expected


def windows(table: pd.DataFrame, *, days: int, step: int) -> Iterator[pd.DataFrame]:
    """Yield the bars of windows of `days` days that start `step` days apart."""
    first, last = table["time"].iloc[[0, -1]]
    for start in pd.date_range(first, last - pd.Timedelta(days=days), freq=f"{step}D"):
        edges = table["time"].searchsorted([start, start + pd.Timedelta(days=days)])
        rows = table.iloc[edges[0] : edges[1]].reset_index(drop=True)
        yield rows.assign(contract=rows["contract"].cat.remove_unused_categories())


def at(table: pd.DataFrame, start: np.ndarray) -> pd.DataFrame:
    """Return the bars with new start times, in UTC nanoseconds."""
    return table.assign(time=pd.DatetimeIndex(np.sort(start)).tz_localize("UTC"))


def read_as(zone: str, *, stamped: str) -> Callable[[Window], Window]:
    """Return a function that reads local times of the zone `stamped` as times of `zone`."""

    def read(window: Window) -> Window:
        table, expected = window
        start = bar_starts(table).view(np.int64)
        moved = read_in_zone(start, configured=stamped, zone=zone)
        return at(table, moved), replace(expected, zone=zone)

    return read


def shift_clock(window: Window) -> Window:
    """Shift the second half of a window by one hour."""
    table, expected = window
    start = bar_starts(table).view(np.int64).copy()
    start[start.size // 2 :] += 3_600_000_000_000
    return at(table, start), expected


def move(minutes: int, *, stamp: str) -> Callable[[Window], Window]:
    """Return a function that moves the times by some minutes and sets the expected stamp side."""

    def read(window: Window) -> Window:
        table, expected = window
        start = bar_starts(table).view(np.int64) + minutes * MINUTE.value
        return at(table, start), replace(expected, stamp=stamp)

    return read


def other_calendar(name: str) -> Callable[[Window], Window]:
    """Return a function that compares with another calendar."""
    calendar = TradingCalendar.named(name)
    return lambda window: (window[0], replace(window[1], calendar=calendar))


def around_the_clock(window: Window) -> Window:
    """Return a bar for every minute of the window, as of a market that never closes."""
    table, expected = window
    first, last = table["time"].iloc[[0, -1]]
    minutes = pd.date_range(first, last, freq="1min")
    rows = table.iloc[np.arange(minutes.size) * len(table) // minutes.size]
    return rows.assign(time=minutes).reset_index(drop=True), expected


# name -> (check that must stop, or None if no check may stop; change of the window and settings)
CASES: dict[str, tuple[str | None, Callable[[Window], Window]]] = {
    "right settings, times in UTC": (None, lambda window: window),
    "right settings, Chicago times": (None, read_as(CHICAGO, stamped=CHICAGO)),
    "right settings, stamps at the end": (None, move(0, stamp="end")),
    "Chicago times read as UTC": ("zone", read_as("UTC", stamped=CHICAGO)),
    "Chicago times read as New York": ("zone", read_as(NEW_YORK, stamped=CHICAGO)),
    "UTC times read as Chicago": ("zone", read_as(CHICAGO, stamped="UTC")),
    "one hour late from the middle on": ("clock", shift_clock),
    "end stamps read as start": ("stamp", move(1, stamp="start")),
    "start stamps read as end": ("stamp", move(-1, stamp="end")),
    "calendar NYSE": ("calendar", other_calendar("NYSE")),
    "a bar every minute, day and night": ("calendar", around_the_clock),
    "bar length 5min": ("bar", lambda window: (window[0], replace(window[1], bar=5 * MINUTE))),
}


def stops(findings: BarFindings) -> list[str]:
    """Return the names of the checks that stop."""
    return [row.check for row in findings.select(DIFFERS)]


def count(data: Path) -> dict[tuple[str, int], list[list[str]]]:
    """Return the checks that stop, for every case and window.

    Args:
        data: folder of the files.
    """
    found: dict[tuple[str, int], list[list[str]]] = {}
    for name in FILES:
        table, expected = load(data / name)
        for days, step in WINDOWS.items():
            for number, rows in enumerate(windows(table, days=days, step=step)):
                for case, (check, read) in CASES.items():
                    if check is None or number % EVERY == 0:
                        stopped = stops(examine(*read((rows, expected))))
                        found.setdefault((case, days), []).append(stopped)
    return found


def lines(found: dict[tuple[str, int], list[list[str]]]) -> list[str]:
    """Return the lines of the Markdown table."""
    heads = [f"windows of {days} days" for days in WINDOWS]
    text = [f"| the file and its settings | check | {' | '.join(heads)} |"]
    text.append("|---" * (2 + len(WINDOWS)) + "|")
    for case, (check, _) in CASES.items():
        cells = []
        for days in WINDOWS:
            of_case = found[case, days]
            hits = sum(bool(names) if check is None else check in names for names in of_case)
            cells.append(f"{hits} of {len(of_case)}")
        text.append(f"| {case} | {check or 'any'} | {' | '.join(cells)} |")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table to standard output or into a document; return the exit code."""
    folder = os.environ.get("ROBUST_FIN_DATA", "../shared/data")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(folder))
    parser.add_argument("--document", type=Path)
    options = parser.parse_args(argv)
    started = time.perf_counter()
    text = "\n".join(lines(count(options.data)))
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
