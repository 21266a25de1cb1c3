from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.columns import write_bars
from robust_fin.market.sources import Bars
from tests.for_every import for_every
from tests.market.test_files import stream
from tests.market.test_sources import load

OHLC = ["open", "high", "low", "close"]
# two bars at 2024-03-03 23:00 and 23:01 UTC
ROWS = [[5000.0, 5000.25, 4999.5, 5000.0, 325.0], [5000.0, 5000.75, 4999.5, 5000.25, 113.0]]
COMMAS = "5000,00;5000,25;4999,50;5000,00;325", "5000,00;5000,75;4999,50;5000,25;113"
POINTS = "5000.00,5000.25,4999.50,5000.00,325", "5000.00,5000.75,4999.50,5000.25,113"
NANOS = "5000000000000,5000250000000,4999500000000,5000000000000,325"
NANOS_2 = "5000000000000,5000750000000,4999500000000,5000250000000,113"
HEADER = "time,open,high,low,close,volume"
KLINE = "1.0,7,0.1,9.0,0"
UTC = {"timezone": "UTC"}

LAYOUTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "Databento": (
        [
            "ts_event,rtype,publisher_id,instrument_id,open,high,low,close,volume,symbol",
            f"1709506800000000000,33,1,4916,{NANOS},ESH4",
            f"1709506860000000000,33,1,4916,{NANOS_2},ESH4",
            "1709506860000000000,33,1,4917,-50000000,-50000000,-50000000,-50000000,3,ESH4-ESM4",
        ],
        {},
    ),
    "Binance in milliseconds": (
        [
            f"1709506800000,{POINTS[0]},1709506859999,{KLINE}",
            f"1709506860000,{POINTS[1]},1709506919999,{KLINE}",
        ],
        {},
    ),
    "Binance in microseconds": (
        [
            f"1709506800000000,{POINTS[0]},1709506859999999,{KLINE}",
            f"1709506860000000,{POINTS[1]},1709506919999999,{KLINE}",
        ],
        {},
    ),
    "NinjaTrader": (
        [
            "20240303 230000;5000;5000.25;4999.5;5000;325",
            "20240303 230100;5000;5000.75;4999.5;5000.25;113",
        ],
        UTC,
    ),
    "HistData": (
        [
            "20240303 180000;5000.00;5000.25;4999.50;5000.00;325",
            "20240303 180100;5000.00;5000.75;4999.50;5000.25;113",
        ],
        {"timezone": "Etc/GMT+5"},
    ),
    "FirstRate": (
        [f"2024-03-03 18:00:00,{POINTS[0]}", f"2024-03-03 18:01:00,{POINTS[1]}"],
        {"timezone": "America/New_York"},
    ),
    "Sierra Chart": (
        [
            "Date, Time, Open, High, Low, Last, Volume, # of Trades",
            "2024/3/3, 23:00:00.000000, 5000.00, 5000.25, 4999.50, 5000.00, 325, 7",
            "2024/3/3, 23:01:00.000000, 5000.00, 5000.75, 4999.50, 5000.25, 113, 7",
        ],
        UTC,
    ),
    "TradingView": ([HEADER, f"1709506800,{POINTS[0]}", f"1709506860,{POINTS[1]}"], {}),
    "Interactive Brokers": (
        [
            "date,open,high,low,close,volume,average,barCount",
            f"20240303 17:00:00 US/Central,{POINTS[0]},1,1",
            f"20240303 17:01:00 US/Central,{POINTS[1]},1,1",
        ],
        {},
    ),
    "Yahoo": (
        [
            "Price,Close,High,Low,Open,Volume",
            "Ticker,ES=F,ES=F,ES=F,ES=F,ES=F",
            "Datetime,,,,,",
            "2024-03-03 23:00:00+00:00,5000.0,5000.25,4999.5,5000.0,325",
            "2024-03-03 23:01:00+00:00,5000.25,5000.75,4999.5,5000.0,113",
        ],
        {},
    ),
    "MetaTrader": (
        [
            "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<VOL>",
            "2024.03.03\t23:00:00\t" + POINTS[0].replace(",", "\t"),
            "2024.03.03\t23:01:00\t" + POINTS[1].replace(",", "\t"),
        ],
        UTC,
    ),
    "Dukascopy": (
        [
            "Gmt time,Open,High,Low,Close,Volume",
            f"03.03.2024 23:00:00.000,{POINTS[0]}",
            f"03.03.2024 23:01:00.000,{POINTS[1]}",
        ],
        {"time_format": "%d.%m.%Y %H:%M:%S.%f"},
    ),
    "decimal commas": (
        [
            "time;open;high;low;close;volume",
            f"2024-03-03 23:00Z;{COMMAS[0]}",
            f"2024-03-03 23:01Z;{COMMAS[1]}",
        ],
        {},
    ),
    "thousands marks": (
        [
            HEADER,
            '2024-03-03 23:00Z,"5,000.00","5,000.25","4,999.50","5,000.00",325',
            '2024-03-03 23:01Z,"5,000.00","5,000.75","4,999.50","5,000.25",113',
        ],
        {},
    ),
    "newest first, lines above and below": (
        [
            "Minute bars",
            "",
            HEADER,
            f"2024-03-03 23:01Z,{POINTS[1]}",
            f"2024-03-03 23:00Z,{POINTS[0]}",
            "Downloaded from Example as of 03-04-2024",
        ],
        {},
    ),
    "an exact repeat and a repeated header": (
        [
            HEADER,
            f"2024-03-03 23:00Z,{POINTS[0]}",
            HEADER,
            f"2024-03-03 23:00Z,{POINTS[0]}",
            f"2024-03-03 23:01Z,{POINTS[1]}",
        ],
        {},
    ),
    "zone abbreviations": (
        [HEADER, f"2024-03-03 18:00 EST,{POINTS[0]}", f"2024-03-03 18:01 EST,{POINTS[1]}"],
        {},
    ),
    "the day in the second place": (
        [HEADER, f"3/3/2024 6:00 PM,{POINTS[0]}", f"3/3/2024 6:01 PM,{POINTS[1]}"],
        {"timezone": "America/New_York", "time_format": "%m/%d/%Y %I:%M %p"},
    ),
    "a trading date beside the stamp": (
        [
            "date,time,open,high,low,close,volume",
            f"2024-03-04,2024-03-03 23:00:00+00:00,{POINTS[0]}",
            f"2024-03-04,2024-03-03 23:01:00+00:00,{POINTS[1]}",
        ],
        {},
    ),
}


def write_lines(folder: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path = folder / "bars.csv"
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def check_rows(table: pd.DataFrame) -> None:
    assert table[[*OHLC, "volume"]].to_numpy().tolist() == ROWS
    assert table["time"].astype(str).tolist() == [
        "2024-03-03 23:00:00+00:00",
        "2024-03-03 23:01:00+00:00",
    ]


@for_every("name", list(LAYOUTS))
def test_common_layouts_are_read_as_the_same_bars(name: str, tmp_path: Path) -> None:
    lines, settings = LAYOUTS[name]
    path = write_lines(tmp_path, lines)
    bars = load(path, calendar="24/7", **settings)
    check_rows(bars.table)
    assert sum(bars.dropped.values()) + len(bars.table) == bars.rows_in
    blocks = stream(path, tmp_path / "blocks", 1, calendar="24/7", **settings)
    check_rows(pd.concat(list(blocks), ignore_index=True))
    assert blocks.bars.layout == bars.layout
    assert blocks.bars.findings == bars.findings
    assert blocks.summary() == bars.summary()
    assert (blocks.bars.dropped, blocks.reports()) == (bars.dropped, bars.reports)


def one(tmp_path: Path, name: str) -> Bars:
    lines, settings = LAYOUTS[name]
    return load(write_lines(tmp_path, lines), calendar="24/7", **settings)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_encodings_are_found(tmp_path: Path, encoding: str) -> None:
    lines, settings = LAYOUTS["MetaTrader"]
    bars = load(write_lines(tmp_path, lines, encoding), calendar="24/7", **settings)
    check_rows(bars.table)
    assert bars.layout.delimiter == "\t"


def test_the_layout_says_what_was_found(tmp_path: Path) -> None:
    databento = one(tmp_path, "Databento")
    assert databento.dropped == {"bars of calendar spreads": 1}
    assert databento.layout.price_scale == "1e-9"
    assert databento.layout.stamp_form == "epoch ns"
    newest = one(tmp_path, "newest first, lines above and below").layout
    assert (newest.newest_first, newest.skipped_lines) == (True, 2)
    assert ("row order", "newest first; reversed", "") in newest.rows()
    repeats = one(tmp_path, "an exact repeat and a repeated header")
    assert repeats.dropped == {"exact repeats of a row": 1}
    assert repeats.layout.dropped == {"repeats of the header": 1, "exact repeats of a row": 1}
    yahoo = one(tmp_path, "Yahoo")
    assert yahoo.table["contract"].tolist() == ["ES=F", "ES=F"]
    assert yahoo.layout.header_lines == 3


def test_prices_in_32nds(tmp_path: Path) -> None:
    row = "2024-03-03 23:00Z,109'165,109'17,109'16,109'167,1200"
    bars = load(write_lines(tmp_path, [HEADER, row]), calendar="24/7")
    assert bars.table[OHLC].to_numpy().tolist() == [[109.515625, 109.53125, 109.5, 109.5234375]]
    assert bars.layout.price_scale == "32nds"


def test_ambiguous_numbers_name_the_setting(tmp_path: Path) -> None:
    row = '2024-03-03 23:00Z,"1,085","1,086","1,084","1,085",3'
    path = write_lines(tmp_path, [HEADER, row])
    with pytest.raises(SchemaError, match=r"set source\.decimal=comma or source\.decimal=point"):
        load(path)
    closes = [load(path, decimal=mark).table["close"].item() for mark in ("comma", "point")]
    assert closes == [1.085, 1085.0]


def test_ambiguous_dates_name_both_patterns(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [HEADER, f"03/04/2024 15:01,{POINTS[0]}"])
    with pytest.raises(SchemaError) as caught:
        load(path)
    assert "Set source.time_format='%m/%d/%Y %H:%M' or source.time_format='%d/%m/%Y %H:%M'" in str(
        caught.value
    )
    later = write_lines(tmp_path, [HEADER, f"03/14/2024 15:01,{POINTS[0]}"])
    assert load(later, timezone="UTC").table["time"].dt.day.item() == 14


def test_source_columns_renames_and_adds_columns(tmp_path: Path) -> None:
    rows = ["time,open,high,low,price,volume,taker", f"2024-03-03 23:00Z,{POINTS[0]},8.5"]
    path = write_lines(tmp_path, rows)
    table = load(path, columns={"close": "price", "my_flow": "taker"}).table
    assert table[["close", "my_flow"]].to_numpy().tolist() == [[5000.0, 8.5]]
    with pytest.raises(ConfigError, match=r"my_flow: gone\}: bars\.csv has 0 such columns"):
        load(path, columns={"close": "price", "my_flow": "gone"})


def test_a_bar_length_needs_a_unit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no unit; write source\.bar=5min or source\.bar=5s"):
        load(tmp_path / "es.csv", bar="5")


@pytest.mark.parametrize("twice", ["%Y-%m-%d %Y-%m-%d %H:%M:%S%z", "%H:%M %H"])
def test_a_pattern_with_a_repeated_directive_raises(tmp_path: Path, twice: str) -> None:
    path = write_lines(tmp_path, [HEADER, f"2024-03-03 23:00Z,{POINTS[0]}"])
    with pytest.raises(ConfigError, match="more than once"):
        load(path, time_format=twice)


@pytest.mark.parametrize("form", ["plain", "datetime", "title", "index", "unnamed index", "symbol"])
def test_frames_take_the_names_of_files(tmp_path: Path, form: str) -> None:
    lines = [HEADER, f"2024-03-03 23:00Z,{POINTS[0]}", f"2024-03-03 23:01Z,{POINTS[1]}"]
    frame = load(write_lines(tmp_path, lines)).table[["time", *OHLC, "volume"]]
    forms = {
        "plain": frame,
        "datetime": frame.rename(columns={"time": "datetime"}),
        "title": frame.rename(columns=str.title),
        "index": frame.set_index("time"),
        "unnamed index": frame.set_index("time").rename_axis(index=None),
        "symbol": frame.assign(symbol="ESH24"),
    }
    path = tmp_path / "bars.parquet"
    write_bars(forms[form], path, length="1min")
    table = load(path).table
    check_rows(table)
    assert set(table["contract"]) == {"ESH24" if form == "symbol" else "ONE"}


def test_a_stamp_off_the_grid_is_named(tmp_path: Path) -> None:
    times = pd.date_range("2024-03-03 23:00", periods=50, freq="5min", tz="UTC").to_series()
    frame = pd.DataFrame({"time": times.to_numpy(), **dict.fromkeys(OHLC, 5.0), "volume": 1.0})
    frame.loc[10, "time"] += pd.Timedelta("1s")
    with pytest.raises(SchemaError, match=r"1 of 50 stamps are off the grid .* row 10 at 2024-03"):
        write_bars(frame, tmp_path / "bars.parquet", length="5min")


def test_a_folder_of_parts_is_read_with_its_keys(tmp_path: Path) -> None:
    lines = [HEADER, f"2024-03-03 23:00Z,{POINTS[0]}", f"2024-03-03 23:01Z,{POINTS[1]}"]
    frame = load(write_lines(tmp_path, lines)).table[["time", *OHLC, "volume"]]
    for place, code in enumerate(("ESH24", "ESM24")):
        part = tmp_path / "parts" / f"contract={code}" / "part-0.parquet"
        part.parent.mkdir(parents=True)
        frame.iloc[place : place + 1].to_parquet(part, index=False)
    bars = load(tmp_path / "parts")
    check_rows(bars.table)
    assert bars.table["contract"].tolist() == ["ESH24", "ESM24"]
