"""Reading bars in blocks gives the same examples as reading them at once, bit for bit."""

import dataclasses
import json
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from robust_fin.data.cache import NO_CACHE
from robust_fin.data.examples import Examples
from robust_fin.data.folds import Market
from robust_fin.data.targets import ForwardReturn
from robust_fin.errors import ConfigError, SchemaError, SourceError
from robust_fin.features.registry import FeatureSet
from robust_fin.market.sources import BarSource
from robust_fin.market.synthetic import synthetic_market
from tests.bars import config, hand_bars, instantiate
from tests.conftest import ROOT

ROWS = 13_000  # rolls after 11,000
TOP5 = ["close_change_pct", "vwap", "price_range", "price_mom_3d", "price_mom_5d"]


@cache
def default_source() -> BarSource:
    return instantiate(config("source.timezone=UTC").source)


def read(
    path: Path | None,
    block_rows: int | None,
    *,
    names: list[str] = TOP5,
    target: ForwardReturn | None = None,
    **settings: Any,
) -> Market:
    changed = {"path": path and str(path), "block_rows": block_rows} | settings
    return Market.read(
        dataclasses.replace(default_source(), **changed),
        features=FeatureSet.of(names),
        target=target or ForwardReturn(1, None),
        cache=NO_CACHE,
    )


def assert_same(a: Market, b: Market) -> None:
    assert a.bars == b.bars
    for name in Examples.__slots__:
        left, right = getattr(a.examples, name), getattr(b.examples, name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, name
            assert np.array_equal(left, right, equal_nan=True), name
        elif isinstance(left, pd.Categorical):
            assert list(left.categories) == list(right.categories)
            assert np.array_equal(left.codes, right.codes)
        else:
            assert list(left.items() if isinstance(left, dict) else [left]) == list(
                right.items() if isinstance(right, dict) else [right]
            ), name


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return synthetic_market(ROWS, seed=3, start="2022-03-02").bars


@pytest.fixture(scope="module")
def parquet(bars: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "es.parquet"
    bars.astype({"open": "float32", "volume": "int64"}).to_parquet(
        path, index=False, row_group_size=1_700
    )
    return path


@pytest.mark.parametrize("block_rows", [611, 11_000])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fraction": 0.87, "target": ForwardReturn(5, 30.0)},
        {"fraction": 0.5, "stamp": "end", "target": ForwardReturn(400, 30.0), "names": ["vix"]},
    ],
    ids=["plain", "gap", "half"],
)
def test_parquet_file_in_blocks_gives_the_same_examples(
    parquet: Path, block_rows: int, settings: Any
) -> None:
    assert_same(read(parquet, block_rows, **settings), read(parquet, None, **settings))


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet.zst"])
def test_every_file_format_in_blocks_gives_the_same_examples(
    bars: pd.DataFrame, tmp_path: Path, ending: str
) -> None:
    path, table = tmp_path / f"es.{ending}", bars.iloc[:9_000]
    if "csv" in ending:
        table.to_csv(path, index=False)
    else:
        table.to_parquet(tmp_path / "plain", index=False)
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write((tmp_path / "plain").read_bytes())
    assert_same(read(path, 1_000), read(path, None))


def test_text_times_and_separate_date_and_time_columns_in_blocks(
    bars: pd.DataFrame, tmp_path: Path
) -> None:
    table = bars.iloc[:9_000].drop(columns="session")
    written = table.assign(time=table["time"].dt.strftime("%d.%m.%Y %H:%M"))
    written.to_csv(tmp_path / "text.csv", index=False)
    settings: Any = {"time_format": "%d.%m.%Y %H:%M"}
    assert_same(
        read(tmp_path / "text.csv", 800, **settings), read(tmp_path / "text.csv", None, **settings)
    )
    date, time = table["time"].dt.strftime("%Y-%m-%d"), table["time"].dt.strftime("%H:%M:%S")
    table.assign(date=date, time=time).to_csv(tmp_path / "date_and_time.csv", index=False)
    assert_same(
        read(tmp_path / "date_and_time.csv", 800), read(tmp_path / "date_and_time.csv", None)
    )


def test_synthetic_bars_in_blocks_give_the_same_examples() -> None:
    synthetic = partial(synthetic_market, 9_000, seed=1, signal=0.1)
    assert_same(read(None, 700, synthetic=synthetic), read(None, None, synthetic=synthetic))


def overlap(seed: int) -> pd.DataFrame:
    """Create two contracts that overlap for days, and a third that starts later, with shared times.

    Within a minute, ESM24 comes before ESH24.
    """
    draw = np.random.default_rng(seed)
    minutes = pd.date_range("2024-03-04 09:00", "2024-03-15 09:40", freq="1min")
    minutes = minutes[(minutes.hour == 9) & (minutes.minute < 40) & (minutes.day_of_week < 5)]
    lines = []
    for count, stamp in enumerate(minutes):
        for code, first, last in (("ESM24", 90, 999), ("ESH24", 0, 260), ("ESU24", 300, 999)):
            if first <= count < last and draw.random() < 0.8:
                low = 5000 + draw.integers(-9, 9)
                lines.append(f"{code} {stamp:%Y-%m-%dT%H:%M} {low + 2} {low} {low + 1} 3")
    return hand_bars("\n".join(lines)).drop(columns=["trading_date", "trading_day"])


@pytest.mark.parametrize("block_rows", [pytest.param(1, marks=pytest.mark.slow), 40])
@pytest.mark.parametrize("codes", [["ESH24", "ESM24", "ESU24"], ["near", "far", "next"]])
def test_overlapping_contracts_in_blocks_give_the_same_examples(
    tmp_path: Path, block_rows: int, codes: list[str]
) -> None:
    table = overlap(block_rows)
    names = dict(zip(["ESH24", "ESM24", "ESU24"], codes, strict=True))
    table["contract"] = table["contract"].astype("str").map(names)
    table.to_parquet(tmp_path / "es.parquet", index=False)
    settings: Any = {"names": ["close_change_pct", "vwap", "price_mom_3bar", "price_mom_3d"]}
    settings["target"] = ForwardReturn(3, 10.0)
    whole = read(tmp_path / "es.parquet", None, **settings)
    assert_same(read(tmp_path / "es.parquet", block_rows, **settings), whole)
    assert np.isnan(whole.examples.outcome).sum() == sum(whole.examples.unlabelled.values())


@pytest.mark.parametrize("order", ["by contract", "newest first"])
def test_file_in_another_order_in_blocks_gives_the_same_examples(
    tmp_path: Path, order: str
) -> None:
    table = overlap(0)
    table = (
        table.sort_values(["contract", "time"], kind="stable")
        if order == "by contract"
        else table.iloc[::-1]
    )
    table.to_csv(tmp_path / "es.csv", index=False)
    settings: Any = {"names": ["price_range", "vwap"], "target": ForwardReturn(3, 10.0)}
    whole = read(tmp_path / "es.csv", None, **settings)
    assert whole.bars.rows_in == len(table)
    assert_same(read(tmp_path / "es.csv", 100, **settings), whole)


def test_accepted_bar_length_lengthens_labels_in_blocks(bars: pd.DataFrame, tmp_path: Path) -> None:
    """If five-minute bars are read as one-minute bars, labels still end with their last bar."""
    table = bars.iloc[:9_000:5].assign(
        high=bars["high"].max(), low=bars["low"].min(), contract="ESH22"
    )
    table.to_csv(tmp_path / "es.csv", index=False)
    settings: Any = {"names": ["price_range"], "accept": ("bar", "holes", "tick", "stamp")}
    whole = read(tmp_path / "es.csv", None, **settings)
    assert whole.bars.facts["bar"] == "5min"
    known = whole.examples
    ends = known.label_end[~np.isnan(known.outcome)]
    start = known.time[~np.isnan(known.outcome)]
    assert (ends - start).min() == np.timedelta64(10, "m")  # the end of the next bar
    assert_same(read(tmp_path / "es.csv", 400, **settings), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("high", 700, 1.0), r"es\.parquet: high must not .* at row 700 "),
        (("time", 600, "before"), r"times must increase within a contract. First at row 600"),
        (("time", 600, "same"), r"must not have the same time twice. First at row 600 "),
    ],
)
def test_schema_is_checked_across_blocks_and_errors_name_the_row(
    bars: pd.DataFrame, tmp_path: Path, change: tuple[str, int, Any], message: str
) -> None:
    table = bars.iloc[:900].copy()
    column, row, value = change
    if column == "time":
        value = table["time"].iloc[599 if value == "same" else 590]
    table.loc[row, column] = value
    table.to_parquet(tmp_path / "es.parquet", index=False)
    for block_rows in (None, 600):
        with pytest.raises(SchemaError, match=message):
            read(tmp_path / "es.parquet", block_rows, names=["price_range"])


def test_rows_beyond_fraction_are_checked_too(bars: pd.DataFrame, tmp_path: Path) -> None:
    table = bars.iloc[:900].copy()
    table.loc[800, "close"] = -1.0
    table.to_parquet(tmp_path / "es.parquet", index=False)
    with pytest.raises(SchemaError, match="close must be a finite number above 0"):
        read(tmp_path / "es.parquet", 100, names=["price_range"], fraction=0.2)


def test_time_zones_that_differ_between_blocks_raise(tmp_path: Path) -> None:
    lines = [f"2024-03-04 15:0{m}:00{'' if m < 3 else '+00:00'},2,3,1,2,5" for m in range(6)]
    table = pd.DataFrame([line.split(",") for line in lines])
    table.columns = ["time", "open", "high", "low", "close", "volume"]
    table.to_parquet(tmp_path / "es.parquet", index=False)
    with pytest.raises(SourceError, match="row 3 is '2024-03-04 15:03:00"):
        read(tmp_path / "es.parquet", 3, names=["price_range"])


def test_short_and_empty_files_raise_the_same_error_in_blocks(
    bars: pd.DataFrame, tmp_path: Path
) -> None:
    bars.iloc[:50].to_parquet(tmp_path / "short.parquet", index=False)
    bars.iloc[:0].to_csv(tmp_path / "empty.csv", index=False)
    for name in ("short.parquet", "empty.csv"):
        messages = []
        for block_rows in (None, 20):
            with pytest.raises(SourceError) as caught:
                read(tmp_path / name, block_rows)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("block_rows", [0, -5])
def test_block_rows_below_1_raises(block_rows: Any) -> None:
    with pytest.raises(ConfigError, match=rf"source\.block_rows={block_rows} must be an integer"):
        read(None, block_rows)


@pytest.mark.slow
def test_ten_million_rows_need_less_than_three_gigabytes(tmp_path: Path) -> None:
    def script(*words: object) -> dict[str, Any]:
        command = [sys.executable, str(ROOT / "benchmarks" / "pipeline.py"), "--work"]
        done = subprocess.run(
            [*command, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    script("make", tmp_path / "es.parquet", 10_000_000)
    measured = script("in_blocks", tmp_path / "es.parquet", tmp_path / "kept", 500_000)
    assert measured["peak_mb"] < 3_000
    assert measured["train_rows"] > 6_900_000
    assert measured["seconds"]["examples, kept"] < measured["seconds"]["examples"] / 4
