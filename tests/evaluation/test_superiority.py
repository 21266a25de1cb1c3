import math

import numpy as np
import pytest
from arch.bootstrap import SPA, StationaryBootstrap

from robust_fin.evaluation.intervals import date_weights
from robust_fin.evaluation.multiple_testing import long_run_variance, spa_test

BLOCK, DRAWS = 5, 400


def gains_of(*shifts: float, dates: int = 120, seed: int = 0, exact: bool = True) -> np.ndarray:
    """A run for every shift, each on a scale of its own.

    Args:
        shifts: the mean of each run, in standard errors of independent dates.
        dates: how many.
        seed: of the noise.
        exact: whether the sample has that mean, not only the law it is drawn from.
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(dates, 1))
    values = (0.5 * common + rng.normal(size=(dates, len(shifts)))) / math.sqrt(1.25)
    if exact:
        values -= values.mean(axis=0)
    return (values + np.array(shifts) / math.sqrt(dates)) * 10.0 ** -np.arange(len(shifts))


def drawn_by_arch(gains: np.ndarray, *, seed: int) -> np.ndarray:
    """Their samples as counts of dates."""
    sampled = StationaryBootstrap(BLOCK, np.arange(len(gains)), seed=seed).bootstrap(DRAWS)
    picked = [parts[0] for parts, _ in sampled]
    return np.array([np.bincount(one, minlength=len(gains)) for one in picked], dtype=np.float64)


@pytest.mark.parametrize(
    "shifts", [(0.0, 0.0, 0.0), (1.5, -0.5, -4.0), (0.4, -6.0, -1.0, -3.0, 0.2), (0.8,)]
)
def test_p_values_are_those_of_arch_on_the_same_samples(shifts: tuple[float, ...]) -> None:
    gains = gains_of(*shifts)
    spread = np.sqrt(long_run_variance(gains, block=BLOCK))
    # arch takes the greatest mean as it is, not over its standard error; here they are one
    test = SPA(np.zeros(len(gains)), -gains / spread, block_size=BLOCK, reps=DRAWS, seed=7)
    test.compute()
    ours = spa_test(gains, weights=drawn_by_arch(gains, seed=7), block=BLOCK)
    theirs = test.pvalues
    assert (ours.lower, ours.consistent, ours.upper) == (
        theirs["lower"],
        theirs["consistent"],
        theirs["upper"],
    )
    assert 0.01 < ours.consistent < 0.99  # the comparison says something


def test_the_three_p_values_differ_where_runs_are_poor() -> None:
    found = spa_test(
        gains_of(1.5, -0.5, -1.0, -6.0),
        weights=date_weights(120, draws=2000, seed=0, block=BLOCK),
        block=BLOCK,
    )
    assert found.lower < found.consistent < found.upper
    assert found.best == 0


def test_the_variance_is_that_of_arch_and_that_of_the_samples() -> None:
    gains = gains_of(0.0, 1.0)
    test = SPA(np.zeros(len(gains)), -gains, block_size=BLOCK, reps=2, seed=0)
    test.compute()
    ours = long_run_variance(gains, block=BLOCK)
    np.testing.assert_allclose(ours, test._loss_diff_var, rtol=1e-10)
    means = date_weights(120, draws=20_000, seed=1, block=BLOCK) @ gains / 120
    np.testing.assert_allclose(means.var(axis=0) * 120, ours, rtol=0.05)


def test_a_run_with_a_gain_is_found_among_many_without_and_noise_is_not() -> None:
    rejected = {0.0: 0, 5.0: 0}
    for seed in range(60):
        weights = date_weights(120, draws=300, seed=seed, block=2.0)
        for shift in rejected:
            gains = gains_of(shift, *([0.0] * 7), seed=seed, exact=False)
            rejected[shift] += spa_test(gains, weights=weights, block=2.0).consistent < 0.05
    assert rejected[5.0] >= 54
    assert rejected[0.0] <= 8  # 3 of 60 are expected


def test_a_choice_of_units_changes_nothing() -> None:
    gains, weights = gains_of(1.0, 0.3), date_weights(120, draws=500, seed=0, block=3.0)
    one = spa_test(gains, weights=weights, block=3.0)
    other = spa_test(gains * np.array([1e-6, 1e3]), weights=weights, block=3.0)
    assert (one.consistent, one.best) == (other.consistent, other.best)
    assert one.statistic == pytest.approx(other.statistic)


def test_a_run_that_is_the_benchmark_is_left_out() -> None:
    weights = date_weights(120, draws=500, seed=0, block=3.0)
    gains = gains_of(1.0)
    alone = spa_test(gains, weights=weights, block=3.0)
    beside = spa_test(np.column_stack([0 * gains, gains]), weights=weights, block=3.0)
    assert (beside.consistent, beside.best) == (alone.consistent, 1)
    assert math.isnan(spa_test(0 * gains, weights=weights, block=3.0).consistent)


def test_where_no_run_gains_nothing_is_claimed() -> None:
    weights = date_weights(120, draws=500, seed=0, block=3.0)
    found = spa_test(gains_of(-3.0, -2.0), weights=weights, block=3.0)
    assert (found.statistic, found.consistent, found.lower) == (0, 1, 1)
