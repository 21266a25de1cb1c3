import datetime
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from robust_fin.errors import ConfigError, SchemaError, SourceError
from robust_fin.market.schema import check_bars
from robust_fin.market.sources import Bars, BarSource

MakeBars = Callable[..., pd.DataFrame]
RealData = Callable[[str], Path]
PRICES = ["open", "high", "low", "close"]
VALUES = ["time", *PRICES, "volume", "contract"]
SETTINGS = {
    "synthetic": partial(pytest.fail, "a path is set, so no synthetic bars are wanted"),
    "path": None,
    "timezone": None,
    "time_format": None,
    "decimal": None,
    "columns": None,
    "stamp": "start",
    "bar": "1min",
    "fraction": 1.0,
    "vix_path": None,
    "calendar": "CME_Equity",
    "calendar_overrides": None,
    "block_rows": None,
    "spikes": None,
    "product": None,
    "accept": (),
    "root": None,
    "tick": None,
}


def source(path: Path | None = None, **settings: Any) -> BarSource:
    return BarSource(**(SETTINGS | {"path": path and str(path)} | settings))


def load(path: Path, **settings: Any) -> Bars:
    return source(path, **settings).load()


def write(table: pd.DataFrame, path: Path) -> Path:
    """Write with pyarrow, the kind and the compression by the endings."""
    content = pa.Table.from_pandas(table, preserve_index=False)
    packed = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.output_stream(str(path), compression=packed) as stream:
        if ".csv" in path.suffixes:
            pyarrow.csv.write_csv(content, stream)
        else:
            pyarrow.parquet.write_table(content, stream)
    return path


def text_file(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def overlapping(make_bars: MakeBars) -> pd.DataFrame:
    """ESZ4 from 15:00 and ESH5, five points dearer, from 15:04; six minutes in both."""
    old = make_bars(rows=10, start="2024-12-10 15:00", contract="ESZ4")
    new = make_bars(rows=10, start="2024-12-10 15:04", contract="ESH5", seed=1)
    return pd.concat([old, new.assign(**{name: new[name] + 5 for name in PRICES})])


# kinds of file


@pytest.mark.parametrize(
    "name",
    [
        "es.csv",
        "es.csv.gz",
        "es.csv.zst",
        "es.CSV",
        "es.parquet",
        "es.pq",
        "es.parquet.gz",
        "es.2024.parquet.zst",
    ],
)
def test_every_kind_of_file_gives_the_same_bars(
    make_bars: MakeBars, tmp_path: Path, name: str
) -> None:
    made = make_bars(rows=50)
    path = tmp_path / name
    path = (
        write(made, path) if path.suffix != ".CSV" else write(made, tmp_path / "a.csv").rename(path)
    )
    bars = load(path)
    pd.testing.assert_frame_equal(
        bars.table[VALUES].astype({"contract": "str"}), made, check_exact=True
    )
    assert bars.table["time"].dtype == pd.DatetimeTZDtype("ns", "UTC")
    assert (bars.rows_in, bars.dropped, bars.origin) == (50, {}, name)
    assert bars.bar == pd.Timedelta(minutes=1)


def test_the_loaded_table_passes_its_own_checks(make_bars: MakeBars, tmp_path: Path) -> None:
    table = load(write(make_bars(), tmp_path / "es.csv")).table
    check_bars(table, origin="loaded")
    assert table.dtypes.astype(str).to_dict() == {
        "time": "datetime64[ns, UTC]",
        **dict.fromkeys([*PRICES, "volume"], "float64"),
        "contract": "category",
        "session": "category",
        "trading_date": "datetime64[s]",
        "trading_day": "int32",
    }


def test_narrow_parquet_types_are_widened(make_bars: MakeBars, tmp_path: Path) -> None:
    made = make_bars(rows=20)
    narrow = made.astype(dict.fromkeys(PRICES, "float32") | {"volume": "int32"})
    narrow["contract"] = narrow["contract"].astype("category")
    narrow["time"] = narrow["time"].dt.as_unit("ms")
    path = write(narrow.rename(columns={"time": "timestamp"}), tmp_path / "es.parquet")
    schema = pyarrow.parquet.read_schema(path)
    assert str(schema.field("timestamp").type) == "timestamp[ms, tz=UTC]"
    assert [str(schema.field(name).type) for name in ("close", "volume")] == ["float", "int32"]
    wide = load(write(made, tmp_path / "wide.parquet"))
    pd.testing.assert_frame_equal(load(path).table, wide.table, check_exact=True)
    assert load(path).fingerprint() == wide.fingerprint()


def test_a_parquet_time_index_is_read_as_a_column(make_bars: MakeBars, tmp_path: Path) -> None:
    made = make_bars()
    made.set_index("time").to_parquet(tmp_path / "es.parquet")
    pd.testing.assert_series_equal(load(tmp_path / "es.parquet").table["time"], made["time"])


def test_integers_followed_by_floats_are_read_as_floats(
    make_bars: MakeBars, tmp_path: Path
) -> None:
    """A CSV longer than the 1 MB from which a reader might guess the types of its columns."""
    rows = 30_000
    made = make_bars(rows=rows)
    flat = made.assign(**dict.fromkeys(PRICES, 5000.0), vix=np.nan)
    flat.loc[rows - 1, [*PRICES, "volume", "vix"]] = [5000.25] * 4 + [1.5, 20.5]
    path = tmp_path / "es.csv"
    flat.astype({"volume": "object"}).to_csv(path, index=False, float_format="%g")
    assert path.stat().st_size > 1_500_000
    table = load(path, calendar="24/7").table
    assert table.loc[rows - 1, [*PRICES, "volume", "vix"]].tolist() == [5000.25] * 4 + [1.5, 20.5]
    assert table["vix"].isna().sum() == rows - 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("es.txt", "has the extension .txt; use .csv or .parquet"),
        ("es.xlsx", "has the extension .xlsx; use"),
        ("es.gz", "has the extension .gz; use"),
        ("es", "has no extension; use"),
    ],
)
def test_other_file_extensions_raise(tmp_path: Path, name: str, words: str) -> None:
    path = text_file(tmp_path / name, "time,open,high,low,close,volume")
    with pytest.raises(SourceError) as caught:
        load(path)
    assert f"{path} {words}" in str(caught.value)


@pytest.mark.parametrize("name", ["es.parquet", "es.csv.gz", "es.csv.zst", "es.parquet.gz"])
def test_an_unreadable_file_raises(tmp_path: Path, name: str) -> None:
    path = text_file(tmp_path / name, "not what its ending says")
    with pytest.raises(SourceError, match=rf"{path} cannot be read as \.(csv|parquet): "):
        load(path)


def test_a_file_in_another_encoding_raises(tmp_path: Path) -> None:
    path = tmp_path / "es.csv"
    path.write_bytes("time,open,high,low,clôse,volume\n".encode("latin-1"))
    with pytest.raises(SourceError, match=rf"{path} cannot be read as \.csv: "):
        load(path)


def test_a_row_with_missing_cells_raises(tmp_path: Path) -> None:
    path = text_file(
        tmp_path / "es.csv", "time,open,high,low,close,volume", "2024-03-04 15:00Z,5,6,4,5"
    )
    with pytest.raises(SourceError, match=r"Expected 6 columns, got 5: 2024-03-04 15:00Z,5,6,4,5"):
        load(path)


def test_missing_and_empty_files_raise(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no file .*gone\.csv; set source\.path"):
        load(tmp_path / "gone.csv")
    with pytest.raises(SourceError, match=r"is a folder without .parquet files"):
        load(tmp_path)
    (tmp_path / "es.parquet").touch()
    with pytest.raises(SourceError, match=r"es\.parquet is empty"):
        load(tmp_path / "es.parquet")


@pytest.mark.parametrize("name", ["es.csv", "es.parquet"])
def test_a_header_without_rows_raises(make_bars: MakeBars, tmp_path: Path, name: str) -> None:
    path = write(make_bars().iloc[:0], tmp_path / name)
    with pytest.raises(SourceError, match=rf"{name} has a header but no rows"):
        load(path)


# columns and stamps


def test_the_study_file_needs_only_its_timezone(make_bars: MakeBars, tmp_path: Path) -> None:
    made = make_bars(rows=6, start="2024-03-04 14:28")
    study = made.assign(VIX=15.5, session=["ETH", "ETH", "RTH", "RTH", "RTH", "RTH"])
    study["date"] = study["time"].dt.strftime("%Y-%m-%d %H:%M:%S")
    columns = ["date", *PRICES, "volume", "VIX", "contract", "session"]
    path = write(study[columns], tmp_path / "study.csv")
    with pytest.raises(
        SourceError, match=r"no time zone \(first: 2024-03-04 14:28:00\).*timezone=UTC"
    ):
        load(path)
    bars = load(path, timezone="UTC")
    pd.testing.assert_frame_equal(bars.table[VALUES].astype({"contract": "str"}), made)
    assert bars.table["vix"].tolist() == [15.5] * 6
    assert bars.table["session"].tolist() == ["ETH", "ETH", "RTH", "RTH", "RTH", "RTH"]
    assert bars.reports["share of session labels the calendar contradicts"] == 0.0


def test_without_a_contract_column_there_is_a_single_contract(
    make_bars: MakeBars, tmp_path: Path
) -> None:
    path = write(make_bars().drop(columns="contract"), tmp_path / "es.csv")
    assert load(path).table["contract"].cat.categories.tolist() == ["ONE"]
    assert load(path).table["contract"].tolist() == ["ONE"] * 8


def test_numeric_contracts_become_text(make_bars: MakeBars, tmp_path: Path) -> None:
    made = make_bars().assign(contract=202403)
    for name in ("es.csv", "es.parquet"):
        assert load(write(made, tmp_path / name)).table["contract"].tolist() == ["202403"] * 8


@pytest.mark.parametrize("name", ["es.csv", "es.parquet"])
def test_a_row_without_contract_raises(make_bars: MakeBars, tmp_path: Path, name: str) -> None:
    made = make_bars()
    made.loc[[2, 5], "contract"] = ""
    with pytest.raises(
        SchemaError, match=r"contract must be present. First at row 2 .*2 of 8 rows"
    ):
        load(write(made, tmp_path / name))


@pytest.mark.parametrize(
    ("date", "clock", "time_format"),
    [
        ("%Y-%m-%d", "%H:%M", None),
        ("%Y-%m-%d", "%H:%M:%S", None),
        ("%m/%d/%Y", "%H:%M", "%m/%d/%Y %H:%M"),
        ("%Y%m%d", "%H%M%S", "%Y%m%d %H%M%S"),  # both look like numbers
    ],
)
def test_date_and_time_columns_are_joined(
    make_bars: MakeBars, tmp_path: Path, date: str, clock: str, time_format: str | None
) -> None:
    made = make_bars(start="2024-03-04 08:58")
    pair = made.drop(columns="time").assign(
        Date=made["time"].dt.strftime(date), Time=made["time"].dt.strftime(clock)
    )
    pair.to_csv(tmp_path / "es.csv", index=False)
    bars = load(tmp_path / "es.csv", timezone="UTC", time_format=time_format)
    pd.testing.assert_series_equal(bars.table["time"], made["time"])


def test_parquet_date_and_time_columns_are_joined(make_bars: MakeBars, tmp_path: Path) -> None:
    made = make_bars()
    pair = made.assign(date=made["time"].dt.date, time=made["time"].dt.time)
    assert isinstance(pair["date"].iloc[0], datetime.date)
    bars = load(write(pair, tmp_path / "es.parquet"), timezone="UTC")
    pd.testing.assert_series_equal(bars.table["time"], made["time"])


def test_time_format_takes_precedence_over_iso_parsing(tmp_path: Path) -> None:
    """2024-04-03 is the fourth of March where the format says so."""
    path = text_file(
        tmp_path / "es.csv",
        "time,open,high,low,close,volume",
        "2024-04-03 15:00,5,6,4,5,1",
        "2024-05-03 15:00,5,6,4,5,1",
    )
    times = load(path, timezone="UTC", time_format="%Y-%d-%m %H:%M").table["time"]
    assert times.dt.strftime("%m-%d").tolist() == ["03-04", "03-05"]
    assert load(path, timezone="UTC").table["time"].dt.strftime("%m-%d").tolist() == [
        "04-03",
        "05-03",
    ]


def test_numeric_timestamps_are_parsed_by_time_format(tmp_path: Path) -> None:
    path = text_file(
        tmp_path / "es.csv", "time,open,high,low,close,volume", "202403041500,5,6,4,5,1"
    )
    with pytest.raises(SourceError, match=r"holds numbers \(first: 202403041500\)"):
        load(path, timezone="UTC")
    times = load(path, timezone="UTC", time_format="%Y%m%d%H%M").table["time"]
    assert times.tolist() == [pd.Timestamp("2024-03-04 15:00", tz="UTC")]


def test_local_timestamps_are_converted_to_utc(make_bars: MakeBars, tmp_path: Path) -> None:
    made = make_bars(rows=3, start="2024-03-08 23:00", every="3D")  # over the clock change
    local = made["time"].dt.tz_convert("America/Chicago").dt.strftime("%Y-%m-%d %H:%M")
    assert local.tolist() == ["2024-03-08 17:00", "2024-03-11 18:00", "2024-03-14 18:00"]
    path = write(made.assign(time=local), tmp_path / "es.csv")
    times = load(path, timezone="America/Chicago").table["time"]
    pd.testing.assert_series_equal(times, made["time"])


def test_end_timestamps_are_shifted_to_the_start(make_bars: MakeBars, tmp_path: Path) -> None:
    made = make_bars()
    for bar, minutes in (("1min", 1), ("5min", 5)):
        ends = made.assign(time=made["time"] + pd.Timedelta(bar))
        path = write(ends, tmp_path / "es.csv")
        assert load(path, stamp="end", bar=bar).table["time"].tolist() == made["time"].tolist()
        assert load(path, bar=bar).table["time"].iloc[0].minute == minutes


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("stamp", "middle", r"source\.stamp=middle must be start or end"),
        ("fraction", 0.0, r"source\.fraction=0\.0 must be in \(0, 1\]"),
        ("fraction", 1.5, r"source\.fraction=1\.5"),
        ("fraction", -0.1, r"source\.fraction=-0\.1"),
        ("bar", "one", r"source\.bar=one must be a pandas offset such as 1min"),
        ("bar", "-1min", r"source\.bar=-1min must be > 0"),
    ],
)
def test_invalid_settings_raise_before_a_file_is_read(
    setting: str, value: object, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        source(Path("gone.csv"), **{setting: value})


def test_the_schema_is_checked_in_the_order_of_the_file(
    make_bars: MakeBars, tmp_path: Path
) -> None:
    made = overlapping(make_bars).reset_index(drop=True)
    made.loc[13, "high"] = 1.0
    with pytest.raises(SchemaError) as caught:
        load(write(made, tmp_path / "es.csv"))
    message = str(caught.value)
    assert "es.csv: high must not be below low. First at row 13" in message
    assert "time=2024-12-10 15:07:00+00:00" in message
    assert "contract=ESH5" in message


# order, fraction, labels


def test_overlapping_contracts_are_sorted_by_time_and_expiry(
    make_bars: MakeBars, tmp_path: Path
) -> None:
    made = overlapping(make_bars)
    table = load(write(made, tmp_path / "es.csv")).table
    assert len(table) == 20
    assert table["contract"].cat.categories.tolist() == ["ESZ4", "ESH5"]
    assert table["contract"].tolist() == ["ESZ4"] * 4 + ["ESZ4", "ESH5"] * 6 + ["ESH5"] * 4
    assert table["time"].is_monotonic_increasing
    for contract in ("ESZ4", "ESH5"):
        own = table.loc[table["contract"] == contract, "close"].tolist()
        assert own == made.loc[made["contract"] == contract, "close"].tolist()


def test_the_order_of_rows_in_the_file_does_not_matter(make_bars: MakeBars, tmp_path: Path) -> None:
    made = overlapping(make_bars)
    swapped = pd.concat([made.iloc[10:], made.iloc[:10]])
    by_time = made.sort_values("time", kind="stable")
    backwards = swapped.sort_values("time", kind="stable")
    assert not by_time["contract"].equals(backwards["contract"])
    loaded = [
        load(write(table, tmp_path / name))
        for table in (made, swapped, by_time, backwards)
        for name in ("es.csv", "es.parquet")
    ]
    for one in loaded[1:]:
        pd.testing.assert_frame_equal(one.table, loaded[0].table)
    assert len({one.fingerprint() for one in loaded}) == 1


@pytest.mark.parametrize("column", ["time", "close", "volume", "contract", "vix"])
def test_any_change_alters_the_fingerprint(
    make_bars: MakeBars, tmp_path: Path, column: str
) -> None:
    made = make_bars().assign(vix=15.0)
    changed = made.copy()
    changed.loc[7, column] = {
        "time": pd.Timestamp("2024-03-04 15:08", tz="UTC"),
        "close": made.loc[7, "low"] + 0.25 * (made.loc[7, "close"] == made.loc[7, "low"]),
        "volume": 100.0,
        "contract": "ESM24",
        "vix": 15.01,
    }[column]
    prints = [load(write(one, tmp_path / "es.csv")).fingerprint() for one in (made, changed)]
    assert prints[0] != prints[1]
    assert len(prints[0]) == 64


def test_fraction_keeps_the_first_rows_and_counts_the_rest(
    make_bars: MakeBars, tmp_path: Path
) -> None:
    made = overlapping(make_bars)
    path = write(made, tmp_path / "es.csv")
    whole = load(path)
    part = load(path, fraction=0.55)
    assert part.rows_in == whole.rows_in == 20
    assert part.dropped == {"beyond source.fraction": 9}
    assert len(part.table) + sum(part.dropped.values()) == part.rows_in
    pd.testing.assert_frame_equal(part.table[VALUES], whole.table[VALUES].iloc[:11])
    early = load(path, fraction=0.2).table["contract"]
    assert early.cat.categories.tolist() == ["ESZ4"]
    assert len(load(path, fraction=0.001).table) == 1


def test_session_labels_of_the_file_are_compared_but_not_used(
    make_bars: MakeBars, tmp_path: Path
) -> None:
    """Regular hours begin at 14:30 UTC, two bars in; the file says something else of six bars."""
    said = ["ETH", "RTH", "rth", "ETH", "", "night", " RTH", "RTH"]
    made = make_bars(start="2024-03-04 14:28").assign(session=said)
    bars = load(write(made, tmp_path / "es.csv"))
    assert bars.table["session"].tolist() == ["ETH"] * 2 + ["RTH"] * 6
    assert bars.reports["share of session labels the calendar contradicts"] == 2 / 8
    assert bars.reports["session labels that are neither RTH nor ETH"] == 2


def test_late_and_outside_bars_are_reported_and_kept(make_bars: MakeBars, tmp_path: Path) -> None:
    """The day after Thanksgiving 2023 closes at 18:00 UTC."""
    path = write(make_bars(rows=6, start="2023-11-24 17:40", every="10min"), tmp_path / "es.csv")
    bars = load(path, bar="10min")
    assert bars.reports["bars up to 30 minutes after the close"] == 3
    assert bars.reports["bars outside every session"] == 1
    assert len(bars.table) == bars.rows_in == 6


def test_trading_dates_start_at_1700_in_chicago(make_bars: MakeBars, tmp_path: Path) -> None:
    path = write(make_bars(rows=3, start="2024-03-04 21:00", every="1h"), tmp_path / "es.csv")
    table = load(path, bar="1h").table
    assert table["trading_date"].dt.day.tolist() == [4, 4, 5]  # 22:00 is a late bar, 23:00 is 17:00
    assert table["trading_day"].diff().tolist()[1:] == [0, 1]
    always = load(path, bar="1h", calendar="24/7").table
    assert always["trading_date"].dt.day.tolist() == [4, 4, 4]


# VIX


def vix_file(folder: Path) -> Path:
    """Closes around Good Friday, 29 March 2024, on which neither VIX nor ES has a session."""
    return text_file(
        folder / "vix.csv",
        "date,open,high,low,close",
        "2024-03-27,1,1,1,12",
        "2024-03-28,1,1,1,13",
        "2024-04-01,1,1,1,14",
        "2024-04-02,1,1,1,15",
    )


@pytest.mark.parametrize(
    ("chicago", "vix"),
    [
        ("2024-03-28 14:59", 12.0),  # its own day's close comes 16 minutes later
        ("2024-03-28 15:59", 12.0),  # and is not used even when it is out
        ("2024-03-31 17:00", 13.0),  # Sunday evening is Monday's date: Thursday's close
        ("2024-04-01 15:59", 13.0),
        ("2024-04-01 17:00", 14.0),  # Tuesday's date
        ("2024-04-02 09:00", 14.0),
        ("2024-04-02 17:00", 15.0),
    ],
)
def test_a_bar_gets_the_vix_of_the_date_before(
    make_bars: MakeBars, tmp_path: Path, chicago: str, vix: float
) -> None:
    start = str(pd.Timestamp(chicago, tz="America/Chicago").tz_convert("UTC").tz_localize(None))
    path = write(make_bars(rows=1, start=start), tmp_path / "es.csv")
    bars = load(path, vix_path=str(vix_file(tmp_path)))
    assert bars.table["vix"].tolist() == [vix]
    assert bars.reports["bars without a VIX close of the 10 days before"] == 0


def test_bars_beyond_the_vix_file_have_no_vix_and_are_counted(
    make_bars: MakeBars, tmp_path: Path
) -> None:
    path = write(make_bars(rows=4, start="2024-03-27 15:00", every="8D"), tmp_path / "es.csv")
    bars = load(path, vix_path=str(vix_file(tmp_path)))
    np.testing.assert_array_equal(bars.table["vix"], [np.nan, 15.0, 15.0, np.nan])
    assert bars.reports["bars without a VIX close of the 10 days before"] == 2


def test_a_vix_file_replaces_a_vix_column(make_bars: MakeBars, tmp_path: Path) -> None:
    made = make_bars(start="2024-04-02 15:00").assign(vix=99.0)
    path = write(made, tmp_path / "es.csv")
    assert load(path).table["vix"].tolist() == [99.0] * 8
    assert load(path, vix_path=str(vix_file(tmp_path))).table["vix"].tolist() == [14.0] * 8


# synthetic bars


def test_without_a_path_bars_are_synthetic(make_bars: MakeBars) -> None:
    made = make_bars(rows=30).assign(session="ETH", vix=15.0)
    bars = source(synthetic=lambda: SimpleNamespace(bars=made), fraction=0.5).load()
    assert bars.origin == "synthetic bars"
    assert (bars.rows_in, bars.dropped) == (30, {"beyond source.fraction": 15})
    assert bars.table["close"].tolist() == made["close"].tolist()[:15]
    assert bars.table["contract"].cat.categories.tolist() == ["ESH24"]


def test_synthetic_bars_are_checked_like_a_file(make_bars: MakeBars) -> None:
    broken = make_bars().assign(volume=-1.0)
    with pytest.raises(SchemaError, match=r"synthetic bars: volume must be .* 8 of 8 rows"):
        source(synthetic=lambda: SimpleNamespace(bars=broken)).load()


# real files


def test_the_twelve_contracts_load(real_data: RealData) -> None:
    bars = load(real_data("es_1m_12contracts.parquet"))
    assert bars.rows_in == len(bars.table) == 1_073_305
    assert bars.dropped == {}
    codes = [f"ES{month}{year}" for year in (22, 23, 24) for month in "HMUZ"]
    assert bars.table["contract"].cat.categories.tolist() == codes
    assert not bars.table["time"].duplicated().any()
    assert bars.reports["bars up to 30 minutes after the close"] == 75
    assert bars.reports["bars outside every session"] == 0
    # all of them in the 75 minutes from the calendar's early close to the exchange's, 12:15
    assert bars.reports["share of session labels the calendar contradicts"] == 75 / 1_073_305


def test_the_overlapping_sample_loads(real_data: RealData) -> None:
    bars = load(real_data("es_1m_sample_2013_2020.csv.gz"))
    assert bars.rows_in == len(bars.table) == 23_948
    assert bars.rows_in - bars.table["time"].nunique() == 4_849
    shared = bars.table.groupby("time")["contract"].nunique()
    assert shared.value_counts().to_dict() == {1: 14_504, 2: 4_345, 3: 246, 4: 4}
    assert len(bars.table["contract"].cat.categories) == 8
    assert not bars.table.duplicated(["time", "contract"]).any()
    expected = bars.table.assign(expiry=bars.table["contract"].cat.codes)
    assert expected.sort_values(["time", "expiry"]).index.equals(bars.table.index)


def test_real_vix_closes_reach_the_real_bars(real_data: RealData) -> None:
    bars = load(
        real_data("es_1m_sample_2013_2020.csv.gz"), vix_path=str(real_data("vix_daily.csv"))
    )
    assert bars.reports["bars without a VIX close of the 10 days before"] == 0
    closes = pd.read_csv(real_data("vix_daily.csv"), index_col="date")["close"]
    for date, seen in bars.table.groupby("trading_date")["vix"]:
        assert seen.nunique() == 1
        assert seen.iloc[0] == closes[closes.index < str(date.date())].iloc[-1]
