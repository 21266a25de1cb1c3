import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import spearmanr

from robust_fin.errors import ConfigError
from robust_fin.evaluation.intervals import Interval
from robust_fin.ranking.candidates import (
    Ranking,
    RankingPlan,
    agreement,
    places,
    rank_candidates,
    ranking_table,
    supported,
)
from robust_fin.ranking.importance import Importance

PLAN: dict[str, Any] = {
    "k": 5, "learner": "ridge", "parts": 5, "first": 0.3, "repeats": 5, "draws": 100,
    "collinear": 0.7, "bins": 16,
}  # fmt: skip


def importance(*by_part: float, spread: float = 0.001) -> Importance:
    middle = float(np.mean(by_part))
    return Importance(
        Interval(middle, middle - spread, middle + spread), Interval(0.0, 0.0, 0.0), by_part
    )


def ranked() -> Ranking:
    """c and a tell the same and are worth most together; b is worth most alone; d is noise."""
    single = [importance(0.003, 0.005), importance(0.010, 0.008), importance(0.004, 0.006)]
    single.append(importance(0.0, 0.001))
    together = [importance(0.020, 0.022), importance(0.010, 0.008), importance(0.0, 0.001)]
    return rank_candidates(
        ["a", "b", "c", "d"],
        ((0, 2), (1,), (3,)),
        single=single,
        together=together,
        information=np.array([[0.1, 0.2, 0.3, 0.9], [0.1, 0.2, 0.3, 0.8]]),
        direction=np.array([[0.1, 0.4, 0.2, 0.3], [0.1, 0.4, 0.2, 0.0]]),
    )


def test_places_count_from_the_largest_and_equals_share_the_better() -> None:
    worth = np.array([[0.3, 0.1, 0.2], [0.0, 0.5, 0.5]])
    assert places(worth).tolist() == [[1, 3, 2], [3, 1, 1]]


def test_agreement_is_the_mean_spearman_correlation_of_every_two_parts() -> None:
    order = places(np.random.default_rng(0).normal(size=(4, 9)))
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    known = np.mean([spearmanr(order[a], order[b]).statistic for a, b in pairs])
    assert agreement(order) == pytest.approx(known, rel=1e-12)
    assert agreement(np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3]])) == pytest.approx(1)
    assert np.isnan(agreement(np.array([[1, 2, 3]])))


def test_groups_go_by_what_they_are_worth_together() -> None:
    found = ranked()
    assert [one.name for one in found.candidates] == ["c", "a", "b", "d"]
    assert [one.group for one in found.candidates] == [1, 1, 2, 3]
    assert found.candidates[0].places == {
        "importance": (2, 2), "information": (2, 2), "direction": (3, 2),
    }  # fmt: skip
    assert found.candidates[3].information == pytest.approx(0.85)
    assert found.stability["importance"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("k", "names"), [(1, ["c"]), (2, ["c", "b"]), (3, ["c", "b", "d"]), (9, ["c", "b", "d"])]
)
def test_at_most_one_of_a_group_is_proposed(k: int, names: list[str]) -> None:
    assert ranked().proposed(k) == names


def test_supported_are_those_whose_interval_lies_above_zero() -> None:
    assert supported(ranked().candidates, ["c", "b", "d"]) == ["c", "b"]


def test_the_table_has_a_line_for_each_and_marks_what_is_proposed() -> None:
    shown = io.StringIO()
    Console(width=100, file=shown).print(
        ranking_table(ranked(), proposed=["c", "b"], title="Candidates")
    )
    lines = [line.split() for line in shown.getvalue().splitlines() if line.strip()]
    first = next(line for line in lines if line[0] == "c")
    assert first == ["c", "1", "*", "5.0", "21.0", "[20.0,", "22.0]", "2..2", "300.0", "200.00"]
    assert next(line for line in lines if line[0] == "a")[1:3] == ["1", "4.0"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("k", 0, "select.k=0 must be a whole number, at least 1"),
        ("repeats", 0, "select.repeats=0 must be a whole number, at least 1"),
        ("bins", 1, "select.bins=1 must be a whole number, at least 2"),
        ("first", 1.0, "select.first=1.0 must lie between 0 and 1"),
        ("collinear", 0.0, "select.collinear=0.0 must be an absolute correlation"),
    ],
)
def test_a_plan_that_ranks_nothing_is_refused(key: str, value: float, words: str) -> None:
    RankingPlan(**PLAN)
    with pytest.raises(ConfigError, match=words):
        RankingPlan(**PLAN | {key: value})
