"""Weights of many members as rows, and what becomes of those that are not finite."""

import math

import pytest
import torch
from torch import nn

from robust_fin.training.population.members import NEVER, MemberStates
from tests.populations import Foreign

MEMBERS = 4


def net_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Foreign(5, width=3, inner=nn.Linear(3, 3))


@pytest.fixture
def states() -> MemberStates:
    return MemberStates([net_of(k) for k in range(MEMBERS)])


def test_a_member_has_the_parameters_and_buffers_of_its_net(states: MemberStates) -> None:
    stack = states.stack(states.weights, [2, 0])
    for place, seed in enumerate((2, 0)):
        wanted = net_of(seed).state_dict()
        assert stack.keys() == wanted.keys()
        assert all(torch.equal(stack[name][place], one) for name, one in wanted.items())
    assert states.weights.shape == (MEMBERS, 5 * 3 + 3 + 3 * 3 + 3 + 3)  # without what is frozen
    assert len(states) == MEMBERS


def test_a_state_is_a_view_and_a_copy_is_not(states: MemberStates) -> None:
    states.state(1).parameters.fill_(7)
    states.state(1).copied().parameters.fill_(8)
    assert (states.weights[1] == 7).all()
    assert not (states.weights[0] == 7).any()


def test_the_first_figure_is_kept_and_then_only_better_ones(states: MemberStates) -> None:
    for count, value in enumerate((math.nan, -0.5, 0.1, 0.1, math.nan, 0.0), start=1):
        states.weights[0], states.count[0] = float(count), count
        states.keep_better(0, value)
        best = {1: 1, 2: 2}.get(count, 3)
        assert states.best_count.tolist() == [best, 0, 0, 0]
        assert (states.best[0] == best).all()
    assert float(states.best_value[0]) == 0.1
    assert not (states.best[1] == 1).any()


def test_where_val_chose_nothing_the_last_weights_count(states: MemberStates) -> None:
    states.count.fill_(5)
    states.weights[:2] = 5.0
    states.keep_better(0, 0.3)
    states.weights[:2], states.count[:] = 9.0, 9
    states.choose_last()
    assert states.best_count.tolist() == [5, 9, 9, 9]
    assert (states.best[0] == 5).all()
    assert (states.best[1] == 9).all()


@pytest.mark.parametrize("part", ["weights", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_has_overflown_is_frozen_and_dropped(
    states: MemberStates, part: str, value: float
) -> None:
    states.count[:] = 6
    before = states.weights.clone()
    getattr(states, part)[2, 4] = value
    assert states.freeze_overflown() == [2]
    assert states.living().tolist() == [True, True, False, True]
    assert states.frozen_at.tolist() == [NEVER, NEVER, 6, NEVER]
    assert torch.equal(states.weights[[0, 1, 3]], before[[0, 1, 3]])
    assert all(one.isfinite().all() for one in states.state_dict().values())
    assert states.freeze_overflown() == []


def test_a_member_that_is_left_out_never_lives(states: MemberStates) -> None:
    states.leave_out([0, 3])
    assert states.living().tolist() == [False, True, True, False]
    assert states.frozen_at.tolist() == [0, NEVER, NEVER, 0]


def test_a_checkpoint_holds_all_of_it(states: MemberStates) -> None:
    states.leave_out([1])
    states.count[0] = 3
    states.keep_better(0, 0.25)
    other = MemberStates([net_of(k + 10) for k in range(MEMBERS)])
    other.load_state_dict(states.state_dict())
    assert other.frozen_at.tolist() == [NEVER, 0, NEVER, NEVER]
    assert float(other.best_value[0]) == 0.25
    stacks = [one.stack(one.weights, range(MEMBERS)) for one in (states, other)]
    assert all(torch.equal(stacks[0][name], stacks[1][name]) for name in stacks[0])
