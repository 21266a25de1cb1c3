from pathlib import Path

import pandas as pd
import pytest

from robust_fin.data.targets import ForwardReturn
from robust_fin.leaks.label_check import AFTER_END, OTHER_CONTRACT, check_labels, check_vix
from robust_fin.leaks.perturbations import Findings, cut_points
from robust_fin.market import labelling
from robust_fin.market.labelling import Labeller
from tests.bars import MINUTE, roll_rows, synthetic_bars
from tests.planted_leaks import LateReturn, LongReturn, last_close_upto

ROWS = 20_000


def check_target(target: ForwardReturn) -> Findings:
    bars = synthetic_bars(ROWS).table
    return check_labels(bars, target, cut_points(bars, count=3, seed=0), bar=MINUTE)


@pytest.mark.parametrize(("horizon", "max_gap"), [(1, None), (7, 30.0), (2000, None)])
def test_forward_return_does_not_leak(horizon: int, max_gap: float | None) -> None:
    findings = check_target(ForwardReturn(horizon, max_gap))
    assert [str(leak) for leak in findings.leaks] == []
    counts = {line.what: line for line in findings.checked}
    assert counts[AFTER_END].cuts >= 12
    assert counts[OTHER_CONTRACT].cuts == 2
    assert counts[OTHER_CONTRACT].rows >= (10_000 if max_gap else ROWS - 2 * horizon)


@pytest.mark.parametrize("horizon", [2, 12])
def test_label_end_that_is_too_early_is_found(horizon: int) -> None:
    (leak,) = check_target(LateReturn(horizon, None)).leaks
    assert leak.column == "target"
    assert leak.reach is not None
    assert leak.reach.bars == horizon
    assert "has the label_end 2022-03-" in str(leak)
    assert "changes with bars after it" in str(leak)


@pytest.mark.parametrize("horizon", [1, 5])
def test_label_across_the_roll_is_found(horizon: int) -> None:
    bars = synthetic_bars(ROWS).table
    (roll,) = roll_rows(bars)
    (leak,) = check_target(LongReturn(horizon, None)).leaks
    first = bars["time"].iloc[roll - horizon]
    assert f"the label at bar {first:%Y-%m-%dT%H:%M} UTC of ESH22" in str(leak)
    assert "changes with bars of another contract" in str(leak)
    assert leak.reach is not None
    assert leak.reach.bars == horizon
    assert leak.reach.minutes == (bars["time"].iloc[roll] - first) / pd.Timedelta("1min")


def check_joined_vix(folder: Path) -> Findings:
    """Check the VIX join with a close for every weekday around the synthetic bars."""
    days = pd.bdate_range("2022-02-01", "2022-04-01")
    lines = [f"{day:%Y-%m-%d},{20 + number % 7}" for number, day in enumerate(days)]
    path = folder / "vix.csv"
    path.write_text("date,close\n" + "\n".join(lines) + "\n", encoding="utf-8")
    labeller = Labeller.load("CME_Equity", override_path=None, vix_path=str(path))
    bars = synthetic_bars(ROWS).table
    return check_vix(bars, labeller, cut_points(bars, count=3, seed=0))


def test_vix_join_does_not_leak(tmp_path: Path) -> None:
    findings = check_joined_vix(tmp_path)
    assert findings.leaks == []
    (line,) = findings.checked
    assert line.column == "vix"
    assert line.rows > 10_000


def test_without_vix_closes_nothing_is_checked() -> None:
    bars = synthetic_bars(ROWS).table
    labeller = Labeller.load("CME_Equity", override_path=None, vix_path=None)
    assert check_vix(bars, labeller, cut_points(bars, count=1, seed=0)) == Findings([], [])


def test_vix_close_of_the_same_day_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "last_close_before", last_close_upto)
    (leak,) = check_joined_vix(tmp_path).leaks
    assert leak.column == "vix"
    # the first session, of 2 March, started at 17:00 on 1 March
    assert "of the trading date 2022-03-02, has the VIX close of 2022-03-02" in str(leak)
    assert leak.reach is not None
    assert leak.reach.minutes == (22 + 1 / 4) * 60
    assert leak.reach.bars == pytest.approx(leak.reach.minutes, abs=10)
