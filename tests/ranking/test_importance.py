import numpy as np
import pytest
from scipy.stats import spearmanr

from robust_fin.metrics import huber_loss, skill
from robust_fin.ranking.importance import (
    ScoredPart,
    carried,
    importances,
    part_sums,
    shuffled_dates,
)

DAY = np.timedelta64(1, "D")


def part(
    *, strength: float = 0.2, seed: int = 0, dates: int = 60, a_day: int = 50, noise: float = 0.0
) -> ScoredPart:
    """Columns: what the forecast uses, a copy of it, and one that it uses by `noise`."""
    rng = np.random.default_rng(seed)
    rows = dates * a_day
    known, other = rng.normal(size=(2, rows))
    outcome = strength * known + rng.normal(size=rows)
    target = (outcome.argsort().argsort() + 0.5) / rows
    days = np.datetime64("2024-01-01", "s") + np.repeat(np.arange(dates), a_day) * DAY

    def forecast(x: np.ndarray) -> np.ndarray:
        return 0.5 + 0.28 * strength * (x[:, 0] + x[:, 1]) / 2 + noise * x[:, 2]

    return ScoredPart(np.stack([known, known, other], axis=1), target, outcome, days, 0.5, forecast)


def test_dates_stay_whole_and_each_is_rolled_round() -> None:
    starts = np.array([0, 4, 9])
    moved = shuffled_dates(starts, rows=11, draw=np.random.default_rng(3))
    assert sorted(moved.tolist()) == list(range(11))
    date = np.searchsorted(starts, moved, side="right") - 1
    assert np.count_nonzero(np.diff(date)) == 2
    for number, (first, size) in enumerate([(0, 4), (4, 5), (9, 2)]):
        inside = moved[date == number] - first
        assert ((np.diff(inside) % size) == 1).all()


def test_orders_move_the_clock_too() -> None:
    rng = np.random.default_rng(0)
    starts = np.arange(0, 5000, 50)
    clock = np.tile(np.arange(50.0), 100)
    moved = clock[shuffled_dates(starts, rows=5000, draw=rng)]
    assert abs(np.corrcoef(clock, moved)[0, 1]) < 0.1


def test_what_the_forecast_carries_is_its_spearman_correlation_and_skill() -> None:
    one = part(strength=0.3)
    rank_ic, gained = carried([part_sums(one, [], repeats=1, seed=0)], draws=200, seed=0)
    score = one.forecast(one.x)
    assert rank_ic.estimate == pytest.approx(spearmanr(score, one.outcome).statistic, rel=1e-9)
    trivial = huber_loss(np.full_like(score, 0.5), one.target)
    expected = skill(huber_loss(score, one.target), trivial)
    assert gained.estimate == pytest.approx(expected, rel=1e-9)
    assert rank_ic.low < rank_ic.estimate < rank_ic.high


def test_a_column_that_is_not_used_loses_nothing_and_all_of_what_is_used_loses_all() -> None:
    one = part(strength=0.3)
    sums = part_sums(one, [(0,), (2,), (0, 1)], repeats=4, seed=1)
    alone, unused, together = importances([sums], draws=200, seed=0)
    assert unused.rank_ic.estimate == unused.rank_ic.low == unused.rank_ic.high == 0
    whole = carried([sums], draws=200, seed=0)[0].estimate
    assert together.rank_ic.estimate == pytest.approx(whole, abs=0.02)
    assert together.rank_ic.is_above(0)
    assert together.skill.is_above(0)
    # its copy still tells what it told
    assert 0 < alone.rank_ic.estimate < 0.6 * together.rank_ic.estimate


def test_parts_add_up_and_each_is_there_alone() -> None:
    parts = [part(seed=1, strength=0.4), part(seed=2, strength=0.1)]
    sums = [part_sums(one, [(0, 1)], repeats=5, seed=0) for one in parts]
    (found,) = importances(sums, draws=200, seed=0)
    for number in (0, 1):
        (alone,) = importances(sums[number : number + 1], draws=2, seed=0)
        assert found.by_part[number] == alone.rank_ic.estimate
    assert found.by_part[0] > found.by_part[1] + 0.1
    assert found.rank_ic.estimate == pytest.approx(np.mean(found.by_part), abs=1e-9)


def test_a_forecast_that_ranks_nothing_loses_nothing() -> None:
    sums = part_sums(part(strength=0.0), [(0,)], repeats=2, seed=0)
    (found,) = importances([sums], draws=20, seed=0)
    assert found.rank_ic.low == found.rank_ic.high == found.by_part[0] == 0
    assert np.isnan(carried([sums], draws=20, seed=0)[0].estimate)


def test_the_interval_is_as_wide_as_the_spread_over_fresh_samples_or_a_little_wider() -> None:
    def found(seed: int, draws: int) -> tuple[float, float, float]:
        sums = part_sums(part(seed=seed, dates=40), [(0, 1)], repeats=3, seed=seed)
        (one,) = importances([sums], draws=draws, seed=seed)
        return one.rank_ic.estimate, one.rank_ic.low, one.rank_ic.high

    spread = np.std([found(seed, 2)[0] for seed in range(60)])
    widths = [
        (high - low) / (2 * 1.96) for _, low, high in (found(s, 300) for s in range(200, 205))
    ]
    assert 0.9 * spread < np.mean(widths) < 1.4 * spread


def test_the_interval_of_a_column_that_tells_nothing_holds_zero_or_less() -> None:
    above = 0
    for seed in range(20):
        sums = part_sums(part(seed=seed, noise=0.03), [(2,)], repeats=3, seed=seed)
        above += importances([sums], draws=300, seed=seed)[0].rank_ic.is_above(0)
    assert above <= 3  # 2.5 % of 20 are expected
