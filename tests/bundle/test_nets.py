"""Scores of one net and of many members, in blocks of a fixed number of members."""

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


def unchanged(scores: Scores) -> Scores:
    return scores


def nets_of(seeds: range) -> Nets:
    states = MemberStates([net_of(seed) for seed in seeds])
    stack = states.stack(states.weights, range(len(states)))
    return Nets(net_of(999), sigmoid, unchanged, stack)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("members", [1, 16, 35])
def test_member_scores_match_those_of_its_net_alone(x: Tensor, members: int) -> None:
    nets = nets_of(range(members))
    blocks = list(nets.scores(x))
    scores = np.concatenate(blocks)
    assert nets.members == members
    assert scores.shape == (members, ROWS)
    for k in (0, members // 2, members - 1):
        alone = score_rows(net_of(k), sigmoid, x)
        np.testing.assert_allclose(scores[k], alone, rtol=0, atol=2e-7)


def test_member_blocks_have_a_fixed_maximum_size(x: Tensor) -> None:
    """The memory of a scoring pass does not grow with the number of members."""
    blocks = [block.shape for block in nets_of(range(40)).scores(x)]
    assert blocks == [(16, ROWS), (16, ROWS), (8, ROWS)]
    assert MEMBER_BLOCK == 16


def test_score_depends_only_on_its_row_and_member(x: Tensor) -> None:
    full = np.concatenate(list(nets_of(range(20)).scores(x)))
    fewer = np.concatenate(list(nets_of(range(3)).scores(x[:100])))
    assert np.array_equal(fewer, full[:3, :100])
    last = np.concatenate(list(nets_of(range(16, 20)).scores(x)))
    assert np.array_equal(last, full[16:])


def test_single_net_is_scored_without_members(x: Tensor) -> None:
    nets = Nets(net_of(5), sigmoid, unchanged)
    (scores,) = nets.scores(x)
    assert nets.members == 1
    assert np.array_equal(scores[0], score_rows(net_of(5), sigmoid, x))


def test_scores_are_converted_to_ranks_per_block(x: Tensor) -> None:
    plain = nets_of(range(17))
    halved = Nets(plain.net, plain.link, lambda scores: scores / 2, plain.stack)
    for one, other in zip(plain.scores(x), halved.scores(x), strict=True):
        assert np.array_equal(one / 2, other)
