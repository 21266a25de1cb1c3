"""What a search space says in YAML and on the command line, and what it refuses."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from robust_fin.errors import ConfigError
from robust_fin.sweeps.search_space import Between, OneOf, read_space, text_of


def words(*texts: str) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(texts))


def test_keys_are_nested_or_dotted_and_kinds_follow_from_what_is_given() -> None:
    given = {
        "optimizer": {"lr": {"low": 1e-4, "high": 0.1, "log": True}},
        "model.dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
        "trainer": {"max_epochs": {"low": 2, "high": 12}},
        "batch_size": {"low": 16, "high": 4096, "log": True},
        "split.embargo": {"low": 0, "high": 1, "type": "float"},
        "model": {"hidden": {"choices": [[8], [16, 8]]}, "residual": {"choices": [True, False]}},
        "loss": {"choices": ["huber", "squared"]},
    }
    assert read_space(given) == {
        "optimizer.lr": Between(1e-4, 0.1, log=True),
        "model.dropout": Between(0.0, 0.3, step=0.1),
        "trainer.max_epochs": Between(2, 12, whole=True),
        "batch_size": Between(16, 4096, whole=True, log=True),
        "split.embargo": Between(0, 1),
        "model.hidden": OneOf(("[8]", "[16,8]")),
        "model.residual": OneOf(("true", "false")),
        "loss": OneOf(("huber", "squared")),
    }


def test_the_command_line_says_the_same() -> None:
    swept = words(
        "optimizer.lr=tag(log,interval(0.0001,0.1))",
        "trainer.max_epochs=int(interval(2,12))",
        "model.hidden=[8],[16,8]",
        "model.residual=true,false",
        "seed=range(3)",
        "loss=choice(huber,squared)",
    )
    assert read_space({"loss": {"choices": ["absolute"]}}, swept) == {
        "loss": OneOf(("huber", "squared")),  # not what YAML says
        "optimizer.lr": Between(1e-4, 0.1, log=True),
        "trainer.max_epochs": Between(2, 12, whole=True),
        "model.hidden": OneOf(("[8]", "[16,8]")),
        "model.residual": OneOf(("true", "false")),
        "seed": OneOf(("0", "1", "2")),
    }


def test_a_field_can_be_changed_by_its_dotted_key() -> None:
    given = {
        "optimizer.lr": {"low": 1e-4, "high": 0.1, "log": True},
        "optimizer": {"lr": {"high": 1.0}},
    }
    assert read_space(given) == {"optimizer.lr": Between(1e-4, 1.0, log=True)}


def test_null_takes_a_key_out() -> None:
    given = {"model": {"dropout": None, "hidden": {"choices": [8]}}, "optimizer": None}
    assert read_space(given) == {"model.hidden": OneOf(("8",))}
    assert read_space({"model": {"dropout": None}}) == {}


@pytest.mark.parametrize(
    "value", [None, True, 3, 1e-4, 0.1, "huber", "32-true", "null", "a b, c='d'", [16, 8], ["a b"]]
)
def test_a_choice_comes_back_from_the_command_line_as_it_was(value: Any) -> None:
    (word,) = words(f"key={text_of(value)}")
    assert not word.is_sweep_override()
    assert word.value() == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (3, r"space\.lr=3 says nothing of its values"),
        ({"low": 1}, r"space\.lr has no high"),
        ({"low": 1, "high": 1}, r"low=1 must be below high=1"),
        ({"low": 0.0, "high": 1.0, "log": True}, r"low=0\.0 must be above 0 with log=true"),
        ({"low": 1.0, "high": 2.0, "log": "yes"}, r"log=yes must be true or false"),
        ({"low": 1.0, "high": 2.0, "log": True, "step": 0.1}, r"step=0\.1 must be above 0, and"),
        ({"low": 1, "high": 9, "step": 0}, r"step=0 must be above 0"),
        ({"low": "a", "high": 9}, r"low=a must be a finite number"),
        ({"low": 1, "high": float("inf")}, r"high=inf must be a finite number"),
        ({"low": 1.5, "high": 9, "type": "int"}, r"must be whole numbers"),
        ({"low": 1.5, "high": 9, "type": "bool"}, r"type=bool must be int or float"),
        ({"low": 1, "high": 9, "logg": True}, r"space\.lr has logg, which is none of choices, hi"),
        ({"choices": []}, r"choices=\[\] must be a list with a value at least"),
        ({"choices": [1, 1]}, r"choices=\['1', '1'\] has a value twice"),
        ({"choices": [1], "low": 2}, r"has choices, so it can have no low"),
        ({"choices": [{"a": 1}]}, r"\{'a': 1\} cannot be a choice"),
    ],
)
def test_what_is_no_space_is_refused_by_its_key(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_space({"lr": fields})


@pytest.mark.parametrize(
    ("values", "inside", "outside"),
    [
        (Between(0.1, 0.5), [0.1, 0.3, 0.5], [0.09, 0.51, "0.3", None, True]),
        (Between(0, 1), [0, 1, 0.5], [2]),
        (Between(2, 8, whole=True), [2, 5, 8], [1, 9, 2.5]),
        (Between(0.0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3], [0.15]),
        (OneOf(("[16,8]", "null", "true")), [[16, 8], None, True], [[8], "x", 1]),
    ],
)
def test_a_default_is_known_to_lie_inside_or_not(
    values: Between | OneOf, inside: list[Any], outside: list[Any]
) -> None:
    assert [values.holds(one) for one in inside] == [True] * len(inside)
    assert [values.holds(one) for one in outside] == [False] * len(outside)
