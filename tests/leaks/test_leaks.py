import numpy as np
import pytest

from robust_fin.leaks.perturbations import (
    Leak,
    Reach,
    farthest,
    future_changed,
    future_missing,
    moved,
    reach,
    spread_of,
)
from tests.bars import zigzag

NAN = np.nan


def test_a_value_moves_beyond_rounding_or_by_being_defined() -> None:
    before = np.array([1.0, 1.0, NAN, NAN, 2.0, np.inf, 0.0])
    after = np.array([1.0 + 1e-12, 1.001, NAN, 3.0, NAN, np.inf, 1e-6])
    assert moved(before, after, spread=0.0).tolist() == [
        False,
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert moved(before, after, spread=20.0)[6] is np.False_


def test_the_spread_is_that_of_the_numbers() -> None:
    assert spread_of(np.array([NAN, 1.0, 3.0, np.inf])) == 1.0
    assert spread_of(np.array([NAN])) == 0.0


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_the_farthest_start_is_found_in_few_questions(size: int) -> None:
    for last in {0, size // 3, size - 1}:
        asked: list[int] = []

        def notices(start: int, *, last: int = last, asked: list[int] = asked) -> bool:
            asked.append(start)
            return start <= last

        assert farthest(notices, size) == last
        assert len(asked) <= 2 * size.bit_length() + 1
        assert max(asked) < size
    assert farthest(lambda _: False, size) is None
    assert farthest(lambda _: True, 0) is None


@pytest.mark.parametrize("ahead", [1, 2, 7])
@pytest.mark.parametrize("change", [future_changed, future_missing])
def test_the_reach_of_a_value_is_measured(ahead: int, change) -> None:
    bars = zigzag(30)
    seen = reach(
        bars, 10, lambda table: table["close"].shift(-ahead).to_numpy(), change, spread=0.0
    )
    assert seen == Reach(ahead, float(ahead), to_end=False)
    assert reach(bars, 10, lambda table: table["close"].to_numpy(), change, spread=0.0) is None


def test_minutes_without_a_bar_count_as_minutes() -> None:
    bars = zigzag(30).drop(index=[12, 13]).reset_index(drop=True)
    seen = reach(bars, 11, lambda t: t["close"].shift(-1).to_numpy(), future_changed, spread=0.0)
    assert str(seen) == "1 bar (3 minutes) ahead"
    whole = Reach(5000, 6000.0, to_end=True)
    assert str(whole) == "5,000 bars (6,000 minutes) ahead, to the end of the bars"


def test_a_leak_is_one_message() -> None:
    leak = Leak("alpha", "it sees 1 bar (1 minute) ahead", "Do not", Reach(1, 1.0, to_end=False))
    assert str(leak) == "alpha leaks: it sees 1 bar (1 minute) ahead. Do not"
