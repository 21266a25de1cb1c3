"""The search space in YAML and on the command line, its errors, and Sobol points."""

from typing import Any

import pytest

from robust_fin.errors import ConfigError
from robust_fin.sweeps.search_space import Between, OneOf, read_space, sobol_points, to_text
from tests.sweeps.driven import parse


def test_keys_are_nested_or_dotted_and_types_are_inferred() -> None:
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


def test_the_command_line_overrides_yaml() -> None:
    swept = parse(
        "optimizer.lr=tag(log,interval(0.0001,0.1))",
        "trainer.max_epochs=int(interval(2,12))",
        "model.hidden=[8],[16,8]",
        "model.residual=true,false",
        "seed=range(3)",
        "loss=choice(huber,squared)",
    )
    assert read_space({"loss": {"choices": ["absolute"]}}, swept) == {
        "loss": OneOf(("huber", "squared")),
        "optimizer.lr": Between(1e-4, 0.1, log=True),
        "trainer.max_epochs": Between(2, 12, whole=True),
        "model.hidden": OneOf(("[8]", "[16,8]")),
        "model.residual": OneOf(("true", "false")),
        "seed": OneOf(("0", "1", "2")),
    }


def test_a_single_field_can_be_overridden() -> None:
    given = {
        "optimizer.lr": {"low": 1e-4, "high": 0.1, "log": True},
        "optimizer": {"lr": {"high": 1.0}},
    }
    assert read_space(given) == {"optimizer.lr": Between(1e-4, 1.0, log=True)}


def test_null_removes_a_key() -> None:
    given = {"model": {"dropout": None, "hidden": {"choices": [8]}}, "optimizer": None}
    assert read_space(given) == {"model.hidden": OneOf(("8",))}
    assert read_space({"model": {"dropout": None}}) == {}


@pytest.mark.parametrize(
    "value", [None, True, 3, 1e-4, 0.1, "huber", "32-true", "null", "a b, c='d'", [16, 8], ["a b"]]
)
def test_a_choice_survives_the_command_line(value: Any) -> None:
    (override,) = parse(f"key={to_text(value)}")
    assert not override.is_sweep_override()
    assert override.value() == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (3, r"space\.lr=3 must be \{low: \.\., high: \.\.\}"),
        ({"low": 1}, r"space\.lr has no high"),
        ({"low": 1, "high": 1}, r"low=1 must be below high=1"),
        ({"low": 0.0, "high": 1.0, "log": True}, r"low=0\.0 must be positive with log=true"),
        ({"low": 1.0, "high": 2.0, "log": "yes"}, r"log=yes must be true or false"),
        ({"low": 1.0, "high": 2.0, "log": True, "step": 0.1}, r"step=0\.1 must be positive and"),
        ({"low": 1, "high": 9, "step": 0}, r"step=0 must be positive"),
        ({"low": "a", "high": 9}, r"low=a must be a finite number"),
        ({"low": 1, "high": float("inf")}, r"high=inf must be a finite number"),
        ({"low": 1.5, "high": 9, "type": "int"}, r"must be integers"),
        ({"low": 1.5, "high": 9, "type": "bool"}, r"type=bool must be int or float"),
        ({"low": 1, "high": 9, "logg": True}, r"space\.lr has the unknown field logg; use choices"),
        ({"choices": []}, r"choices=\[\] must be a non-empty list"),
        ({"choices": [1, 1]}, r"choices=\['1', '1'\] contains a value twice"),
        ({"choices": [1], "low": 2}, r"has choices and therefore no low"),
        ({"choices": [{"a": 1}]}, r"\{'a': 1\} is an invalid choice"),
    ],
)
def test_invalid_values_raise_with_their_key(fields: Any, message: str) -> None:
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
def test_values_contain_the_config_values_in_the_space(
    values: Between | OneOf, inside: list[Any], outside: list[Any]
) -> None:
    assert all(values.contains(value) for value in inside)
    assert not any(values.contains(value) for value in outside)


def test_sobol_points_cover_the_space_evenly() -> None:
    space = {
        "optimizer.lr": Between(1e-4, 1e-2, log=True),
        "model.dropout": Between(0.0, 0.3, step=0.1),
        "seed": Between(0, 3, whole=True),
        "loss.delta": OneOf(("0.1", "0.5")),
    }
    points = sobol_points(space, 64, seed=0)
    assert points == sobol_points(space, 64, seed=0) != sobol_points(space, 64, seed=1)
    rates = [float(point["optimizer.lr"]) for point in points]
    assert [sum(low <= rate < 10 * low for rate in rates) for low in (1e-4, 1e-3)] == [32, 32]
    for key, values in {
        "model.dropout": ["0.0", "0.1", "0.2", "0.3"],
        "seed": ["0", "1", "2", "3"],
        "loss.delta": ["0.1", "0.5"],
    }.items():
        counts = [sum(point[key] == value for point in points) for value in values]
        assert counts == [64 // len(values)] * len(values), key
