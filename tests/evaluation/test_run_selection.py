import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import SPA
from rich.table import Table
from scipy.stats import spearmanr

from robust_fin.evaluation.run_selection import (
    compare_runs,
    comparison_tables,
    daily_series,
    judge_selection,
    net_rows,
    selection_sentences,
)
from robust_fin.evaluation.significance import judge
from robust_fin.evaluation.verdict import format_interval, format_percent_interval
from robust_fin.metrics import huber_terms
from tests.evaluation.tables import predictions, with_models


def three_models(*, dates: int = 4, a_day: int = 30, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = dates * a_day
    shared = pd.DataFrame(
        {
            "trading_date": np.datetime64("2024-01-01", "s") + np.repeat(np.arange(dates), a_day),
            "target": rng.uniform(size=rows),
            "outcome": np.round(rng.normal(size=rows), 1),
        }
    )
    scores = {"constant": np.full(rows, 0.5), "net": rng.uniform(0.4, 0.6, rows)}
    scores["ridge"] = rng.uniform(size=rows)
    return pd.concat([shared.assign(model=m, score=s) for m, s in scores.items()])


def series(*, gain: float, dates: int = 90, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    days = pd.Index(np.datetime64("2024-01-01", "s") + np.arange(dates) * 86400)
    ic = gain + rng.normal(scale=0.1, size=dates)
    return pd.DataFrame({"ic": ic, "gain": 0.01 * (gain + 0.1 * rng.normal(size=dates))}, days)


def test_daily_series_has_rank_ic_and_gain_per_date() -> None:
    table = three_models()
    table.iloc[-1, table.columns.get_loc("outcome")] = np.nan  # of ridge alone
    result = daily_series(table)
    assert len(result) == 4
    net = table[table["model"] == "net"]
    for date, rows in net.groupby("trading_date"):
        score, target = rows["score"].to_numpy(), rows["target"].to_numpy()
        ic = spearmanr(score, rows["outcome"]).statistic
        assert result.loc[date, "ic"] == pytest.approx(ic, rel=1e-9)
        gain = huber_terms(0.5, target).mean() - huber_terms(score, target).mean()
        assert result.loc[date, "gain"] == pytest.approx(gain, rel=1e-9)


def test_picking_a_truly_good_run_is_not_overfitting() -> None:
    runs = {f"run {k}": series(gain=0.0, seed=k) for k in range(5)}
    runs["good"] = series(gain=0.1, seed=9)
    result = judge_selection(runs)
    assert result.dates == 90
    assert result.overfitting is not None
    assert result.spa_test is not None
    assert (result.overfitting.blocks, result.overfitting.probability) == (16, 0)
    assert result.names[result.spa_test.best] == "good"
    gains = np.stack([one["gain"] for one in runs.values()], axis=1)
    spread = gains.std(axis=0)  # nearly independent dates
    test = SPA(np.zeros(90), -gains / spread, block_size=1, reps=500, seed=0)
    test.compute()
    assert result.spa_test.consistent == pytest.approx(test.pvalues["consistent"], abs=0.02)
    picked, best = selection_sentences(result)
    assert picked.startswith("Picking the best of these 6 by ICIR: probability of backtest")
    assert "0.00. This is the share of 12,870 ways to halve 90 dates" in picked
    assert best.startswith("The best of these 6 by skill, good, is better than the constant: SPA")


def test_picking_among_noise_is_chance() -> None:
    result = judge_selection({str(k): series(gain=0.0, seed=k) for k in range(6)})
    assert result.overfitting is not None
    assert result.spa_test is not None
    assert result.overfitting.probability > 0.3
    assert result.spa_test.consistent > 0.05
    assert (
        "is not shown to beat it: SPA test against the constant" in selection_sentences(result)[1]
    )


def test_only_shared_dates_count() -> None:
    one, other = series(gain=0.0, seed=0), series(gain=0.0, seed=1)
    result = judge_selection({"a": one.iloc[:60], "b": other.iloc[31:]})
    assert (result.dates, result.overfitting, result.spa_test) == (29, None, None)
    assert selection_sentences(result) == [
        "No PBO and no SPA: the 2 runs share 29 trading dates, and 30 are needed."
    ]


def test_missing_rank_ic_counts_as_0() -> None:
    flat = series(gain=0.0, seed=0).assign(ic=np.nan)
    good = series(gain=0.3, seed=1)
    result = judge_selection({"flat": flat, "good": good})
    assert result.overfitting is not None
    assert result.overfitting.probability == 0


def test_runs_equal_to_the_constant_are_mentioned() -> None:
    flat = series(gain=0.0, seed=0).assign(ic=np.nan, gain=0.0)
    assert selection_sentences(judge_selection({"a": flat, "b": flat})) == [
        "No PBO and no SPA: none of the 2 runs differs from the constant."
    ]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return predictions(strength=0.2, dates=60)


def test_two_runs_compare_like_a_net_and_its_baseline(table: pd.DataFrame) -> None:
    other = table["score"].to_numpy() + 0.05 * np.random.default_rng(0).normal(size=len(table))
    one, two = with_models(table, {}), with_models(table.assign(score=other), {})
    result = compare_runs(one, two, draws=200)
    assert result is not None
    assert (result.rows, result.dates) == (len(table), 60)
    judged = judge(with_models(table, {"ridge": other}), draws=200)
    assert result.difference == judged.against["ridge"]
    assert result.first == judged.net
    assert result.second.rank_ic == judged.baselines["ridge"].rank_ic


def test_comparison_table_shows_both_runs_and_their_difference(table: pd.DataFrame) -> None:
    result = compare_runs(
        with_models(table, {}), with_models(table.assign(score=0.5), {}), draws=50
    )
    assert result is not None
    (shown,) = comparison_tables(result, "a", "b")
    assert isinstance(shown, Table)
    names, skills, ics = (list(column.cells) for column in shown.columns)
    assert names == ["a", "b", "a vs b"]
    assert skills[0] == skills[2] == format_percent_interval(result.first.skill)
    assert skills[1] == "+0.000 % [+0.000, +0.000]"
    assert ics == [format_interval(result.first.rank_ic), "none", "none"]
    assert "4,800 rows of 60 trading dates" in str(shown.title)


def test_run_does_not_differ_from_itself(table: pd.DataFrame) -> None:
    result = compare_runs(with_models(table, {}), with_models(table, {}), draws=50)
    assert result is not None
    skill, ic = result.difference.skill, result.difference.rank_ic
    ends = (skill.estimate, skill.low, skill.high, ic.estimate, ic.low, ic.high)
    assert ends == (0.0,) * 6


def test_only_shared_rows_are_compared(table: pd.DataFrame) -> None:
    late = with_models(table[table["trading_date"] >= table["trading_date"].iloc[20 * 80]], {})
    result = compare_runs(with_models(table, {}), late, draws=50)
    assert result is not None
    assert (result.rows, result.dates) == (40 * 80, 40)
    assert result.difference.rank_ic.estimate == pytest.approx(0, abs=1e-12)


def test_runs_on_other_bars_are_not_compared(table: pd.DataFrame) -> None:
    other = predictions(strength=0.2, seed=1, dates=60)
    assert compare_runs(with_models(table, {}), with_models(other, {})) is None
    moved = other.assign(time=other["time"] + pd.Timedelta("1000D"))
    assert compare_runs(with_models(table, {}), with_models(moved, {})) is None
    assert comparison_tables(None, "a", "b") == [
        "a and b tested no rows in common: nothing can be paired."
    ]


def test_row_of_several_folds_counts_once(table: pd.DataFrame) -> None:
    again = table.assign(score=table["score"] + 0.1, fold=1)
    both = pd.concat([with_models(table, {}), with_models(again, {})], ignore_index=True)
    rows = net_rows(both)
    assert len(rows) == len(table)
    assert rows["score"].to_numpy() == pytest.approx(table["score"].to_numpy() + 0.05)
