"""Choosing among trials: what is left of the best on dates that did not choose it."""

import numpy as np
import pytest

from robust_fin.evaluation.intervals import DateBootstrap
from robust_fin.evaluation.multiple_testing import BBCResult, bbc_cv

DATES = 17


def equal_trials(
    seed: int, *, trials: int = 60, shared: float = 0.0, dates: int = DATES
) -> np.ndarray:
    """Trials without skill; their standard error on all dates is 1 / sqrt(dates)."""
    draw = np.random.default_rng(seed)
    common = shared * draw.normal(size=(dates, 1))
    return (draw.normal(size=(dates, trials)) + common) / dates


def test_it_is_what_one_gets_sample_by_sample() -> None:
    gains = equal_trials(0, trials=4)
    found = bbc_cv(gains, reference=2, draws=50, seed=3)
    samples = DateBootstrap.for_series(*gains.T, draws=50, seed=3)
    skills, apart = [], []
    for weights in samples.weights:
        dates = [date for date in range(DATES) for _ in range(int(weights[date]))]
        others = [date for date in range(DATES) if date not in dates]
        winner = max(range(4), key=lambda trial: sum(gains[date, trial] for date in dates))
        share = DATES / len(others)
        skills.append(share * sum(gains[date, winner] for date in others))
        apart.append(skills[-1] - share * sum(gains[date, 2] for date in others))
    assert found.deflated.estimate == pytest.approx(np.mean(skills))
    assert found.difference is not None
    assert found.difference.estimate == pytest.approx(np.mean(apart))
    # Student's law is wider than the normal one, so the interval is wider than the percentiles'
    assert found.deflated.low < np.percentile(skills, 2.5)
    assert found.deflated.high > np.percentile(skills, 97.5)
    assert (found.trials, found.dates) == (4, DATES)
    assert found.best == int(np.argmax(gains.sum(axis=0)))
    assert found.skill == pytest.approx(gains.sum(axis=0).max())


def test_nothing_is_taken_off_where_there_was_no_choice() -> None:
    gains = np.full((6, 1), 0.25 / 6)
    found = bbc_cv(gains, reference=0, draws=100)
    assert (found.skill, found.deflated.estimate) == pytest.approx((0.25, 0.25))
    assert (found.deflated.low, found.deflated.high) == pytest.approx((0.25, 0.25))
    assert found.difference is not None
    assert (found.difference.low, found.difference.estimate, found.difference.high) == (0, 0, 0)


def test_a_hundred_copies_of_one_trial_are_one_trial() -> None:
    one = equal_trials(1, trials=1)
    copies = bbc_cv(np.repeat(one, 100, axis=1), draws=400, seed=5)
    alone = bbc_cv(one, draws=400, seed=5)
    for name in ("skill", "dates"):
        assert getattr(copies, name) == pytest.approx(getattr(alone, name))
    for end in ("estimate", "low", "high"):
        assert getattr(copies.deflated, end) == pytest.approx(getattr(alone.deflated, end))


def test_a_trial_that_is_better_on_every_date_keeps_all_of_it() -> None:
    gains = equal_trials(2, trials=20)
    gains[:, 7] = gains.max(axis=1) + 0.5 / DATES
    found = bbc_cv(gains, reference=0, draws=400)
    assert found.best == 7
    assert found.difference is not None
    assert found.difference.is_above(0)
    assert found.deflated.low < found.skill < found.deflated.high


def repeated(count: int, *, shared: float) -> list[BBCResult]:
    return [
        bbc_cv(equal_trials(seed, shared=shared), reference=0, draws=300, seed=seed)
        for seed in range(count)
    ]


@pytest.mark.parametrize("shared", [0.0, 3.0])
@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_among_equal_trials_the_best_has_no_skill_and_its_interval_says_so(
    count: int, shared: float
) -> None:
    found = repeated(count, shared=shared)
    error = np.sqrt((1 + shared**2) / DATES)  # of the skill of one trial
    left = np.array([one.deflated.estimate for one in found])
    flattered = np.array([one.skill for one in found])
    # 2.32 is what the greatest of 60 normal numbers is expected to be
    assert flattered.mean() == pytest.approx(2.32 / np.sqrt(DATES), abs=4 * error / np.sqrt(count))
    assert left.mean() == pytest.approx(0, abs=4 * error / np.sqrt(count))
    covered = np.mean([one.deflated.low <= 0 <= one.deflated.high for one in found])
    better = np.mean([one.difference.is_above(0) for one in found if one.difference is not None])
    assert covered >= 0.95
    assert better <= 0.025
