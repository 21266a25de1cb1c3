"""Settings of members, and their weights as rows."""

import math

import pytest
import torch
from torch import nn

from robust_fin.errors import ConfigError
from robust_fin.runs.training import fit_settings
from robust_fin.training.population.members import (
    NEVER,
    Member,
    MemberStates,
    check_member_lists,
    check_val_limit,
    is_population,
    make_members,
)
from robust_fin.training.settings import TrainerSettings
from tests.populations import Foreign, settings


def test_default_members_have_consecutive_seeds() -> None:
    config = settings("plain", "population.members=3", "seed=7")
    lr, decay = config.optimizer.lr, config.optimizer.weight_decay
    wanted = tuple(Member(seed, seed, lr, decay, None, None, 0) for seed in (7, 8, 9))
    assert make_members(fit_settings(config), sets=1) == wanted


def test_every_data_set_has_the_same_members() -> None:
    config = settings("plain", "population.members=2", "population.lr=[0.1,0.2]")
    found = make_members(fit_settings(config), sets=3)
    assert [one.data for one in found] == [0, 0, 1, 1, 2, 2]
    assert [one.seed for one in found] == [0, 1] * 3
    assert [one.lr for one in found] == [0.1, 0.2] * 3


def test_lists_have_one_value_per_member() -> None:
    config = settings(
        "plain", "population.members=2", "population.seeds=[9,4]", "population.lr=[0,1]",
        "population.weight_decay=[0.5,0]", "population.delta=[0.1,2]", "population.dropout=[0,0.9]",
        "population.order=shared", "seed=5",
    )  # fmt: skip
    assert make_members(fit_settings(config), sets=1) == (
        Member(9, 5, 0.0, 0.5, 0.1, 0.0),
        Member(4, 5, 1.0, 0.0, 2.0, 0.9),
    )


def test_several_folds_are_a_population_with_one_member_each() -> None:
    config = settings("plain")
    assert not is_population(fit_settings(config).population, folds=1)
    assert is_population(fit_settings(config).population, folds=2)
    asked = fit_settings(settings("plain", "population.members=1"))
    assert is_population(asked.population, folds=1)
    assert [one.data for one in make_members(fit_settings(config), sets=2)] == [0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("members=0",), "population.members=0 must be a whole number above 0, or null"),
        (("members=-1",), "population.members=-1 must be"),
        (("members=2.5",), "population.members=2.5 must be"),
        (("members=many",), "population.members=many must be"),
        (("members=2", "order=nonsense"), "population.order=nonsense must be own or shared"),
        (("members=3", "lr=[0.1,0.2]"), "population.lr has 2 values, and population.members=3"),
        (("members=1", "seeds=[]"), "population.seeds has 0 values, and population.members=1"),
        (("members=2", "lr=0.1"), "population.lr=0.1 must be a list with one value per member"),
        (("members=2", "lr=fast"), "population.lr=fast must be a list"),
        (("members=2", "lr=[0.1,-0.2]"), "population.lr: -0.2 must be a finite number, at least 0"),
        (("members=2", "lr=[0.1,fast]"), "population.lr: fast must be a finite number"),
        (("members=2", "lr=[0.1,.inf]"), "population.lr: inf must be a finite number"),
        (("members=2", "lr=[0.1,.nan]"), "population.lr: nan must be a finite number"),
        (("members=2", "weight_decay=[0,-1]"), "population.weight_decay: -1 must be"),
        (("members=2", "delta=[0.1,0]"), "population.delta: 0 must be a finite number above 0"),
        (("members=2", "dropout=[0,1]"), r"population.dropout: 1 must be a number in \[0, 1\)"),
        (("members=2", "dropout=[-0.1,0]"), "population.dropout: -0.1 must be a number in"),
        (("members=2", "seeds=[0,-1]"), r"population.seeds: -1 must be a whole number in \[0, 42"),
        (("members=2", "seeds=[0,1.5]"), "population.seeds: 1.5 must be a whole number"),
        (("members=1", "seeds=[4294967296]"), "population.seeds: 4294967296 must be"),
    ],
    ids=str,
)
def test_invalid_population_settings_raise(words: tuple[str, ...], message: str) -> None:
    config = settings("plain", *(f"population.{word}" for word in words))
    with pytest.raises(ConfigError, match=message):
        fit_settings(config)


@pytest.mark.parametrize("name", ["seeds", "lr", "weight_decay", "delta"])
def test_lists_without_members_raise(name: str) -> None:
    config = settings("plain", f"population.{name}=[1]")
    with pytest.raises(
        ConfigError, match=rf"population.{name}=\[1\] has one value per member, but pop"
    ):
        is_population(fit_settings(config).population, folds=1)
    assert is_population(fit_settings(config).population, folds=2)


def test_list_without_effect_raises() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    bare = nn.Linear(2, 2)
    rates = fit_settings(settings("plain", "population.members=1", "population.dropout=[0.2]"))
    check_member_lists(rates, net)
    with pytest.raises(ConfigError, match=r"dropout needs a net with nn\.Dropout layers"):
        check_member_lists(rates, bare)
    deltas = ("population.members=1", "population.delta=[0.2]")
    check_member_lists(fit_settings(settings("plain", "loss=huber", *deltas)), net)
    with pytest.raises(ConfigError, match="delta needs a loss with a delta; use loss=huber"):
        check_member_lists(fit_settings(settings("plain", "loss=squared", *deltas)), net)


def trainer_of(limit: str) -> TrainerSettings:
    return fit_settings(settings("plain", f"trainer.limit_val_batches={limit}")).trainer


@pytest.mark.parametrize("limit", ["1", "0.5", "3"])
def test_partial_val_span_raises(limit: str) -> None:
    with pytest.raises(ConfigError, match=f"limit_val_batches={limit} is not for a population"):
        check_val_limit(trainer_of(limit))


@pytest.mark.parametrize("limit", ["null", "0", "1.0"])
def test_complete_or_no_val_span_is_accepted(limit: str) -> None:
    check_val_limit(trainer_of(limit))


MEMBERS = 4


def net_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Foreign(5, width=3, inner=nn.Linear(3, 3))


@pytest.fixture
def states() -> MemberStates:
    return MemberStates([net_of(k) for k in range(MEMBERS)])


def test_stack_has_the_parameters_and_buffers_of_each_net(states: MemberStates) -> None:
    stack = states.stack(states.weights, [2, 0])
    for place, seed in enumerate((2, 0)):
        wanted = net_of(seed).state_dict()
        assert stack.keys() == wanted.keys()
        assert all(torch.equal(stack[name][place], one) for name, one in wanted.items())
    assert states.weights.shape == (MEMBERS, 5 * 3 + 3 + 3 * 3 + 3 + 3)  # without what is frozen
    assert len(states) == MEMBERS


def test_state_is_a_view_and_its_copy_is_not(states: MemberStates) -> None:
    states.state(1).parameters.fill_(7)
    states.state(1).copied().parameters.fill_(8)
    assert (states.weights[1] == 7).all()
    assert not (states.weights[0] == 7).any()


def test_first_metric_is_kept_and_then_only_better_ones(states: MemberStates) -> None:
    for count, value in enumerate((math.nan, -0.5, 0.1, 0.1, math.nan, 0.0), start=1):
        states.weights[0], states.count[0] = float(count), count
        states.keep_better(0, value)
        best = {1: 1, 2: 2}.get(count, 3)
        assert states.best_count.tolist() == [best, 0, 0, 0]
        assert (states.best[0] == best).all()
    assert float(states.best_value[0]) == 0.1
    assert not (states.best[1] == 1).any()


def test_last_weights_are_chosen_without_val(states: MemberStates) -> None:
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
def test_nonfinite_member_is_frozen_and_set_to_zero(
    states: MemberStates, part: str, value: float
) -> None:
    states.count[:] = 6
    before = states.weights.clone()
    getattr(states, part)[2, 4] = value
    assert states.freeze_nonfinite() == [2]
    assert states.living().tolist() == [True, True, False, True]
    assert states.frozen_at.tolist() == [NEVER, NEVER, 6, NEVER]
    assert torch.equal(states.weights[[0, 1, 3]], before[[0, 1, 3]])
    assert all(one.isfinite().all() for one in states.state_dict().values())
    assert states.freeze_nonfinite() == []


def test_member_that_is_left_out_is_frozen_from_the_start(states: MemberStates) -> None:
    states.leave_out([0, 3])
    assert states.living().tolist() == [False, True, True, False]
    assert states.frozen_at.tolist() == [0, NEVER, NEVER, 0]


def test_state_dict_restores_all_members(states: MemberStates) -> None:
    states.leave_out([1])
    states.count[0] = 3
    states.keep_better(0, 0.25)
    other = MemberStates([net_of(k + 10) for k in range(MEMBERS)])
    other.load_state_dict(states.state_dict())
    assert other.frozen_at.tolist() == [NEVER, 0, NEVER, NEVER]
    assert float(other.best_value[0]) == 0.25
    stacks = [one.stack(one.weights, range(MEMBERS)) for one in (states, other)]
    assert all(torch.equal(stacks[0][name], stacks[1][name]) for name in stacks[0])
