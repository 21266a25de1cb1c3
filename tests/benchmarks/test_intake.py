"""The checks of the intake on windows of real bars: no false stop, and each mistake stops."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from benchmarks.intake import CASES, load, stops, windows
from robust_fin.market.intake.findings import examine

RealData = Callable[[str], Path]
QUICK = (None, "zone", "clock", "stamp", "bar")  # the calendars take seconds to build


def test_windows_of_real_bars_stop_at_the_planted_mistake_only(real_data: RealData) -> None:
    table, expected = load(real_data("es_1m_12contracts.parquet"))
    for rows in islice(windows(table, days=20, step=150), 3):
        for case, (check, read) in CASES.items():
            if check in QUICK:
                found = stops(examine(*read((rows, expected))))
                assert found == ([] if check is None else [check]), f"{case}, {rows['time'][0]}"
