from pathlib import Path

import pandas as pd
import pytest

from robust_fin.leaks.label_check import check_vix
from robust_fin.leaks.perturbations import Findings, cut_points
from robust_fin.market import labelling
from robust_fin.market.labelling import Labeller
from tests.bars import synthetic_bars
from tests.planted import last_close_upto

ROWS = 20_000


def written(folder: Path) -> Path:
    """A close for every weekday around the synthetic bars."""
    days = pd.bdate_range("2022-02-01", "2022-04-01")
    lines = [f"{day:%Y-%m-%d},{20 + number % 7}" for number, day in enumerate(days)]
    path = folder / "vix.csv"
    path.write_text("date,close\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def checked(folder: Path) -> Findings:
    bars = synthetic_bars(ROWS).table
    path = str(written(folder))
    labeller = Labeller.load("CME_Equity", override_path=None, vix_path=path)
    return check_vix(bars, labeller, cut_points(bars, count=3, seed=0))


def test_the_join_of_the_project_does_not_leak(tmp_path: Path) -> None:
    found = checked(tmp_path)
    assert found.leaks == []
    (line,) = found.checked
    assert line.column == "vix"
    assert line.rows > 10_000


def test_without_closes_there_is_nothing_to_check() -> None:
    bars = synthetic_bars(ROWS).table
    labeller = Labeller.load("CME_Equity", override_path=None, vix_path=None)
    assert check_vix(bars, labeller, cut_points(bars, count=1, seed=0)) == Findings([], [])


def test_the_close_of_the_same_day_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "last_close_before", last_close_upto)
    (leak,) = checked(tmp_path).leaks
    assert leak.column == "vix"
    # the first session of the bars, of the 2nd of March, began at 17:00 of the day before
    assert "of the trading date 2022-03-02, has the VIX close of 2022-03-02" in str(leak)
    assert leak.reach is not None
    assert leak.reach.minutes == (22 + 1 / 4) * 60
    assert leak.reach.bars == pytest.approx(leak.reach.minutes, abs=10)
