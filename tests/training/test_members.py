"""The settings of members, and what is refused."""

import pytest
from torch import nn

from robust_fin.errors import ConfigError
from robust_fin.runs.settings import fit_settings
from robust_fin.training.population.members import (
    Member,
    check_member_lists,
    check_val_limit,
    is_population,
    make_members,
)
from robust_fin.training.settings import TrainerSettings
from tests.populations import settings


def test_by_default_a_member_is_the_single_run_with_the_next_seed() -> None:
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


def test_lists_have_a_value_a_member() -> None:
    config = settings(
        "plain", "population.members=2", "population.seeds=[9,4]", "population.lr=[0,1]",
        "population.weight_decay=[0.5,0]", "population.delta=[0.1,2]", "population.dropout=[0,0.9]",
        "population.order=shared", "seed=5",
    )  # fmt: skip
    assert make_members(fit_settings(config), sets=1) == (
        Member(9, 5, 0.0, 0.5, 0.1, 0.0),
        Member(4, 5, 1.0, 0.0, 2.0, 0.9),
    )


def test_what_is_described_is_all_of_it() -> None:
    described = Member(1, 2, 0.1, 0.2, 0.3, 0.4, 5).described()
    assert list(described) == [
        "seed", "order_seed", "lr", "weight_decay", "delta", "dropout", "data",
    ]  # fmt: skip
    assert list(described.values()) == [1, 2, 0.1, 0.2, 0.3, 0.4, 5]


def test_several_folds_are_a_population_of_one_member_each() -> None:
    config = settings("plain")
    assert not is_population(fit_settings(config).population, folds=1)
    assert is_population(fit_settings(config).population, folds=2)
    asked = fit_settings(settings("plain", "population.members=1"))
    assert is_population(asked.population, folds=1)
    assert [one.data for one in make_members(fit_settings(config), sets=2)] == [0, 1]


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (("members=0",), "population.members=0 must be a whole number above 0, or null"),
        (("members=-1",), "population.members=-1 must be"),
        (("members=2.5",), "population.members=2.5 must be"),
        (("members=many",), "population.members=many must be"),
        (("members=2", "order=nonsense"), "population.order=nonsense is neither own nor shared"),
        (("members=3", "lr=[0.1,0.2]"), "population.lr has 2 values, and population.members=3"),
        (("members=1", "seeds=[]"), "population.seeds has 0 values, and population.members=1"),
        (("members=2", "lr=0.1"), "population.lr=0.1 must be a list with a value a member"),
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
def test_what_is_no_setting_of_a_member_is_refused(words: tuple[str, ...], telling: str) -> None:
    config = settings("plain", *(f"population.{word}" for word in words))
    with pytest.raises(ConfigError, match=telling):
        fit_settings(config)


@pytest.mark.parametrize("name", ["seeds", "lr", "weight_decay", "delta"])
def test_lists_without_members_are_refused(name: str) -> None:
    config = settings("plain", f"population.{name}=[1]")
    with pytest.raises(
        ConfigError, match=rf"population.{name}=\[1\] has a value a member, and pop"
    ):
        is_population(fit_settings(config).population, folds=1)
    assert is_population(fit_settings(config).population, folds=2)


def test_a_list_that_would_change_nothing_is_refused() -> None:
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
def test_a_part_of_the_val_span_is_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match=f"limit_val_batches={limit} is not for a population"):
        check_val_limit(trainer_of(limit))


@pytest.mark.parametrize("limit", ["null", "0", "1.0"])
def test_the_whole_val_span_or_none_of_it_is_taken(limit: str) -> None:
    check_val_limit(trainer_of(limit))
