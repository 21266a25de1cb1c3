import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import SourceError
from robust_fin.market.labelling import last_close_before, read_daily_closes


def written(folder: Path, text: str) -> Path:
    path = folder / "vix.csv"
    path.write_text(text, encoding="utf-8")
    return path


def at(closes: pd.Series, *dates: str, days: int = 10) -> list[float]:
    return last_close_before(closes, np.array(dates, dtype="datetime64[s]"), days=days).tolist()


@pytest.fixture
def closes() -> pd.Series:
    """Closes of 2024: Thursday 28 March, then Monday 1 April (29 March is Good Friday)."""
    dates = pd.DatetimeIndex(["2024-03-27", "2024-03-28", "2024-04-01", "2024-04-02"])
    return pd.Series([12.0, 13.0, 14.0, 15.0], index=dates.as_unit("s"))


def test_a_bar_sees_the_close_of_the_day_before_and_never_its_own(closes: pd.Series) -> None:
    assert at(closes, "2024-03-28", "2024-04-02", "2024-04-03") == [12.0, 14.0, 15.0]


def test_a_holiday_and_a_weekend_keep_the_last_close(closes: pd.Series) -> None:
    assert at(closes, "2024-03-29", "2024-04-01") == [13.0, 13.0]


def test_before_the_first_close_there_is_none(closes: pd.Series) -> None:
    assert np.isnan(at(closes, "2024-03-26", "2024-03-27")).all()


def test_a_close_does_not_last_for_ever(closes: pd.Series) -> None:
    assert at(closes, "2024-04-12") == [15.0]
    assert np.isnan(at(closes, "2024-04-13")).all()
    assert np.isnan(at(closes, "2024-04-01", days=3)).all()
    assert at(closes, "2024-04-01", days=4) == [13.0]


def test_changing_a_close_moves_only_later_dates(closes: pd.Series) -> None:
    dates = ("2024-03-28", "2024-04-01", "2024-04-02")
    before = at(closes, *dates)
    closes["2024-04-01"] = 80.0
    assert at(closes, *dates) == [*before[:2], 80.0]


@pytest.mark.parametrize(
    "text",
    [
        "date,open,high,low,close\n2024-03-28,1,1,1,13.0\n2024-03-27,9,9,9,12.0\n",
        "DATE,CLOSE\n03/28/2024,13.0\n03/27/2024,12.0\n",
        " Date , Close \n2024-03-28,13\n2024-03-27,12\n",
    ],
)
def test_only_date_and_close_are_read_and_sorted(tmp_path: Path, text: str) -> None:
    closes = read_daily_closes(written(tmp_path, text))
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
def test_a_bad_file_is_refused_with_its_row(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SourceError) as caught:
        read_daily_closes(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no VIX file at .*gone\.csv; set source\.vix_path"):
        read_daily_closes(tmp_path / "gone.csv")
    with pytest.raises(SourceError, match=r"vix\.csv cannot be read"):
        read_daily_closes(written(tmp_path, ""))


def test_a_compressed_file_is_read_and_a_damaged_one_named(tmp_path: Path) -> None:
    content = gzip.compress(b"date,close\n2024-03-27,12\n2024-03-28,13\n")
    path = tmp_path / "vix.csv.gz"
    path.write_bytes(content)
    assert read_daily_closes(path).tolist() == [12.0, 13.0]
    path.write_bytes(content[:-9])
    with pytest.raises(SourceError, match=r"vix\.csv\.gz cannot be read as \.csv: Truncated"):
        read_daily_closes(path)
