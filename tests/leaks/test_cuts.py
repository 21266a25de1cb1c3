import numpy as np

from robust_fin.leaks.perturbations import FIRST, MIDDLE, ROLL, TRAIN, cut_points
from tests.bars import synthetic_bars

ROWS = 20_000  # eight trading dates of ESH22, then six and a half of ESM22


def test_cuts_are_of_every_kind_and_each_moment_once() -> None:
    bars = synthetic_bars(ROWS).table
    end = bars["time"].dt.tz_localize(None).to_numpy()[5000]
    cuts = cut_points(bars, count=3, seed=0, ends=[end])
    assert sorted({cut.kind for cut in cuts}) == sorted({MIDDLE, ROLL, FIRST, TRAIN})
    last = [cut.last for cut in cuts]
    assert last == sorted(set(last))
    assert 4999 in last  # the last bar that begins before the label ends
    (roll,) = np.flatnonzero(np.diff(bars["contract"].cat.codes)) + 1
    assert {roll - 1, roll} < set(last)
