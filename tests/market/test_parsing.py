import datetime

import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.columns import match_headers
from robust_fin.market.parsing import to_codes, to_numbers, to_utc

PLAIN = ["time", "open", "high", "low", "close", "volume"]


def headers(*names: str) -> dict[str, str]:
    return match_headers(names, origin="es.csv")


@pytest.mark.parametrize("stamp", ["date", "datetime", "timestamp", "time", "Date Time", "TS"])
def test_time_column_aliases(stamp: str) -> None:
    assert headers(stamp, *PLAIN[1:])["time"] == stamp


def test_headers_match_ignoring_case_and_spaces() -> None:
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


def test_single_letter_headers_match_and_other_columns_are_ignored() -> None:
    found = headers("ts", "o", "h", "l", "c", "v", "vwap", "trades", "trades")
    assert list(found.values()) == ["ts", "o", "h", "l", "c", "v"]


def test_date_and_time_columns_are_both_matched() -> None:
    found = headers("Date", "Time", *PLAIN[1:])
    assert (found["date"], found["time"]) == ("Date", "Time")


def test_missing_columns_raise_with_their_aliases() -> None:
    with pytest.raises(SchemaError) as caught:
        headers("time", "open", "high", "low", "price")
    message = str(caught.value)
    assert "es.csv has no column for close, volume" in message
    assert "its columns are ['time', 'open', 'high', 'low', 'price']" in message
    assert "close: close, c, last; volume: volume, vol, v" in message


def test_error_lists_a_limited_number_of_columns() -> None:
    with pytest.raises(SchemaError, match=r"and 4960 more. Accepted names are") as caught:
        headers(*("x" * 1_000 for _ in range(5_000)))
    assert len(str(caught.value)) < 3_000


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
def test_two_columns_of_the_same_meaning_raise(names: list[str], words: str) -> None:
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


def test_numeric_text_is_parsed_and_empty_cells_are_nan() -> None:
    text = pd.Series([" 1.5", "", None, "nan", "NULL", "2e3", "inf"])
    expected = [1.5, np.nan, np.nan, np.nan, np.nan, 2000.0, np.inf]
    np.testing.assert_array_equal(to_numbers(text, origin="es.csv"), expected)


def test_non_numeric_text_raises_with_its_row() -> None:
    prices = pd.Series(["1.5", "n.a.", "", "1,5"], name="close")
    with pytest.raises(SchemaError) as caught:
        to_numbers(prices, origin="es.csv")
    message = str(caught.value)
    assert "es.csv: close must be a number. First at row 1" in message
    assert "close='n.a.'" in message
    assert "2 of 4 rows" in message


@pytest.mark.parametrize("text", ["5,000.25", "0x10", "1_000", "5 000", "1.5f", "5\0", "५", "1e"])
def test_unusual_number_formats_raise(text: str) -> None:
    with pytest.raises(SchemaError, match=r"close must be a number. First at row 2 .* 1 of 3 rows"):
        to_numbers(pd.Series(["1.5", "", text], name="close"), origin="es.csv")


def test_numbers_are_parsed_exactly() -> None:
    texts = [f"{n}.{n * 7919:025d}" for n in range(1, 500)]
    for more in ([], ["none"]):
        found = to_numbers(pd.Series(texts + more), origin="es.csv")[: len(texts)]
        assert found.tolist() == [float(text) for text in texts]


def test_booleans_as_numbers_raise() -> None:
    with pytest.raises(SchemaError, match=r"open must be a number.*2 of 2 rows"):
        to_numbers(pd.Series([True, False], name="open"), origin="es.csv")


def test_codes_are_converted_to_text() -> None:
    assert to_codes(pd.Series(["b", "a", "b"])).tolist() == ["b", "a", "b"]
    assert to_codes(pd.Series([202403, 202406])).tolist() == ["202403", "202406"]
    assert to_codes(pd.Series(["b", "a"], dtype="category")).cat.categories.tolist() == ["a", "b"]


@pytest.mark.parametrize("missing", ["", " ", "nan", "None", "NULL", "<NA>", "N/A"])
def test_placeholder_codes_are_missing(missing: str) -> None:
    found = to_codes(pd.Series(["b", missing, "a", f" {missing}", "NAN"]))
    assert found.isna().tolist() == [False, True, False, True, False]
    assert found.cat.categories.tolist() == ["NAN", "a", "b"]


@pytest.mark.parametrize("dtype", ["str", "category"])
def test_an_empty_code_is_missing(dtype: str) -> None:
    found = to_codes(pd.Series(["a", "", None, "a"], dtype=dtype))
    assert found.isna().tolist() == [False, True, True, False]
    assert found.cat.categories.tolist() == ["a"]


def utc(*stamps: object, timezone: str | None = None, time_format: str | None = None) -> list[str]:
    found = to_utc(pd.Series(stamps), timezone=timezone, time_format=time_format, origin="es.csv")
    assert found.dtype == pd.DatetimeTZDtype("ns", "UTC")
    return found.dt.strftime("%Y-%m-%d %H:%M:%S").tolist()


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
def test_zoned_timestamps_need_no_setting(stamp: str) -> None:
    assert utc(stamp) == ["2024-03-08 14:31:00"]
    assert utc(stamp, timezone="Asia/Tokyo") == ["2024-03-08 14:31:00"]


def test_timestamps_of_different_zones_convert_to_utc() -> None:
    # clocks in Chicago go forward at 2024-03-10 08:00 UTC
    found = utc("2024-03-10 01:59:00-06:00", "2024-03-10 03:00:00-05:00", "2024-03-10 08:01:00Z")
    assert found == ["2024-03-10 07:59:00", "2024-03-10 08:00:00", "2024-03-10 08:01:00"]


@pytest.mark.parametrize(
    ("timezone", "expected"),
    [("UTC", "2024-03-08 14:31:00"), ("America/Chicago", "2024-03-08 20:31:00")],
)
def test_naive_timestamps_use_the_timezone_setting(timezone: str, expected: str) -> None:
    assert utc("2024-03-08 14:31:00", timezone=timezone) == [expected]
    assert utc(pd.Timestamp("2024-03-08 14:31:00"), timezone=timezone) == [expected]


def test_naive_local_timestamps_follow_daylight_saving_time() -> None:
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
def test_naive_timestamps_without_timezone_setting_raise(stamp: object) -> None:
    with pytest.raises(SchemaError) as caught:
        utc(stamp)
    message = str(caught.value)
    assert "es.csv: the timestamps have no time zone (first: 2024-03-08 14:31:00)" in message
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
def test_timestamps_are_parsed_by_time_format(stamp: str, time_format: str) -> None:
    assert utc(stamp, timezone="UTC", time_format=time_format) == ["2024-03-08 14:31:00"]
    assert utc(stamp, timezone="America/Chicago", time_format=time_format) == [
        "2024-03-08 20:31:00"
    ]
    with pytest.raises(SchemaError, match=r"have no time zone.*source\.timezone=UTC"):
        utc(stamp, time_format=time_format)


def test_time_format_may_contain_the_zone() -> None:
    found = utc("03/08/2024 08:31 -0600", "03/11/2024 09:31 -0500", time_format="%m/%d/%Y %H:%M %z")
    assert found == ["2024-03-08 14:31:00", "2024-03-11 14:31:00"]


def test_unreadable_timestamps_are_counted_in_the_error() -> None:
    with pytest.raises(SchemaError) as caught:
        utc("2024-03-08 14:31", "03/08/2024 14:32", None, timezone="UTC")
    message = str(caught.value)
    assert (
        "es.csv: row 1 has the time '03/08/2024 14:32', which cannot be read as ISO8601" in message
    )
    assert "2 of 3 rows" in message
    assert "source.time_format=" in message


def test_a_time_format_that_does_not_match_raises() -> None:
    with pytest.raises(SchemaError, match=r"row 0 .* cannot be read as %d/%m/%Y; 1 of 1 rows"):
        utc("03/28/2024", timezone="UTC", time_format="%d/%m/%Y")


def test_an_invalid_time_format_raises() -> None:
    with pytest.raises(ConfigError, match=r"source\.time_format='%Q' is not a strptime pattern"):
        utc("2024", timezone="UTC", time_format="%Q")


def test_mixed_zoned_and_naive_timestamps_raise() -> None:
    with pytest.raises(SchemaError) as caught:
        utc("2024-03-08 14:31Z", None, "2024-03-08 14:32", "2024-03-08 14:33", timezone="UTC")
    message = str(caught.value)
    assert "some timestamps have a time zone and 2 do not, the first at row 2" in message
    assert "'2024-03-08 14:32'" in message


def test_a_date_is_not_parsed_as_a_zone() -> None:
    assert utc("2024-03-08", timezone="UTC") == ["2024-03-08 00:00:00"]
    assert utc(datetime.date(2024, 3, 8), timezone="UTC") == ["2024-03-08 00:00:00"]


def test_numbers_as_timestamps_raise() -> None:
    with pytest.raises(SchemaError, match=r"holds numbers \(first: 1709908260\); write timestamps"):
        utc(1709908260, timezone="UTC")


@pytest.mark.parametrize(
    ("stamp", "why"),
    [("2024-11-03 01:30", "ambiguous"), ("2024-03-10 02:30", "2024-03-10 02:30:00")],
)
def test_local_timestamps_at_a_clock_change_raise(stamp: str, why: str) -> None:
    with pytest.raises(SchemaError) as caught:
        utc("2024-03-01 12:00", stamp, timezone="America/Chicago")
    message = str(caught.value)
    assert "es.csv: a timestamp is ambiguous or nonexistent in America/Chicago" in message
    assert why in message
    assert "write the timestamps in UTC" in message


def test_an_unknown_timezone_raises() -> None:
    with pytest.raises(ConfigError, match=r"source\.timezone=Chicago is not a time zone"):
        utc("2024-03-08 14:31", timezone="Chicago")


@pytest.mark.parametrize(
    "stamp",
    ["now", "Today", "2024-03", "15:01", "2024-03-04T15:01z", "2024-03-04 15:01:00.1234567890"],
)
@pytest.mark.parametrize("time_format", [None, "%Y-%m-%d", "%c"])
def test_words_and_partial_timestamps_raise(stamp: str, time_format: str | None) -> None:
    """pandas takes now and today for stamps under any format, and a month for its first day."""
    with pytest.raises(SchemaError, match=r"row 0 has the time .*; 1 of 1 rows"):
        utc(stamp, timezone="UTC", time_format=time_format)


@pytest.mark.parametrize("stamp", ["2024", "20240308", "45359.60486", "1.7e9"])
def test_numbers_as_text_timestamps_raise(stamp: str) -> None:
    with pytest.raises(SchemaError, match=r"holds numbers .* 1 of 2 rows, first row 1"):
        utc("2024-03-08 14:31", stamp, timezone="UTC")


@pytest.mark.parametrize(
    "stamp",
    [
        "9999-12-31 00:00",
        "0001-01-01 00:00",
        "1699-12-31 23:59:59",
        "2200-01-01",
        pd.Timestamp(2**63 - 2, unit="ns"),
        pd.Timestamp(-(2**63) + 1, unit="ns"),
        pd.Timestamp("2262-04-11 23:47:16"),
    ],
)
@pytest.mark.parametrize("timezone", ["UTC", "Asia/Tokyo", "America/Chicago"])
def test_timestamps_out_of_range_raise(stamp: str | pd.Timestamp, timezone: str) -> None:
    with pytest.raises(SchemaError, match=r"row 0 has the time .* are before 1700 or after 2199"):
        utc(stamp, timezone=timezone)


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("ticks", [2**63 - 1, -(2**63) + 1, 2**61])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_timestamps_beyond_pandas_range_raise(unit: str, ticks: int, zone: str | None) -> None:
    """Milliseconds taken for seconds; a Timestamp of the year 292,278,994 has no text."""
    stamps = pd.Series(np.array([ticks], dtype=f"M8[{unit}]")).dt.tz_localize(zone)
    with pytest.raises(SchemaError, match=r"row 0 has the time -?\d+-\d\d-\d\d .* 1 of 1 rows are"):
        to_utc(stamps, timezone="UTC", time_format=None, origin="es.parquet")


@pytest.mark.parametrize(
    ("stamp", "time_format"),
    [
        ("20240308 931", "%Y%m%d %H%M"),
        ("20240308 1000", "%Y%m%d %H%M%S"),  # strptime would say 10:00:00
        ("202438 1431", "%Y%m%d %H%M"),
    ],
)
def test_missing_leading_zeros_raise(stamp: str, time_format: str) -> None:
    with pytest.raises(SchemaError, match=r"row 0 has the time .* cannot be read as %Y%m%d %H%M"):
        utc(stamp, timezone="UTC", time_format=time_format)


def test_separated_fields_may_omit_leading_zeros() -> None:
    found = utc("3/8/2024 9:05", timezone="UTC", time_format="%m/%d/%Y %H:%M")
    assert found == ["2024-03-08 09:05:00"]


@pytest.mark.parametrize("time_format", ["mixed", "ISO8601", "%Y%"])
def test_words_as_time_format_raise(time_format: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.time_format=.* is not a strptime pattern"):
        utc("04/03/2024", timezone="UTC", time_format=time_format)


@pytest.mark.parametrize("timezone", ["America", "", "../UTC", "x" * 300])
def test_invalid_timezones_raise(timezone: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.timezone=.* is not a time zone"):
        utc("2024-03-08 14:31", timezone=timezone)


def test_ambiguous_local_time_raises_with_its_row() -> None:
    with pytest.raises(SchemaError, match=r"First at row 1 \(2024-11-03 01:30:00\), 2 such rows"):
        utc("2024-11-03 00:59", *["2024-11-03 01:30"] * 2, timezone="America/Chicago")


@pytest.mark.parametrize("common", [True, False])
def test_fast_and_general_parsing_agree(common: bool) -> None:
    stamps = ["2024-03-08 14:31", "2024-03-08T14:31:05", "2024-03-08 14:31:05.25", "2024-03-09"]
    more = [] if common else ["2024/3/10 7:05"]
    found = to_utc(pd.Series(stamps + more), timezone="UTC", time_format=None, origin="es.csv")
    assert found.dt.strftime("%d %H:%M:%S.%f").tolist()[:4] == [
        "08 14:31:00.000000",
        "08 14:31:05.000000",
        "08 14:31:05.250000",
        "09 00:00:00.000000",
    ]
