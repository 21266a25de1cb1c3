import datetime

import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.parsing import to_utc


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
def test_a_format_says_how_stamps_are_written(stamp: str, time_format: str) -> None:
    assert utc(stamp, timezone="UTC", time_format=time_format) == ["2024-03-08 14:31:00"]
    assert utc(stamp, timezone="America/Chicago", time_format=time_format) == [
        "2024-03-08 20:31:00"
    ]
    with pytest.raises(SchemaError, match=r"have no time zone.*source\.timezone=UTC"):
        utc(stamp, time_format=time_format)


def test_a_format_may_hold_the_zone() -> None:
    found = utc("03/08/2024 08:31 -0600", "03/11/2024 09:31 -0500", time_format="%m/%d/%Y %H:%M %z")
    assert found == ["2024-03-08 14:31:00", "2024-03-11 14:31:00"]


def test_stamps_that_cannot_be_read_are_counted_and_shown() -> None:
    with pytest.raises(SchemaError) as caught:
        utc("2024-03-08 14:31", "03/08/2024 14:32", None, timezone="UTC")
    message = str(caught.value)
    assert (
        "es.csv: row 1 has the time '03/08/2024 14:32', which cannot be read as ISO8601" in message
    )
    assert "2 of 3 rows" in message
    assert "source.time_format=" in message


def test_a_format_that_does_not_fit_is_named() -> None:
    with pytest.raises(SchemaError, match=r"row 0 .* cannot be read as %d/%m/%Y; 1 of 1 rows"):
        utc("03/28/2024", timezone="UTC", time_format="%d/%m/%Y")


def test_a_format_that_is_no_pattern_is_named() -> None:
    with pytest.raises(ConfigError, match=r"source\.time_format='%Q' is not a strptime pattern"):
        utc("2024", timezone="UTC", time_format="%Q")


def test_some_stamps_with_and_some_without_zone_are_refused() -> None:
    with pytest.raises(SchemaError) as caught:
        utc("2024-03-08 14:31Z", None, "2024-03-08 14:32", "2024-03-08 14:33", timezone="UTC")
    message = str(caught.value)
    assert "some timestamps have a time zone and 2 do not, the first at row 2" in message
    assert "'2024-03-08 14:32'" in message


def test_a_daily_date_is_not_taken_for_a_zone() -> None:
    assert utc("2024-03-08", timezone="UTC") == ["2024-03-08 00:00:00"]
    assert utc(datetime.date(2024, 3, 8), timezone="UTC") == ["2024-03-08 00:00:00"]


def test_numbers_are_no_stamps() -> None:
    with pytest.raises(SchemaError, match=r"holds numbers \(first: 1709908260\); write timestamps"):
        utc(1709908260, timezone="UTC")


@pytest.mark.parametrize(
    ("stamp", "why"),
    [("2024-11-03 01:30", "ambiguous"), ("2024-03-10 02:30", "2024-03-10 02:30:00")],
)
def test_local_stamps_at_a_clock_change_are_refused(stamp: str, why: str) -> None:
    with pytest.raises(SchemaError) as caught:
        utc("2024-03-01 12:00", stamp, timezone="America/Chicago")
    message = str(caught.value)
    assert "es.csv: a timestamp is ambiguous or nonexistent in America/Chicago" in message
    assert why in message
    assert "write the timestamps in UTC" in message


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(ConfigError, match=r"source\.timezone=Chicago is not a time zone"):
        utc("2024-03-08 14:31", timezone="Chicago")


@pytest.mark.parametrize(
    "stamp",
    ["now", "Today", "2024-03", "15:01", "2024-03-04T15:01z", "2024-03-04 15:01:00.1234567890"],
)
@pytest.mark.parametrize("time_format", [None, "%Y-%m-%d", "%c"])
def test_a_word_or_a_part_of_a_stamp_is_none(stamp: str, time_format: str | None) -> None:
    """pandas takes now and today for stamps under any format, and a month for its first day."""
    with pytest.raises(SchemaError, match=r"row 0 has the time .*; 1 of 1 rows"):
        utc(stamp, timezone="UTC", time_format=time_format)


@pytest.mark.parametrize("stamp", ["2024", "20240308", "45359.60486", "1.7e9"])
def test_a_number_written_as_text_is_no_stamp(stamp: str) -> None:
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
def test_a_stamp_far_away_is_named(stamp: str | pd.Timestamp, timezone: str) -> None:
    with pytest.raises(SchemaError, match=r"row 0 has the time .* are before 1700 or after 2199"):
        utc(stamp, timezone=timezone)


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("ticks", [2**63 - 1, -(2**63) + 1, 2**61])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_a_stamp_that_only_numpy_can_write_is_named(
    unit: str, ticks: int, zone: str | None
) -> None:
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
def test_lost_leading_zeros_are_not_guessed(stamp: str, time_format: str) -> None:
    with pytest.raises(SchemaError, match=r"row 0 has the time .* cannot be read as %Y%m%d %H%M"):
        utc(stamp, timezone="UTC", time_format=time_format)


def test_fields_apart_may_go_without_leading_zeros() -> None:
    found = utc("3/8/2024 9:05", timezone="UTC", time_format="%m/%d/%Y %H:%M")
    assert found == ["2024-03-08 09:05:00"]


@pytest.mark.parametrize("time_format", ["mixed", "ISO8601", "%Y%"])
def test_a_word_is_no_format(time_format: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.time_format=.* is not a strptime pattern"):
        utc("04/03/2024", timezone="UTC", time_format=time_format)


@pytest.mark.parametrize("timezone", ["America", "", "../UTC", "x" * 300])
def test_what_is_no_zone_is_named(timezone: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.timezone=.* is not a time zone"):
        utc("2024-03-08 14:31", timezone=timezone)


def test_a_wall_clock_that_is_there_twice_is_named_with_its_row() -> None:
    with pytest.raises(SchemaError, match=r"First at row 1 \(2024-11-03 01:30:00\), 2 such rows"):
        utc("2024-11-03 00:59", *["2024-11-03 01:30"] * 2, timezone="America/Chicago")


@pytest.mark.parametrize("common", [True, False])
def test_stamps_in_the_common_form_and_one_by_one_are_the_same(common: bool) -> None:
    stamps = ["2024-03-08 14:31", "2024-03-08T14:31:05", "2024-03-08 14:31:05.25", "2024-03-09"]
    more = [] if common else ["2024/3/10 7:05"]
    found = to_utc(pd.Series(stamps + more), timezone="UTC", time_format=None, origin="es.csv")
    assert found.dt.strftime("%d %H:%M:%S.%f").tolist()[:4] == [
        "08 14:31:00.000000",
        "08 14:31:05.000000",
        "08 14:31:05.250000",
        "09 00:00:00.000000",
    ]
