import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import SPA
from scipy.stats import spearmanr

from robust_fin.evaluation.run_selection import daily_series, judge_selection, selection_sentences
from robust_fin.metrics import huber_terms


def predictions(*, dates: int = 4, a_day: int = 30, seed: int = 0) -> pd.DataFrame:
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


def test_a_run_is_two_numbers_a_date() -> None:
    table = predictions()
    table.iloc[-1, table.columns.get_loc("outcome")] = np.nan  # of ridge alone
    found = daily_series(table)
    assert len(found) == 4
    net = table[table["model"] == "net"]
    for date, rows in net.groupby("trading_date"):
        score, target = rows["score"].to_numpy(), rows["target"].to_numpy()
        ic = spearmanr(score, rows["outcome"]).statistic
        assert found.loc[date, "ic"] == pytest.approx(ic, rel=1e-9)
        gain = huber_terms(0.5, target).mean() - huber_terms(score, target).mean()
        assert found.loc[date, "gain"] == pytest.approx(gain, rel=1e-9)


def test_a_good_run_among_poor_ones_is_picked_for_a_reason() -> None:
    runs = {f"run {k}": series(gain=0.0, seed=k) for k in range(5)}
    runs["good"] = series(gain=0.1, seed=9)
    found = judge_selection(runs)
    assert found.dates == 90
    assert found.overfitting is not None
    assert found.spa_test is not None
    assert (found.overfitting.blocks, found.overfitting.probability) == (16, 0)
    assert found.names[found.spa_test.best] == "good"
    gains = np.stack([one["gain"] for one in runs.values()], axis=1)
    spread = gains.std(axis=0)  # nearly independent dates
    test = SPA(np.zeros(90), -gains / spread, block_size=1, reps=500, seed=0)
    test.compute()
    assert found.spa_test.consistent == pytest.approx(test.pvalues["consistent"], abs=0.02)
    picked, best = selection_sentences(found)
    assert picked.startswith("Picking the best of these 6 by ICIR: probability of backtest")
    assert "0.00, the share of 12,870 ways to halve 90 dates" in picked
    assert best.startswith("The best of these 6 by skill, good, is better than the constant: SPA")


def test_noise_is_called_lots_that_are_drawn() -> None:
    found = judge_selection({str(k): series(gain=0.0, seed=k) for k in range(6)})
    assert found.overfitting is not None
    assert found.spa_test is not None
    assert found.overfitting.probability > 0.3
    assert found.spa_test.consistent > 0.05
    assert "is not shown to beat it: SPA test against the constant" in selection_sentences(found)[1]


def test_only_dates_that_all_were_tested_on_count() -> None:
    one, other = series(gain=0.0, seed=0), series(gain=0.0, seed=1)
    found = judge_selection({"a": one.iloc[:60], "b": other.iloc[31:]})
    assert (found.dates, found.overfitting, found.spa_test) == (29, None, None)
    assert selection_sentences(found) == [
        "No PBO and no SPA: the 2 runs share 29 trading dates, needed are 30."
    ]


def test_a_forecast_that_ranks_nothing_has_an_ic_of_0() -> None:
    flat = series(gain=0.0, seed=0).assign(ic=np.nan)
    good = series(gain=0.3, seed=1)
    found = judge_selection({"flat": flat, "good": good})
    assert found.overfitting is not None
    assert found.overfitting.probability == 0


def test_runs_that_are_the_constant_are_said_to_be() -> None:
    flat = series(gain=0.0, seed=0).assign(ic=np.nan, gain=0.0)
    assert selection_sentences(judge_selection({"a": flat, "b": flat})) == [
        "No PBO and no SPA: none of the 2 runs differs from the constant."
    ]
