import numpy as np
import pandas as pd
import pytest

from robust_fin.data.targets import ForwardReturn
from robust_fin.leaks.label_check import AFTER_END, OTHER_CONTRACT, check_labels
from robust_fin.leaks.perturbations import Findings, cut_points
from tests.bars import MINUTE, roll_rows, synthetic_bars
from tests.planted import LateReturn, LongReturn

ROWS = 20_000


def checked(target: ForwardReturn) -> Findings:
    bars = synthetic_bars(ROWS).table
    return check_labels(bars, target, cut_points(bars, count=3, seed=0), bar=MINUTE)


@pytest.mark.parametrize(("horizon", "max_gap"), [(1, None), (7, 30.0), (2000, None)])
def test_the_label_of_the_project_does_not_leak(horizon: int, max_gap: float | None) -> None:
    found = checked(ForwardReturn(horizon, max_gap))
    assert [str(leak) for leak in found.leaks] == []
    counts = {line.what: line for line in found.checked}
    assert counts[AFTER_END].cuts >= 12
    assert counts[OTHER_CONTRACT].cuts == 2
    assert counts[OTHER_CONTRACT].rows >= (10_000 if max_gap else ROWS - 2 * horizon)


@pytest.mark.parametrize("horizon", [2, 12])
def test_a_label_end_that_says_too_little_is_found(horizon: int) -> None:
    (leak,) = checked(LateReturn(horizon, None)).leaks
    assert leak.column == "target"
    assert leak.reach is not None
    assert leak.reach.bars == horizon
    assert "has the label_end 2022-03-" in str(leak)
    assert "changes with bars after it" in str(leak)


@pytest.mark.parametrize("horizon", [1, 5])
def test_a_label_across_the_roll_is_found(horizon: int) -> None:
    bars = synthetic_bars(ROWS).table
    (roll,) = roll_rows(bars)
    (leak,) = checked(LongReturn(horizon, None)).leaks
    first = bars["time"].iloc[roll - horizon]
    assert f"the label at bar {first:%Y-%m-%dT%H:%M} UTC of ESH22" in str(leak)
    assert "changes with bars of another contract" in str(leak)
    assert leak.reach is not None
    assert leak.reach.bars == horizon
    minutes = (bars["time"].iloc[roll] - first) / pd.Timedelta("1min")
    assert leak.reach.minutes == minutes
    assert np.isfinite(minutes)
