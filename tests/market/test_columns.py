import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import SchemaError
from robust_fin.market.parsing import match_headers, to_codes, to_numbers

PLAIN = ["time", "open", "high", "low", "close", "volume"]


def headers(*names: str) -> dict[str, str]:
    return match_headers(names, origin="es.csv")


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


def test_a_message_does_not_list_thousands_of_columns() -> None:
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


@pytest.mark.parametrize("text", ["5,000.25", "0x10", "1_000", "5 000", "1.5f", "5\0", "५", "1e"])
def test_what_a_program_might_take_for_a_number_is_none(text: str) -> None:
    with pytest.raises(SchemaError, match=r"close must be a number. First at row 2 .* 1 of 3 rows"):
        to_numbers(pd.Series(["1.5", "", text], name="close"), origin="es.csv")


def test_numbers_are_read_to_the_last_bit_one_by_one_and_at_once() -> None:
    texts = [f"{n}.{n * 7919:025d}" for n in range(1, 500)]
    for more in ([], ["none"]):
        found = to_numbers(pd.Series(texts + more), origin="es.csv")[: len(texts)]
        assert found.tolist() == [float(text) for text in texts]


def test_truth_values_are_no_numbers() -> None:
    with pytest.raises(SchemaError, match=r"open must be a number.*2 of 2 rows"):
        to_numbers(pd.Series([True, False], name="open"), origin="es.csv")


def test_codes_are_text_whatever_the_file_holds() -> None:
    assert to_codes(pd.Series(["b", "a", "b"])).tolist() == ["b", "a", "b"]
    assert to_codes(pd.Series([202403, 202406])).tolist() == ["202403", "202406"]
    assert to_codes(pd.Series(["b", "a"], dtype="category")).cat.categories.tolist() == ["a", "b"]


@pytest.mark.parametrize("missing", ["", " ", "nan", "None", "NULL", "<NA>", "N/A"])
def test_a_code_that_says_nothing_is_missing(missing: str) -> None:
    found = to_codes(pd.Series(["b", missing, "a", f" {missing}", "NAN"]))
    assert found.isna().tolist() == [False, True, False, True, False]
    assert found.cat.categories.tolist() == ["NAN", "a", "b"]


@pytest.mark.parametrize("dtype", ["str", "category"])
def test_an_empty_code_is_missing(dtype: str) -> None:
    found = to_codes(pd.Series(["a", "", None, "a"], dtype=dtype))
    assert found.isna().tolist() == [False, True, True, False]
    assert found.cat.categories.tolist() == ["a"]
