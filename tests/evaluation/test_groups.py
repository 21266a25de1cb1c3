import math

import numpy as np
import pytest

from robust_fin.evaluation.breakdowns import by_hour, by_month, group_metrics
from robust_fin.evaluation.significance import significance
from robust_fin.metrics import huber_loss, rank_ic, skill
from tests.evaluation.tables import predictions

HALF = 0.5


def trivial(rows: int) -> np.ndarray:
    return np.full(rows, HALF)


def test_a_group_has_the_figures_of_its_own_rows() -> None:
    net = predictions(strength=0.3, dates=40)
    names = np.array(["even", "odd"])[np.arange(len(net)) % 2]
    odd, even = group_metrics(
        net, names, ["odd", "even"], trivial=trivial(len(net)), draws=50, block=2.0
    )
    assert (odd.name, even.name, odd.rows, odd.dates) == ("odd", "even", 1600, 40)
    own = net[names == "odd"]
    score, outcome, target = (own[k].to_numpy() for k in ("score", "outcome", "target"))
    assert odd.rank_ic.estimate == pytest.approx(rank_ic(score, outcome), rel=1e-12)
    wanted = skill(huber_loss(score, target), huber_loss(trivial(1600), target))
    assert odd.skill.estimate == pytest.approx(wanted, rel=1e-12)
    assert odd.rank_ic.low < odd.rank_ic.estimate < odd.rank_ic.high


def test_one_group_of_all_rows_is_the_whole_span() -> None:
    net = predictions(strength=0.3, dates=60)
    whole = significance(net, trivial=HALF, draws=200)
    everything = np.full(len(net), "all")
    (one,) = group_metrics(
        net, everything, ["all"], trivial=trivial(len(net)), draws=200, block=whole.block
    )
    assert one.rank_ic == whole.rank_ic
    assert one.skill == whole.skill


def test_months_are_of_the_trading_date_and_few_dates_have_no_interval() -> None:
    net = predictions(strength=0.3, dates=34)  # from 2024-01-01 on
    january, february = by_month(net, trivial=trivial(len(net)), draws=50, block=1.0)
    assert (january.name, january.dates, january.rows) == ("2024-01", 31, 31 * 80)
    assert (february.name, february.dates) == ("2024-02", 3)
    assert math.isnan(february.rank_ic.low)
    assert not math.isnan(february.rank_ic.estimate)
    assert january.rank_ic.is_above(0)


def test_hours_are_of_chicago_and_follow_the_session() -> None:
    net = predictions(strength=0.3, dates=30, a_day=80)  # 40 hours from 18:00 Chicago on
    hours = by_hour(net, trivial=trivial(len(net)), draws=20, block=1.0)
    names = [one.name for one in hours]
    assert names == [f"{hour % 24:02d}:00" for hour in range(17, 41)]
    assert sum(one.rows for one in hours) == len(net)
    assert [one.rows for one in hours if one.name in ("18:00", "17:00")] == [60, 120]


def test_the_interval_of_a_group_covers_what_is_planted() -> None:
    """Of 60 tables, the interval of one hour's rank IC covers the truth about as often as said."""
    covered = 0
    for seed in range(60):
        net = predictions(strength=0.2, seed=seed, dates=60, a_day=40)
        names = np.full(len(net), "a")
        (one,) = group_metrics(net, names, ["a"], trivial=trivial(len(net)), draws=200, block=1.0)
        truth = 6 / math.pi * math.asin(0.2 / math.sqrt(1.04) / 2)  # Spearman's of a normal pair
        covered += one.rank_ic.low <= truth <= one.rank_ic.high
    assert 51 <= covered <= 60
