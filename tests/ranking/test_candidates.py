import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import spearmanr

from robust_fin.data.folds import cut_folds
from robust_fin.data.splits import Holdout
from robust_fin.errors import ConfigError
from robust_fin.evaluation.intervals import Interval
from robust_fin.ranking.candidates import (
    FeatureSelector,
    FoldRanking,
    Ranking,
    RankingPlan,
    agreement,
    rank_candidates,
    rank_in_parts,
    ranking_table,
)
from robust_fin.ranking.importance import Importance
from robust_fin.ranking.learners import TrainingSpan
from tests.ranking.examples import change_other_rows, make_examples_with_signal

PLAN: dict[str, Any] = {
    "k": 5, "learner": "ridge", "parts": 5, "first": 0.3, "repeats": 5, "draws": 100,
    "collinear": 0.7, "bins": 16,
}  # fmt: skip


def make_importance(*by_part: float, spread: float = 0.001) -> Importance:
    middle = float(np.mean(by_part))
    return Importance(
        Interval(middle, middle - spread, middle + spread), Interval(0.0, 0.0, 0.0), by_part
    )


def make_ranking() -> Ranking:
    """c and a are collinear and the best group; b is the best single column; d is noise."""
    single = [
        make_importance(0.003, 0.005),
        make_importance(0.010, 0.008),
        make_importance(0.004, 0.006),
    ]
    single.append(make_importance(0.0, 0.001))
    together = [
        make_importance(0.020, 0.022),
        make_importance(0.010, 0.008),
        make_importance(0.0, 0.001),
    ]
    return rank_candidates(
        ["a", "b", "c", "d"],
        ((0, 2), (1,), (3,)),
        single=single,
        together=together,
        information=np.array([[0.1, 0.2, 0.3, 0.9], [0.1, 0.2, 0.3, 0.8]]),
        direction=np.array([[0.1, 0.4, 0.2, 0.3], [0.1, 0.4, 0.2, 0.0]]),
    )


def test_ranks_start_at_the_largest_and_ties_share_the_better_rank() -> None:
    scores = np.array([[0.3, 0.1, 0.2], [0.0, 0.5, 0.5]])
    assert rank_in_parts(scores).tolist() == [[1, 3, 2], [3, 1, 1]]


def test_agreement_is_the_mean_spearman_correlation_of_all_pairs() -> None:
    ranks = rank_in_parts(np.random.default_rng(0).normal(size=(4, 9)))
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    expected = np.mean([spearmanr(ranks[a], ranks[b]).statistic for a, b in pairs])
    assert agreement(ranks) == pytest.approx(expected, rel=1e-12)
    assert agreement(np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3]])) == pytest.approx(1)
    assert np.isnan(agreement(np.array([[1, 2, 3]])))


def test_groups_are_ordered_by_joint_importance() -> None:
    ranking = make_ranking()
    assert [candidate.name for candidate in ranking.candidates] == ["c", "a", "b", "d"]
    assert [candidate.group for candidate in ranking.candidates] == [1, 1, 2, 3]
    assert ranking.candidates[0].places == {
        "importance": (2, 2), "information": (2, 2), "direction": (3, 2),
    }  # fmt: skip
    assert ranking.candidates[3].information == pytest.approx(0.85)
    assert ranking.stability["importance"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("k", "names"), [(1, ["c"]), (2, ["c", "b"]), (3, ["c", "b", "d"]), (9, ["c", "b", "d"])]
)
def test_at_most_one_candidate_of_a_group_is_proposed(k: int, names: list[str]) -> None:
    assert make_ranking().proposed(k) == names


def test_supported_candidates_have_an_interval_above_zero() -> None:
    assert make_ranking().supported(["c", "b", "d"]) == ["c", "b"]


def test_ranking_table_has_a_row_per_candidate_and_marks_the_proposed() -> None:
    output = io.StringIO()
    Console(width=100, file=output).print(
        ranking_table(make_ranking(), proposed=["c", "b"], title="Candidates")
    )
    lines = [line.split() for line in output.getvalue().splitlines() if line.strip()]
    first = next(line for line in lines if line[0] == "c")
    assert first == ["c", "1", "*", "5.0", "21.0", "[20.0,", "22.0]", "2..2", "300.0", "200.00"]
    assert next(line for line in lines if line[0] == "a")[1:3] == ["1", "4.0"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("k", 0, "select.k=0 must be a whole number, at least 1"),
        ("repeats", 0, "select.repeats=0 must be a whole number, at least 1"),
        ("bins", 1, "select.bins=1 must be a whole number, at least 2"),
        ("first", 1.0, "select.first=1.0 must be between 0 and 1"),
        ("collinear", 0.0, "select.collinear=0.0 must be an absolute correlation"),
    ],
)
def test_plan_out_of_range_is_rejected(key: str, value: float, message: str) -> None:
    RankingPlan(**PLAN)
    with pytest.raises(ConfigError, match=message):
        RankingPlan(**PLAN | {key: value})


HOLDOUT = Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False)


def rank_holdout(
    rows: int = 12_000, *, learner: str = "ridge", others: bool = False
) -> FoldRanking:
    """Rank examples with a signal, optionally after changing all rows outside train."""
    names, examples = make_examples_with_signal(rows)
    cut = cut_folds(examples, HOLDOUT)
    if others:
        examples = change_other_rows(examples, cut.rows[cut.folds[0].train])
        cut = cut_folds(examples, HOLDOUT)
    span = TrainingSpan.from_fold(examples, cut, 0, names=names, embargo=0)
    settings = {"k": 2, "learner": learner, "parts": 3, "first": 0.4, "repeats": 3, "draws": 200}
    plan = RankingPlan(**PLAN | settings | {"bins": 12})
    return FeatureSelector(plan, seed=0, threads=1).rank(span, fold=0)


@pytest.mark.parametrize("learner", ["ridge", "lightgbm"])
def test_signal_ranks_first_and_its_copy_is_not_proposed_too(learner: str) -> None:
    if learner == "lightgbm":
        pytest.importorskip("lightgbm")
    result = rank_holdout(learner=learner)
    by_name = {candidate.name: candidate for candidate in result.ranking.candidates}
    assert {name: by_name[name].group for name in ("signal", "copy", "weak")} == {
        "signal": 1, "copy": 1, "weak": 2,
    }  # fmt: skip
    assert {by_name["noise"].group, by_name["slow"].group} == {3, 4}
    assert result.proposed == ("signal", "weak")
    assert by_name["signal"].together.rank_ic.low > 0.15
    assert by_name["weak"].importance.rank_ic.is_above(0)
    for name in ("noise", "slow"):
        assert by_name[name].importance.rank_ic.low < 0.01
        assert by_name[name].direction == pytest.approx(0, abs=0.003)
    assert max(by_name["signal"].places["information"]) <= 2
    everything, proposed = (result.learner[name]["rank_ic"] for name in ("all", "proposed"))
    assert everything.low > 0.2
    assert proposed.estimate > everything.estimate - 0.02


def test_ranking_reads_no_row_of_val_or_test() -> None:
    assert rank_holdout(6_000).as_dict() == rank_holdout(6_000, others=True).as_dict()
