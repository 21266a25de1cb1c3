import numpy as np
import pytest

from robust_fin.data.splits import Timeline
from tests.tables import minutes


def timeline(time: list[int], ends: list[int], *, lockbox: float = 0.0) -> Timeline:
    return Timeline.from_rows(minutes(*time), minutes(*ends), lockbox=lockbox)


def test_a_border_falls_on_the_first_row_of_its_stamp() -> None:
    line = timeline([0, 0, 1, 1, 1, 2], [1, 1, 2, 2, 2, 3])
    assert [line.border(row) for row in range(7)] == [0, 0, 2, 2, 2, 5, 6]


def test_rows_that_end_in_time_are_found_whatever_their_order() -> None:
    line = timeline([0, 1, 2, 3, 4, 5], [3, 9, 3, 4, 6, 6])
    assert line.ending_by(np.arange(6), 3).tolist() == [0, 2]
    assert line.ending_by(np.array([0, 1]), 3).tolist() == [0]
    assert line.ending_by(np.array([1, 3, 4]), 4).tolist() == [3]
    assert line.ending_by(np.arange(6), 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_what_ends_in_time_is_what_a_comparison_of_all_rows_finds() -> None:
    draw = np.random.default_rng(0)
    time = np.sort(draw.integers(0, 200, 300))
    line = timeline(time.tolist(), (time + draw.integers(1, 40, 300)).tolist())
    for limit in range(0, 300, 7):
        rows = np.sort(draw.choice(300, 90, replace=False))
        expected = rows[line.label_end[rows] <= line.time[limit]]
        assert line.ending_by(rows, limit).tolist() == expected.tolist()


@pytest.mark.parametrize(("lockbox", "end"), [(0.0, 6), (0.3, 2), (0.5, 2), (0.6, 2), (0.1, 5)])
def test_the_lockbox_begins_with_a_whole_stamp(lockbox: float, end: int) -> None:
    line = timeline([0, 0, 1, 1, 1, 2], [1, 1, 2, 2, 2, 3], lockbox=lockbox)
    assert line.end == end
    assert line.locked() == ({"lockbox: never looked at": 6 - end} if end < 6 else {})


def test_the_longest_label_is_counted_in_stamps() -> None:
    assert timeline([0, 0, 1, 5, 9], [1, 1, 2, 6, 10]).bars_ahead() == 0
    assert timeline([0, 0, 1, 5, 9], [6, 1, 2, 6, 10]).bars_ahead() == 2


def test_the_shared_row_numbers_cannot_be_written_to() -> None:
    rows, _ = timeline([0, 1, 2], [1, 2, 3]).open_rows(0, 3)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 7
