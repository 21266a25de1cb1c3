import numpy as np
import purgedcv
import pytest

from robust_fin.evaluation.multiple_testing import halves, pbo, pbo_block_count


def noise(*, dates: int, runs: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(dates, runs))


def test_every_half_is_taken_once() -> None:
    assert halves(4).astype(int).tolist() == [
        [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(("dates", "runs", "blocks"), [(103, 7, 8), (60, 2, 6), (90, 5, 10)])
def test_it_is_that_of_purgedcv(dates: int, runs: int, blocks: int) -> None:
    daily = noise(dates=dates, runs=runs, seed=dates)
    daily[:, 0] += 0.1
    ours = pbo(daily, blocks=blocks)
    theirs = purgedcv.probability_of_backtest_overfitting(daily.T, n_splits=blocks)
    assert ours.probability == theirs.pbo
    assert 0 < ours.probability < 1
    assert ours.ways == theirs.n_combos
    np.testing.assert_allclose(np.sort(ours.logits), np.sort(theirs.logits), rtol=1e-12)


def test_runs_that_never_change_or_agree_rank_as_purgedcv_ranks_them() -> None:
    daily = noise(dates=64, runs=4, seed=2)
    daily[:, 1] = 0.3
    daily[:, 3] = daily[:, 2]
    ours = pbo(daily, blocks=8)
    theirs = purgedcv.probability_of_backtest_overfitting(daily.T, n_splits=8)
    assert ours.probability == theirs.pbo
    np.testing.assert_allclose(np.sort(ours.logits), np.sort(theirs.logits), rtol=1e-12)


def test_a_run_that_is_better_throughout_is_not_overfitted_and_noise_is() -> None:
    daily = noise(dates=160, runs=10, seed=0)
    found = [pbo(noise(dates=160, runs=10, seed=s), blocks=8) for s in range(20)]
    assert np.mean([one.probability for one in found]) == pytest.approx(0.5, abs=0.12)
    daily[:, 4] += 1.0
    assert pbo(daily, blocks=8).probability == 0


def test_16_blocks_have_12870_halves() -> None:
    assert pbo(noise(dates=160, runs=3, seed=0), blocks=16).ways == 12_870


@pytest.mark.parametrize(
    ("dates", "blocks"), [(29, None), (30, 6), (39, 6), (40, 8), (79, 14), (80, 16), (900, 16)]
)
def test_so_many_blocks_fit(dates: int, blocks: int | None) -> None:
    assert pbo_block_count(dates) == blocks
