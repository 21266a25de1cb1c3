import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from robust_fin.errors import BundleError
from robust_fin.evaluation.significance import judge, rows_by_model, significance, skill_path
from robust_fin.metrics import huber_loss, skill
from tests.evaluation.tables import predictions, with_models


def test_estimates_are_the_metrics_of_the_full_span() -> None:
    table = predictions(strength=0.1)
    result = significance(table, trivial=0.5, draws=50)
    score, target = table["score"].to_numpy(), table["target"].to_numpy()
    expected = skill(huber_loss(score, target), huber_loss(np.full_like(score, 0.5), target))
    assert result.skill.estimate == pytest.approx(expected, rel=1e-9)
    assert result.rank_ic.estimate == pytest.approx(
        spearmanr(table["score"], table["outcome"]).statistic, rel=1e-9
    )
    assert result.dates == 120


def test_daily_metrics_match_spearman_per_date() -> None:
    table = predictions(strength=0.2)
    result = significance(table, trivial=0.5, draws=50)
    daily = np.array(
        [
            spearmanr(rows["score"], rows["outcome"]).statistic
            for _, rows in table.groupby("trading_date")
        ]
    )
    assert result.daily_ic.estimate == pytest.approx(daily.mean(), rel=1e-9)
    assert result.icir.estimate == pytest.approx(daily.mean() / daily.std(ddof=1), rel=1e-9)


def test_tie_is_half_a_hit() -> None:
    table = predictions(strength=0.1, dates=1, a_day=5)
    table["score"] = [0.6, 0.4, 0.6, 0.5, 0.6]
    table["outcome"] = [1e-4, 1e-4, 0.0, -1e-4, 2e-4]
    result = significance(table, trivial=0.5, draws=20)
    assert result.hit_rate.estimate == pytest.approx((1 + 0 + 0.5 + 0.5 + 1) / 5)
    assert result.tie_share == pytest.approx(2 / 5)


def test_random_forecast_has_hit_rate_half_despite_ties() -> None:
    table = predictions(strength=0.0, dates=200)
    table["score"] = 0.5 + np.random.default_rng(1).normal(size=len(table))
    table.loc[::3, "outcome"] = 0.0
    result = significance(table, trivial=0.5)
    assert result.hit_rate.low < 0.5 < result.hit_rate.high
    assert result.hit_rate.estimate == pytest.approx(0.5, abs=0.01)


def test_interval_is_as_wide_as_the_spread_over_fresh_samples() -> None:
    many = [
        significance(predictions(strength=0.1, seed=s), trivial=0.5, draws=2) for s in range(60)
    ]
    spread = np.std([one.rank_ic.estimate for one in many])
    intervals = [
        significance(predictions(strength=0.1, seed=s), trivial=0.5, draws=400).rank_ic
        for s in range(12)
    ]
    widths = [(one.high - one.low) / (2 * 1.96) for one in intervals]
    assert np.mean(widths) == pytest.approx(spread, rel=0.15)


def test_difference_of_a_model_to_itself_is_exactly_0() -> None:
    table = predictions(strength=0.1)
    result = judge(with_models(table, {"ridge": table["score"].to_numpy()})).against["ridge"]
    for one in (result.skill, result.rank_ic):
        assert (one.estimate, one.low, one.high) == (0.0, 0.0, 0.0)


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    table = predictions(strength=0.1)
    near = table["score"].to_numpy() + 0.002 * np.random.default_rng(0).normal(size=len(table))
    result = judge(with_models(table, {"ridge": near}))
    apart, alone = result.against["ridge"].rank_ic, result.net.rank_ic
    assert apart.estimate == pytest.approx(
        alone.estimate - result.baselines["ridge"].rank_ic.estimate, rel=1e-9
    )
    assert apart.high - apart.low < 0.3 * (alone.high - alone.low)


def test_difference_to_the_constant_is_the_skill() -> None:
    result = judge(with_models(predictions(strength=0.1), {}))
    assert result.against["constant"].skill == result.net.skill
    assert np.isnan(result.against["constant"].rank_ic.estimate)


def test_rows_without_an_outcome_are_left_out() -> None:
    table = with_models(predictions(strength=0.1), {})
    later = table.assign(outcome=np.nan, target=np.nan)
    both = pd.concat([table, later], ignore_index=True)
    assert judge(both).net == judge(table).net


@pytest.mark.parametrize("missing", ["net", "constant"])
def test_table_without_net_or_constant_is_rejected(missing: str) -> None:
    table = with_models(predictions(strength=0.1), {"ridge": np.zeros(9600)})
    with pytest.raises(BundleError, match=rf"no rows of model {missing}, only of .*ridge"):
        judge(table[table["model"] != missing])


def test_models_with_different_rows_are_rejected() -> None:
    table = with_models(predictions(strength=0.1), {"ridge": np.zeros(9600)})
    with pytest.raises(BundleError, match=r"other rows of ridge \(9599\) than of the net \(9600\)"):
        judge(table.iloc[:-1])


def test_same_seed_gives_the_same_interval() -> None:
    table = predictions(strength=0.1)
    one, same, other = (significance(table, trivial=0.5, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one.skill.low != other.skill.low


def test_skill_path_by_hand() -> None:
    dates = np.array(["2024-01-30", "2024-01-31", "2024-02-01"], dtype="datetime64[s]")
    rows = {"trading_date": dates, "time": dates, "contract": "A", "fold": 0, "outcome": 0.0}
    table = pd.DataFrame(rows | {"target": [0.6, 0.4, 0.5]})
    net = table.assign(model="net", score=[0.6, 0.5, 0.6])
    path = skill_path({"net": net, "constant": table.assign(model="constant", score=0.5)})
    # the constant loses 0.005, 0.005 and 0; the net 0, 0.005 and 0.005
    assert path.saved["net"] == pytest.approx([0.5, 0.5, 0.0])
    assert path.month_ends().tolist() == [1, 2]
    assert list(path.saved) == ["net"]


def test_skill_path_ends_at_the_skill() -> None:
    table = predictions(strength=0.2)
    other = 0.5 + 0.1 * np.random.default_rng(0).normal(size=len(table))
    run = with_models(table, {"ridge": other})
    result, path = judge(run, draws=10), skill_path(rows_by_model(run))
    assert path.saved["net"][-1] == pytest.approx(result.net.skill.estimate, rel=1e-9)
    assert path.saved["ridge"][-1] == pytest.approx(result.baselines["ridge"].skill.estimate)
    assert path.dates.size == result.net.dates
