import numpy as np
import pytest

from robust_fin.data.targets import apply_label_control
from robust_fin.errors import ConfigError

RANK, OUTCOME = np.array([0.0, 0.25, 1.0]), np.array([-2e-4, 0.0, 3e-4])


def test_kept_labels_are_the_same_arrays() -> None:
    rank, outcome = apply_label_control(RANK, OUTCOME, labels="kept", seed=0)
    assert rank is RANK
    assert outcome is OUTCOME


def test_shuffled_labels_keep_rank_and_outcome_together() -> None:
    rank, outcome = np.arange(1000.0), -np.arange(1000.0)
    mixed, moved = apply_label_control(rank, outcome, labels="shuffled", seed=3)
    assert sorted(mixed) == rank.tolist()
    assert moved.tolist() == (-mixed).tolist()
    assert abs(np.corrcoef(mixed, rank)[0, 1]) < 0.1
    assert (apply_label_control(rank, outcome, labels="shuffled", seed=3)[0] == mixed).all()
    assert (apply_label_control(rank, outcome, labels="shuffled", seed=4)[0] != mixed).any()


def test_swapped_labels_are_turned_round() -> None:
    rank, outcome = apply_label_control(RANK, OUTCOME, labels="swapped", seed=0)
    assert rank.tolist() == [1.0, 0.75, 0.0]
    assert outcome.tolist() == [2e-4, 0.0, -3e-4]


def test_another_word_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"debug.labels=mixed must be one of kept, shuffled, swapped"
    ):
        apply_label_control(RANK, OUTCOME, labels="mixed", seed=0)
