import datetime

import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import SchemaError, SourceError
from robust_fin.market.columns import match_headers, to_codes, to_numbers, to_utc

PLAIN = ["time", "open", "high", "low", "close", "volume"]


def headers(*names: str) -> dict[str, str]:
    return match_headers(names, origin="es.csv")


def utc(*stamps: object, timezone: str | None = None, time_format: str | None = None) -> list[str]:
    found = to_utc(pd.Series(stamps), timezone=timezone, time_format=time_format, origin="es.csv")
    assert found.dtype == pd.DatetimeTZDtype("ns", "UTC")
    return found.dt.strftime("%Y-%m-%d %H:%M:%S").tolist()


@pytest.mark.parametrize("stamp", ["date", "datetime", "timestamp", "time", "Date Time", "TS"])
def test_a_stamp_goes_by_many_names(stamp: str) -> None:
    assert headers(stamp, *PLAIN[1:])["time"] == stamp


def test_headers_match_without_case_and_spaces() -> None:
    found = headers("Timestamp", "OPEN", " High", "low ", "Last", "Vol", "Symbol", "Session", "VIX")
    assert found == {
        "time": "Timestamp",
        "open": "OPEN",
        "high": " High",
        "low": "low ",
        "close": "Last",
        "volume": "Vol",
        "contract": "Symbol",
        "session": "Session",
        "vix": "VIX",
    }


def test_single_letters_are_understood_and_other_columns_left_out() -> None:
    found = headers("ts", "o", "h", "l", "c", "v", "vwap", "trades", "trades")
    assert list(found.values()) == ["ts", "o", "h", "l", "c", "v"]


def test_a_date_beside_a_time_is_the_other_half_of_the_stamp() -> None:
    found = headers("Date", "Time", *PLAIN[1:])
    assert (found["date"], found["time"]) == ("Date", "Time")


def test_missing_columns_are_named_with_their_aliases() -> None:
    with pytest.raises(SchemaError) as caught:
        headers("time", "open", "high", "low", "price")
    message = str(caught.value)
    assert "es.csv has no column for close, volume" in message
    assert "its columns are ['time', 'open', 'high', 'low', 'price']" in message
    assert "close: close, c, last; volume: volume, vol, v" in message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Close", "close"], "['Close', 'close'] all mean close"),
        (["close", "close"], "['close', 'close'] all mean close"),
        (["close", "last"], "['close', 'last'] all mean close"),
        (["close", "timestamp"], "['time', 'timestamp'] all mean time"),
        (["close", "contract", "Symbol"], "['contract', 'Symbol'] all mean contract"),
    ],
)
def test_two_columns_must_not_mean_the_same(names: list[str], words: str) -> None:
    with pytest.raises(SchemaError) as caught:
        headers("time", "open", "high", "low", "volume", *names)
    assert f"es.csv: the columns {words}; keep one of them" in str(caught.value)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64", "Int64"])
def test_numbers_become_float64(dtype: str) -> None:
    found = to_numbers(pd.Series([1, 2, 3], dtype=dtype), origin="es.csv")
    assert found.dtype == np.float64
    assert found.tolist() == [1.0, 2.0, 3.0]


def test_float32_prices_on_the_tick_are_exact() -> None:
    found = to_numbers(pd.Series([4685.25, 6100.75], dtype="float32"), origin="es.csv")
    assert found.tolist() == [4685.25, 6100.75]


def test_text_of_numbers_is_read_and_an_empty_cell_is_nan() -> None:
    text = pd.Series([" 1.5", "", None, "nan", "NULL", "2e3", "inf"])
    expected = [1.5, np.nan, np.nan, np.nan, np.nan, 2000.0, np.inf]
    np.testing.assert_array_equal(to_numbers(text, origin="es.csv"), expected)


def test_a_text_that_is_no_number_is_refused_with_its_row() -> None:
    prices = pd.Series(["1.5", "n.a.", "", "1,5"], name="close")
    with pytest.raises(SchemaError) as caught:
        to_numbers(prices, origin="es.csv")
    message = str(caught.value)
    assert "es.csv: close must be a number. First at row 1" in message
    assert "close='n.a.'" in message
    assert "2 of 4 rows" in message


def test_truth_values_are_no_numbers() -> None:
    with pytest.raises(SchemaError, match=r"open must be a number.*2 of 2 rows"):
        to_numbers(pd.Series([True, False], name="open"), origin="es.csv")


def test_codes_are_text_whatever_the_file_holds() -> None:
    assert to_codes(pd.Series(["b", "a", "b"])).tolist() == ["b", "a", "b"]
    assert to_codes(pd.Series([202403, 202406])).tolist() == ["202403", "202406"]
    assert to_codes(pd.Series(["b", "a"], dtype="category")).cat.categories.tolist() == ["a", "b"]


@pytest.mark.parametrize("dtype", ["str", "category"])
def test_an_empty_code_is_missing(dtype: str) -> None:
    found = to_codes(pd.Series(["a", "", None, "a"], dtype=dtype))
    assert found.isna().tolist() == [False, True, True, False]
    assert found.cat.categories.tolist() == ["a"]


@pytest.mark.parametrize(
    "stamp",
    [
        "2024-03-08 14:31:00+00:00",
        "2024-03-08T14:31:00Z",
        "2024-03-08 08:31:00-06:00",
        "2024-03-08 08:31:00-0600",
        "2024-03-08 08:31-06",
        "2024-03-08 08:31:00 -06:00",
        "20240308T143100Z",
        "2024-03-08 14:31:00.000Z",
    ],
)
def test_a_stamp_with_a_zone_needs_no_setting(stamp: str) -> None:
    assert utc(stamp) == ["2024-03-08 14:31:00"]
    assert utc(stamp, timezone="Asia/Tokyo") == ["2024-03-08 14:31:00"]


def test_stamps_in_different_zones_are_one_line_of_time() -> None:
    # clocks in Chicago go forward at 2024-03-10 08:00 UTC
    found = utc("2024-03-10 01:59:00-06:00", "2024-03-10 03:00:00-05:00", "2024-03-10 08:01:00Z")
    assert found == ["2024-03-10 07:59:00", "2024-03-10 08:00:00", "2024-03-10 08:01:00"]


@pytest.mark.parametrize(
    ("timezone", "expected"),
    [("UTC", "2024-03-08 14:31:00"), ("America/Chicago", "2024-03-08 20:31:00")],
)
def test_a_naive_stamp_is_placed_in_the_zone_given(timezone: str, expected: str) -> None:
    assert utc("2024-03-08 14:31:00", timezone=timezone) == [expected]
    assert utc(pd.Timestamp("2024-03-08 14:31:00"), timezone=timezone) == [expected]


def test_summer_time_shifts_naive_local_stamps() -> None:
    found = utc("2024-03-08 17:00", "2024-03-11 17:00", timezone="America/Chicago")
    assert found == ["2024-03-08 23:00:00", "2024-03-11 22:00:00"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/Chicago"])
def test_datetimes_of_any_unit_become_utc_nanoseconds(unit: str, zone: str | None) -> None:
    stamp = pd.Series(pd.DatetimeIndex(["2024-03-08 14:31:00"], tz="UTC")).dt.as_unit(unit)
    stamp = stamp.dt.tz_localize(None) if zone is None else stamp.dt.tz_convert(zone)
    found = to_utc(stamp, timezone="UTC", time_format=None, origin="es.parquet")
    assert found.dtype == pd.DatetimeTZDtype("ns", "UTC")
    assert found.iloc[0] == pd.Timestamp("2024-03-08 14:31", tz="UTC")


@pytest.mark.parametrize("stamp", ["2024-03-08 14:31:00", pd.Timestamp("2024-03-08 14:31:00")])
def test_naive_stamps_without_a_zone_name_the_override(stamp: object) -> None:
    with pytest.raises(SourceError) as caught:
        utc(stamp)
    message = str(caught.value)
    assert "es.csv: the stamps carry no zone (first: 2024-03-08 14:31:00)" in message
    assert "source.timezone=UTC" in message


@pytest.mark.parametrize(
    ("stamp", "time_format"),
    [
        ("03/08/2024 14:31", "%m/%d/%Y %H:%M"),
        ("08.03.2024 14:31:00", "%d.%m.%Y %H:%M:%S"),
        ("14:31 08-03-2024", "%H:%M %d-%m-%Y"),  # ends like a zone, -2024, and has none
        ("20240308 143100", "%Y%m%d %H%M%S"),
    ],
)
def test_a_format_says_how_stamps_are_written(stamp: str, time_format: str) -> None:
    assert utc(stamp, timezone="UTC", time_format=time_format) == ["2024-03-08 14:31:00"]
    assert utc(stamp, timezone="America/Chicago", time_format=time_format) == [
        "2024-03-08 20:31:00"
    ]
    with pytest.raises(SourceError, match=r"carry no zone.*source\.timezone=UTC"):
        utc(stamp, time_format=time_format)


def test_a_format_may_hold_the_zone() -> None:
    found = utc("03/08/2024 08:31 -0600", "03/11/2024 09:31 -0500", time_format="%m/%d/%Y %H:%M %z")
    assert found == ["2024-03-08 14:31:00", "2024-03-11 14:31:00"]


def test_stamps_that_cannot_be_read_are_counted_and_shown() -> None:
    with pytest.raises(SourceError) as caught:
        utc("2024-03-08 14:31", "03/08/2024 14:32", None, timezone="UTC")
    message = str(caught.value)
    assert (
        "es.csv: row 1 has the time '03/08/2024 14:32', which cannot be read as ISO8601" in message
    )
    assert "2 of 3 rows" in message
    assert "source.time_format=" in message


def test_a_format_that_does_not_fit_is_named() -> None:
    with pytest.raises(SourceError, match=r"row 0 .* cannot be read as %d/%m/%Y; 1 of 1 rows"):
        utc("03/28/2024", timezone="UTC", time_format="%d/%m/%Y")


def test_a_format_that_is_no_pattern_is_named() -> None:
    with pytest.raises(SourceError, match=r"source\.time_format='%Q' is no pattern"):
        utc("2024", timezone="UTC", time_format="%Q")


def test_some_stamps_with_and_some_without_zone_are_refused() -> None:
    with pytest.raises(SourceError) as caught:
        utc("2024-03-08 14:31Z", None, "2024-03-08 14:32", "2024-03-08 14:33", timezone="UTC")
    message = str(caught.value)
    assert "some stamps carry a zone and 2 do not, the first at row 2" in message
    assert "'2024-03-08 14:32'" in message


def test_a_daily_date_is_not_taken_for_a_zone() -> None:
    assert utc("2024-03-08", timezone="UTC") == ["2024-03-08 00:00:00"]
    assert utc(datetime.date(2024, 3, 8), timezone="UTC") == ["2024-03-08 00:00:00"]


def test_numbers_are_no_stamps() -> None:
    with pytest.raises(SourceError, match=r"holds numbers \(first: 1709908260\); write stamps"):
        utc(1709908260, timezone="UTC")


@pytest.mark.parametrize(
    ("stamp", "why"),
    [("2024-11-03 01:30", "ambiguous"), ("2024-03-10 02:30", "2024-03-10 02:30:00")],
)
def test_local_stamps_at_a_clock_change_are_refused(stamp: str, why: str) -> None:
    with pytest.raises(SourceError) as caught:
        utc("2024-03-01 12:00", stamp, timezone="America/Chicago")
    message = str(caught.value)
    assert "es.csv: a stamp cannot be placed in America/Chicago" in message
    assert why in message
    assert "write them in UTC" in message


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(SourceError, match=r"source\.timezone=Chicago is no zone"):
        utc("2024-03-08 14:31", timezone="Chicago")
