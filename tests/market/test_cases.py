"""The files of ../shared/cases: each loads, or stops and names the option that it needs."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robust_fin.errors import RobustFinError
from tests.market.test_sources import load

US = "America/New_York"
# file -> options to type, one after the other; rows, first time, close and volume once it loads
USUAL = (60, "2024-03-03 23:00", 5000.0, 325.0)
CASES: dict[str, tuple[list[dict[str, Any]], tuple[int, str, float, float]]] = {
    **dict.fromkeys(
        (
            "@ES#C.csv",
            "ES=F.csv",
            "ES_Müller.csv",
            "databento_pretty.csv",
            "epoch_ms.csv",
            "epoch_ms_int64.parquet",
            "hive_folder",
            "index_without_a_name.parquet",
            "klines.csv",
            "klines_no_header.csv",
            "semicolon_decimal_comma.csv",
            "semicolon_plain.csv",
            "thousands_quoted.csv",
            "trading_date_beside_full_time.csv",
            "tradingview_epoch_s.csv",
            "utf16_with_commas.csv",
            "yfinance_three_header_lines.csv",
        ),
        ([], USUAL),
    ),
    "metatrader5_utf16_tabs.csv": ([{"timezone": "UTC"}], (60, "2024-03-03 23:00", 5000.0, 0.0)),
    "no_header_comma.csv": ([{"timezone": US}], USUAL),
    "newest_first.csv": (
        [{"time_format": "%m/%d/%Y %H:%M"}, {"timezone": "America/Chicago"}],
        USUAL,
    ),
    "line_above_header_newest_first.csv": (
        [{"columns": {"volume": "Volume BTC"}}],
        (60, "2024-03-03 23:00", 5000.0, 1.0),
    ),
    "column_instrument_am_pm.csv": (
        [{"time_format": "%m/%d/%Y %I:%M:%S %p"}, {"timezone": US}, {"product": "AAPL"}],
        USUAL,
    ),
    "bars_5min.csv.gz": ([{"bar": "5min"}], (3312, "2024-03-03 23:00", 4499.5, 469.0)),
    "frame_with_symbol_5min.parquet": (
        [{"bar": "5min"}],
        (3312, "2024-03-03 23:00", 4999.75, 57.0),
    ),
    "noise_with_a_test_date_of_one_row_5min.csv.gz": (
        [{"bar": "5min"}],
        (2760, "2024-03-03 23:00", 5000.0, 322.0),
    ),
    "prices_in_1e-9_5min.parquet": ([{"bar": "5min"}], (1500, "2024-03-03 23:00", 4999.5, 31.0)),
    "zero_volume_fx_5min.csv.gz": ([{"bar": "5min"}], (2760, "2024-03-03 23:00", 1.08508, 0.0)),
    "three_stocks_15min.csv.gz": (
        [{"bar": "15min", "product": "AAPL"}],
        (390, "2024-03-04 14:30", 169.97, 359.0),
    ),
}
NEVER = {"negative_prices.csv": "leave out these dates, or use unadjusted prices"}
_ANY_VALUE = ("timezone",)  # the file does not tell which


@pytest.fixture
def cases() -> Path:
    root = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("ROBUST_FIN_DATA", root)).parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


def first_bar(table: pd.DataFrame) -> tuple[int, str, float, float]:
    row = table.iloc[0]
    return len(table), f"{row['time']:%Y-%m-%d %H:%M}", row["close"], row["volume"]


def check_case(path: Path) -> None:
    """Type one option after the other, as each message names it, and compare the first bar."""
    steps, expected = CASES[path.name]
    settings: dict[str, Any] = {}
    for step in steps:
        with pytest.raises(RobustFinError) as caught:
            load(path, **settings)
        for name, value in step.items():
            known = "" if name in _ANY_VALUE or name == "columns" else str(value)
            option = str(caught.value).replace("'", "")
            assert f"source.{name}={known}" in option, f"{path.name}: {caught.value}"
        settings |= step
    assert first_bar(load(path, **settings).table) == expected, path.name


def test_every_case_loads_or_stops_with_its_option(cases: Path) -> None:
    for path in sorted(cases.iterdir()):
        if path.name in NEVER:
            with pytest.raises(RobustFinError, match=NEVER[path.name]):
                load(path)
        elif path.name in CASES:
            check_case(path)
        elif path.suffix not in (".md", ".py"):  # a later case
            with contextlib.suppress(RobustFinError):
                load(path)
    missing = [name for name in (*CASES, *NEVER) if not (cases / name).exists()]
    assert missing == []
