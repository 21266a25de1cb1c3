import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from robust_fin.errors import BundleError
from robust_fin.evaluation.significance import judge, significance
from robust_fin.metrics import huber_loss, skill
from tests.evaluation.tables import predictions, with_models


def test_estimates_are_the_metrics_of_the_whole_span() -> None:
    table = predictions(strength=0.1)
    found = significance(table, trivial=0.5, draws=50)
    score, target = table["score"].to_numpy(), table["target"].to_numpy()
    expected = skill(huber_loss(score, target), huber_loss(np.full_like(score, 0.5), target))
    assert found.skill.estimate == pytest.approx(expected, rel=1e-9)
    assert found.rank_ic.estimate == pytest.approx(
        spearmanr(table["score"], table["outcome"]).statistic, rel=1e-9
    )
    assert found.dates == 120


def test_daily_figures_are_those_of_each_date() -> None:
    table = predictions(strength=0.2)
    found = significance(table, trivial=0.5, draws=50)
    daily = np.array(
        [
            spearmanr(rows["score"], rows["outcome"]).statistic
            for _, rows in table.groupby("trading_date")
        ]
    )
    assert found.daily_ic.estimate == pytest.approx(daily.mean(), rel=1e-9)
    assert found.icir.estimate == pytest.approx(daily.mean() / daily.std(ddof=1), rel=1e-9)


def test_a_tie_is_half_a_hit() -> None:
    table = predictions(strength=0.1, dates=1, a_day=5)
    table["score"] = [0.6, 0.4, 0.6, 0.5, 0.6]
    table["outcome"] = [1e-4, 1e-4, 0.0, -1e-4, 2e-4]
    found = significance(table, trivial=0.5, draws=20)
    assert found.hit_rate.estimate == pytest.approx((1 + 0 + 0.5 + 0.5 + 1) / 5)
    assert found.tie_share == pytest.approx(2 / 5)


def test_a_coin_hits_half_whatever_the_share_of_ties() -> None:
    table = predictions(strength=0.0, dates=200)
    table["score"] = 0.5 + np.random.default_rng(1).normal(size=len(table))
    table.loc[::3, "outcome"] = 0.0
    found = significance(table, trivial=0.5)
    assert found.hit_rate.low < 0.5 < found.hit_rate.high
    assert found.hit_rate.estimate == pytest.approx(0.5, abs=0.01)


def test_the_interval_is_as_wide_as_the_spread_over_fresh_samples() -> None:
    many = [
        significance(predictions(strength=0.1, seed=s), trivial=0.5, draws=2) for s in range(60)
    ]
    spread = np.std([one.rank_ic.estimate for one in many])
    interval = significance(predictions(strength=0.1, seed=99), trivial=0.5, draws=2000).rank_ic
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(spread, rel=0.35)


def test_a_difference_to_oneself_is_exactly_nothing() -> None:
    table = predictions(strength=0.1)
    found = judge(with_models(table, {"ridge": table["score"].to_numpy()})).against["ridge"]
    for one in (found.skill, found.rank_ic):
        assert (one.estimate, one.low, one.high) == (0.0, 0.0, 0.0)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    table = predictions(strength=0.1)
    near = table["score"].to_numpy() + 0.002 * np.random.default_rng(0).normal(size=len(table))
    found = judge(with_models(table, {"ridge": near}))
    apart, alone = found.against["ridge"].rank_ic, found.net.rank_ic
    assert apart.estimate == pytest.approx(
        alone.estimate - found.baselines["ridge"].rank_ic.estimate, rel=1e-9
    )
    assert apart.high - apart.low < 0.3 * (alone.high - alone.low)


def test_the_difference_to_the_constant_is_the_skill() -> None:
    found = judge(with_models(predictions(strength=0.1), {}))
    assert found.against["constant"].skill == found.net.skill
    assert np.isnan(found.against["constant"].rank_ic.estimate)


def test_rows_without_an_outcome_are_left_out() -> None:
    table = with_models(predictions(strength=0.1), {})
    later = table.assign(outcome=np.nan, target=np.nan)
    both = pd.concat([table, later], ignore_index=True)
    assert judge(both).net == judge(table).net


@pytest.mark.parametrize("missing", ["net", "constant"])
def test_a_table_without_net_or_constant_is_refused(missing: str) -> None:
    table = with_models(predictions(strength=0.1), {"ridge": np.zeros(9600)})
    with pytest.raises(BundleError, match=rf"no rows of model {missing}, only of .*ridge"):
        judge(table[table["model"] != missing])


def test_models_with_other_rows_are_refused() -> None:
    table = with_models(predictions(strength=0.1), {"ridge": np.zeros(9600)})
    with pytest.raises(BundleError, match=r"other rows of ridge \(9599\) than of the net \(9600\)"):
        judge(table.iloc[:-1])


def test_the_same_seed_gives_the_same_interval() -> None:
    table = predictions(strength=0.1)
    one, same, other = (significance(table, trivial=0.5, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one.skill.low != other.skill.low
