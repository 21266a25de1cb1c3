import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import SchemaError, SourceError
from robust_fin.market.labelling import (
    contract_expiry,
    contracts_by_expiry,
    last_close_before,
    read_daily_closes,
)


@pytest.mark.parametrize(
    ("code", "first_year", "expected"),
    [
        ("ESH22", 2021, (2022, 3)),
        ("ESZ24", 2024, (2024, 12)),
        ("ESZ2024", 2024, (2024, 12)),
        ("ESZ4", 2024, (2024, 12)),
        ("ESZ4", 2023, (2024, 12)),
        ("ESZ4", 2014, (2014, 12)),
        ("ESH0", 2019, (2020, 3)),  # the decade turns
        ("ESH0", 2020, (2020, 3)),
        ("ESU9", 2019, (2019, 9)),
        ("ESU9", 2020, (2029, 9)),
        ("ESH00", 1999, (2000, 3)),  # the century turns
        ("ESZ99", 1999, (1999, 12)),
        ("esm23", 2023, (2023, 6)),
        (" ESM23 ", 2023, (2023, 6)),
        ("6EZ4", 2024, (2024, 12)),
        ("CLF25", 2024, (2025, 1)),
        ("GCQ25", 2025, (2025, 8)),
        ("ESZ024", 2024, None),
        ("ESA24", 2024, None),
        ("ONE", 2024, None),
        ("ES", 2024, None),
        ("SPY", 2024, None),
        ("20240315", 2024, None),
        ("", 2024, None),
    ],
)
def test_expiry_of_a_code(code: str, first_year: int, expected: tuple[int, int] | None) -> None:
    assert contract_expiry(code, first_year=first_year) == expected


def order(first_bars: dict[str, str]) -> list[str]:
    contract = pd.Series(list(first_bars), dtype="str").astype("category")
    time = pd.Series(pd.DatetimeIndex(list(first_bars.values()), tz="UTC"))
    return contracts_by_expiry(contract, time)


def test_contracts_are_sorted_by_expiry_not_alphabetically() -> None:
    first = {
        "ESZ22": "2022-09-01",
        "ESH23": "2022-12-01",
        "ESM22": "2022-03-01",
        "ESU22": "2022-06",
    }
    assert order(first) == ["ESM22", "ESU22", "ESZ22", "ESH23"]


def test_expiry_takes_precedence_over_the_first_bar() -> None:
    assert order({"ESU24": "2024-01-02", "ESM24": "2024-02-01"}) == ["ESM24", "ESU24"]


def test_one_digit_years_wrap_at_the_decade() -> None:
    first = {"ESH0": "2019-12-13", "ESZ9": "2019-09-13", "ESM0": "2020-03-13"}
    assert order(first) == ["ESZ9", "ESH0", "ESM0"]


def test_years_of_one_two_and_four_digits_agree() -> None:
    first = {"ESZ2024": "2024-09-01", "ESH4": "2023-12-01", "ESM24": "2024-03-01"}
    assert order(first) == ["ESH4", "ESM24", "ESZ2024"]


def test_unknown_codes_are_sorted_by_first_bar() -> None:
    assert order({"front": "2024-05-01", "back": "2024-06-01", "abel": "2024-04-01"}) == [
        "abel",
        "front",
        "back",
    ]


def test_a_single_unknown_code_sorts_all_codes_by_first_bar() -> None:
    first = {"ESU24": "2024-01-02", "ESM24": "2024-02-01", "mine": "2024-01-15"}
    assert order(first) == ["ESU24", "mine", "ESM24"]


def test_first_bars_need_not_be_the_first_rows() -> None:
    contract = pd.Series(["b", "a", "a", "b"], dtype="str").astype("category")
    time = pd.Series(pd.DatetimeIndex(["2024-01-05", "2024-01-03", "2024-01-04", "2024-01-01"]))
    assert contracts_by_expiry(contract, time) == ["b", "a"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("ESH24", "ESH24 "), ("ESH24", "esh24"), ("ESH24", "ESH4"), (" Front", "front")],
)
def test_two_spellings_of_the_same_contract_raise(one: str, other: str) -> None:
    with pytest.raises(
        SchemaError, match=f"'{one}' and '{other}' are two spellings of the same contract"
    ):
        order({one: "2024-01-02", other: "2024-01-03", "ESM24": "2024-02-01"})


def test_the_same_month_of_two_products_gives_two_contracts() -> None:
    first = {"ESH24": "2024-01-03", "NQH24": "2024-01-02", "mine": "2024-01-04"}
    assert order(first) == ["NQH24", "ESH24", "mine"]


def test_an_unprintable_code_raises() -> None:
    with pytest.raises(
        SchemaError, match=r"the contract 'ESH24\\nESM24' contains a line break.*1 of 2"
    ):
        order({"ESH24\nESM24": "2024-01-02", "ESM24": "2024-02-01"})


def vix_csv(folder: Path, text: str) -> Path:
    path = folder / "vix.csv"
    path.write_text(text, encoding="utf-8")
    return path


def close_at(closes: pd.Series, *dates: str, days: int = 10) -> list[float]:
    return last_close_before(closes, np.array(dates, dtype="datetime64[s]"), days=days).tolist()


@pytest.fixture
def closes() -> pd.Series:
    """Closes of 2024: Thursday 28 March, then Monday 1 April (29 March is Good Friday)."""
    dates = pd.DatetimeIndex(["2024-03-27", "2024-03-28", "2024-04-01", "2024-04-02"])
    return pd.Series([12.0, 13.0, 14.0, 15.0], index=dates.as_unit("s"))


def test_a_bar_gets_the_close_of_the_day_before(closes: pd.Series) -> None:
    assert close_at(closes, "2024-03-28", "2024-04-02", "2024-04-03") == [12.0, 14.0, 15.0]


def test_a_holiday_and_a_weekend_keep_the_last_close(closes: pd.Series) -> None:
    assert close_at(closes, "2024-03-29", "2024-04-01") == [13.0, 13.0]


def test_before_the_first_close_vix_is_nan(closes: pd.Series) -> None:
    assert np.isnan(close_at(closes, "2024-03-26", "2024-03-27")).all()


def test_an_old_close_expires(closes: pd.Series) -> None:
    assert close_at(closes, "2024-04-12") == [15.0]
    assert np.isnan(close_at(closes, "2024-04-13")).all()
    assert np.isnan(close_at(closes, "2024-04-01", days=3)).all()
    assert close_at(closes, "2024-04-01", days=4) == [13.0]


def test_changing_a_close_affects_only_later_dates(closes: pd.Series) -> None:
    dates = ("2024-03-28", "2024-04-01", "2024-04-02")
    before = close_at(closes, *dates)
    closes["2024-04-01"] = 80.0
    assert close_at(closes, *dates) == [*before[:2], 80.0]


@pytest.mark.parametrize(
    "text",
    [
        "date,open,high,low,close\n2024-03-28,1,1,1,13.0\n2024-03-27,9,9,9,12.0\n",
        "DATE,CLOSE\n03/28/2024,13.0\n03/27/2024,12.0\n",
        " Date , Close \n2024-03-28,13\n2024-03-27,12\n",
    ],
)
def test_only_date_and_close_are_read_and_sorted(tmp_path: Path, text: str) -> None:
    closes = read_daily_closes(vix_csv(tmp_path, text))
    assert closes.index.strftime("%Y-%m-%d").tolist() == ["2024-03-27", "2024-03-28"]
    assert closes.tolist() == [12.0, 13.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("date,close\n2024-03-27,12\n2024-03-28,-1\n", "row 1 is date=2024-03-28, close=-1"),
        ("date,close\n2024-03-27,12\n2024-03-28,\n", "row 1 is date=2024-03-28, close=nan"),
        ("date,close\n2024-03-27,inf\n", "row 0 is date=2024-03-27, close=inf; 1 rows"),
        ("date,close\n2024-03-27,a\n2024-03-28,b\n", "row 0 is date=2024-03-27, close=a; 2 rows"),
        ("date,close\nyesterday,12\n", "row 0 is date=yesterday, close=12"),
        ("date,close\n27.03.2024,12\n", "row 0 is date=27.03.2024, close=12"),
        ("date,close\n2024-03-27,True\n", "row 0 is date=2024-03-27, close=True"),
        ("date,close\n2024-03-27,1_2\n", "row 0 is date=2024-03-27, close=1_2"),
        ("date,close\n2024-03-27,12\nnow,13\n", "row 1 is date=now, close=13; 1 rows"),
        ("date,close,CLOSE\n2024-03-27,12,13\n", "['date', 'close', 'close']; keep each name once"),
        ("date,close,close\n2024-03-27,12,13\n", "has the columns ['close'] more than once"),
        ("date,close\n2024-03-27,12,13\n", "Expected 2 columns, got "),
        ("date,close\n2024-03-27\n", "Expected 2 columns, got "),
        ("date,close\n", "has a header but no rows"),
        ("day,vix\n2024-03-27,12\n", r"has the columns ['day', 'vix']; it needs date and close"),
        (
            "date,close\n2024-03-27,12\n2024-03-28,13\n2024-03-27,14\n",
            "row 2 repeats the date 2024-03-27; 1 such rows",
        ),
    ],
)
def test_an_invalid_vix_file_raises_with_its_row(tmp_path: Path, text: str, words: str) -> None:
    path = vix_csv(tmp_path, text)
    with pytest.raises(SourceError) as caught:
        read_daily_closes(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_missing_or_empty_vix_file_raises(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no VIX file at .*gone\.csv; set source\.vix_path"):
        read_daily_closes(tmp_path / "gone.csv")
    with pytest.raises(SourceError, match=r"vix\.csv cannot be read"):
        read_daily_closes(vix_csv(tmp_path, ""))


def test_a_compressed_vix_file_is_read_and_a_damaged_file_raises(tmp_path: Path) -> None:
    content = gzip.compress(b"date,close\n2024-03-27,12\n2024-03-28,13\n")
    path = tmp_path / "vix.csv.gz"
    path.write_bytes(content)
    assert read_daily_closes(path).tolist() == [12.0, 13.0]
    path.write_bytes(content[:-9])
    with pytest.raises(SourceError, match=r"vix\.csv\.gz cannot be read as \.csv: Truncated"):
        read_daily_closes(path)
