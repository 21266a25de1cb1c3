import numpy as np
import pandas as pd
import pytest
from rich.table import Table

from robust_fin.evaluation.run_selection import compare_runs, comparison_tables, net_rows
from robust_fin.evaluation.significance import judge
from robust_fin.evaluation.verdict import format_interval, format_percent_interval
from tests.evaluation.tables import predictions, with_models


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return predictions(strength=0.2, dates=60)


def test_the_nets_of_two_runs_differ_as_a_net_and_its_baseline_would(table: pd.DataFrame) -> None:
    other = table["score"].to_numpy() + 0.05 * np.random.default_rng(0).normal(size=len(table))
    one, two = with_models(table, {}), with_models(table.assign(score=other), {})
    found = compare_runs(one, two, draws=200)
    assert found is not None
    assert (found.rows, found.dates) == (len(table), 60)
    judged = judge(with_models(table, {"ridge": other}), draws=200)
    assert found.difference == judged.against["ridge"]
    assert found.first == judged.net
    assert found.second.rank_ic == judged.baselines["ridge"].rank_ic


def test_the_keyboard_shows_both_and_their_difference(table: pd.DataFrame) -> None:
    found = compare_runs(with_models(table, {}), with_models(table.assign(score=0.5), {}), draws=50)
    assert found is not None
    (shown,) = comparison_tables(found, "a", "b")
    assert isinstance(shown, Table)
    names, skills, ics = (list(column.cells) for column in shown.columns)
    assert names == ["a", "b", "a less b"]
    assert skills[0] == skills[2] == format_percent_interval(found.first.skill)
    assert skills[1] == "+0.000 % [+0.000, +0.000]"
    assert ics == [format_interval(found.first.rank_ic), "none", "none"]
    assert "4,800 rows of 60 trading dates" in str(shown.title)


def test_a_run_does_not_differ_from_itself(table: pd.DataFrame) -> None:
    found = compare_runs(with_models(table, {}), with_models(table, {}), draws=50)
    assert found is not None
    skill, ic = found.difference.skill, found.difference.rank_ic
    ends = (skill.estimate, skill.low, skill.high, ic.estimate, ic.low, ic.high)
    assert ends == (0.0,) * 6


def test_only_rows_that_both_tested_are_compared(table: pd.DataFrame) -> None:
    late = with_models(table[table["trading_date"] >= table["trading_date"].iloc[20 * 80]], {})
    found = compare_runs(with_models(table, {}), late, draws=50)
    assert found is not None
    assert (found.rows, found.dates) == (40 * 80, 40)
    assert found.difference.rank_ic.estimate == pytest.approx(0, abs=1e-12)


def test_other_bars_are_not_compared(table: pd.DataFrame) -> None:
    other = predictions(strength=0.2, seed=1, dates=60)
    assert compare_runs(with_models(table, {}), with_models(other, {})) is None
    moved = other.assign(time=other["time"] + pd.Timedelta("1000D"))
    assert compare_runs(with_models(table, {}), with_models(moved, {})) is None
    assert comparison_tables(None, "a", "b") == [
        "a and b tested no rows in common: nothing can be paired."
    ]


def test_a_row_of_several_folds_counts_once(table: pd.DataFrame) -> None:
    again = table.assign(score=table["score"] + 0.1, fold=1)
    both = pd.concat([with_models(table, {}), with_models(again, {})], ignore_index=True)
    rows = net_rows(both)
    assert len(rows) == len(table)
    assert rows["score"].to_numpy() == pytest.approx(table["score"].to_numpy() + 0.05)
