"""Scores of one net and of many, in blocks that do not grow with their number."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_fin.bundle.predictions import MEMBER_BLOCK, SCORE_BLOCK, Nets, Scores, score_rows
from robust_fin.models.mlp import sigmoid
from robust_fin.training.population.members import MemberStates
from tests.populations import Foreign

ROWS = SCORE_BLOCK + 700


def net_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Foreign(3, width=4, inner=nn.Dropout(0.5)).train()


def as_they_are(scores: Scores) -> Scores:
    return scores


def nets_of(seeds: range) -> Nets:
    states = MemberStates([net_of(seed) for seed in seeds])
    stack = states.stack(states.weights, range(len(states)))
    return Nets(net_of(999), sigmoid, as_they_are, stack)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("members", [1, 16, 35])
def test_each_member_scores_as_its_net_alone_does(x: Tensor, members: int) -> None:
    nets = nets_of(range(members))
    blocks = list(nets.scores(x))
    found = np.concatenate(blocks)
    assert nets.members == members
    assert found.shape == (members, ROWS)
    for k in (0, members // 2, members - 1):
        alone = score_rows(net_of(k), sigmoid, x)
        np.testing.assert_allclose(found[k], alone, rtol=0, atol=2e-7)


def test_no_block_is_larger_than_another_run_of_any_size_would_have(x: Tensor) -> None:
    """So the memory of a scoring pass does not grow with the number of members."""
    blocks = [block.shape for block in nets_of(range(40)).scores(x)]
    assert blocks == [(16, ROWS), (16, ROWS), (8, ROWS)]
    assert MEMBER_BLOCK == 16


def test_a_score_depends_on_its_row_and_member_alone_to_the_last_bit(x: Tensor) -> None:
    whole = np.concatenate(list(nets_of(range(20)).scores(x)))
    fewer = np.concatenate(list(nets_of(range(3)).scores(x[:100])))
    assert np.array_equal(fewer, whole[:3, :100])
    last = np.concatenate(list(nets_of(range(16, 20)).scores(x)))
    assert np.array_equal(last, whole[16:])


def test_one_net_is_scored_without_members(x: Tensor) -> None:
    nets = Nets(net_of(5), sigmoid, as_they_are)
    (scores,) = nets.scores(x)
    assert nets.members == 1
    assert np.array_equal(scores[0], score_rows(net_of(5), sigmoid, x))


def test_scores_are_brought_into_rank_units_block_by_block(x: Tensor) -> None:
    plain = nets_of(range(17))
    halved = Nets(plain.net, plain.link, lambda scores: scores / 2, plain.stack)
    for one, other in zip(plain.scores(x), halved.scores(x), strict=True):
        assert np.array_equal(one / 2, other)
