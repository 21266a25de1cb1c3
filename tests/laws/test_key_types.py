"""Every number in the config has a range, and no wrong value ends in a traceback."""

import contextlib
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from robust_fin.cli.composition import compose_config, conf_folder
from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.runs.schema import (
    check_values,
    config_entries,
    is_allowed,
    key_types,
    plain_values,
)
from tests.bars import config, instantiate

VERBS = sorted(path.stem for path in conf_folder().glob("*.yaml"))
NAN, INF = math.nan, math.inf
WRONG: tuple[Any, ...] = (
    "abc", "", "null", -1, 0, 1, 2**70, -(2**70), 0.5, NAN, INF, None, True,
    [], [1], [-1], ["a"], [NAN], [[1]], {}, {"a": 1}, {"_target_": 5}, {"_target_": "no.such"},
)  # fmt: skip


@cache
def configs() -> tuple[tuple[str, DictConfig], ...]:
    """Return the config of every command, and every file of a group as part of a config.

    Files are read, not composed, which takes milliseconds instead of seconds.
    """
    found = [(verb, OmegaConf.create(plain_values(config(command=verb)))) for verb in VERBS]
    for path in sorted(conf_folder().glob("*/**/*.yaml")):
        groups = path.parent.relative_to(conf_folder()).parts
        if groups[0] == "hydra":
            continue
        node = OmegaConf.load(path)
        assert isinstance(node, DictConfig)
        node.pop("defaults", None)
        node.pop("hydra", None)
        _drop_interpolations(node)
        if not path.read_text(encoding="utf-8").startswith("# @package _global_"):
            for name in reversed(groups):
                node = OmegaConf.create({name: node})
        found.append(("train", node))
    return tuple(found)


def _drop_interpolations(node: DictConfig) -> None:
    for name in list(node):
        if OmegaConf.is_interpolation(node, name):
            del node[name]
        elif isinstance(node[name], DictConfig):
            _drop_interpolations(node[name])


def is_search_space(key: str) -> bool:
    """Return True for a key of a search space; its values are checked by the strategy."""
    return key.startswith("sweep.space.")


@cache
def cases() -> dict[tuple[str, str], tuple[str, DictConfig]]:
    """Return (command, key of the table) -> (full key, config of a group that has the key)."""
    found: dict[tuple[str, str], tuple[str, DictConfig]] = {}
    whole: set[tuple[str, str]] = set()
    for verb, settings in configs():
        for key, general, _ in config_entries(settings):
            is_own = key.partition(".")[0] in ("leaks", "select")
            is_shared = verb in ("leakcheck", "select") and not is_own
            is_unknown = is_search_space(key) or general not in key_types(verb)
            if is_unknown or is_shared or (verb, general) in whole:
                continue
            group = key.partition(".")[0]
            part = OmegaConf.create({group: settings[group]})
            if _passes(part, verb=verb):
                whole.add((verb, general))
            elif (verb, general) in found:
                continue  # an experiment may set only some keys of a group
            found[verb, general] = key, part
    return found


def _passes(settings: DictConfig, *, verb: str) -> bool:
    try:
        check_values(settings, verb=verb)
    except ConfigError:
        return False
    return True


@contextlib.contextmanager
def changed_value(settings: DictConfig, key: str, value: Any) -> Iterator[None]:
    """Set a key, given as `a.b[0].c`, within the block; copying the config would be slow."""
    *parents, name = re.findall(r"[^.\[\]]+", key)
    node: Any = settings
    for part in parents:
        node = node[int(part) if isinstance(node, ListConfig) else part]
    before = node._get_node(name)
    try:
        node[name] = value
        yield
    finally:
        node._set_item_impl(name, before)


def has_number(value: object) -> bool:
    parts = list(value) if isinstance(value, ListConfig) else [value]
    return any(isinstance(part, int | float) and not isinstance(part, bool) for part in parts)


def test_every_number_has_a_range() -> None:
    missing = {
        (verb, general)
        for verb, settings in configs()
        for key, general, value in config_entries(settings)
        if has_number(value) and general not in key_types(verb) and not is_search_space(key)
    }
    assert missing == set()


def test_every_default_is_allowed() -> None:
    for verb, settings in configs():
        for key, general, value in config_entries(settings):
            kind = key_types(verb).get(general)
            if kind is None or (isinstance(value, DictConfig) and "part" in kind):
                continue  # a search space, or an experiment, which sets only some keys of a group
            assert is_allowed(value, kind), (verb, key, value)


def test_every_line_of_the_table_is_a_key_or_an_argument_of_a_constructor() -> None:
    known = {general for _, general in cases()}
    required = {("predict", "run"), ("predict", "out"), ("evaluate", "run"), ("replay", "record")}
    added = {"optimizer.eps", "callbacks.early_stopping.min_delta"}
    interpolated = {"baselines.lightgbm.threads", "baselines.lightgbm.seed"}
    lines = {key for verb in VERBS for key in key_types(verb)}
    required_keys = {key for _, key in required}
    assert lines - known - required_keys - added - interpolated == set()


def ranges() -> Iterator[tuple[str, str, str, float, float, str]]:
    """Yield every numeric range of the table: key, int or float, bracket, low, high, bracket."""
    pattern = re.compile(r"(int|float) ([\[(])(\S+), (\S+)([\])])")
    for verb in VERBS:
        for key, kind in key_types(verb).items():
            for name, left, low, high, right in pattern.findall(kind):
                yield key, name, left, float(low), float(high), right


def test_every_range_contains_its_closed_edges_and_nothing_outside() -> None:
    for key, name, left, low, high, right in ranges():
        kind = f"{name} {left}{low:.0f}, {high:.0f}{right}" if high > 1 else None
        kind = kind or f"{name} {left}{low:g}, {high:g}{right}"
        number = int if name == "int" else float
        for edge, is_closed, outwards in ((low, left == "[", -1), (high, right == "]", 1)):
            if math.isinf(edge):
                assert not is_allowed(edge, kind), key
                continue
            outside = edge + outwards if name == "int" else math.nextafter(edge, outwards * INF)
            inside = edge - outwards if name == "int" else math.nextafter(edge, -outwards * INF)
            if abs(edge) < 2**53:
                assert is_allowed(number(edge), kind) == is_closed, (key, edge)
                assert not is_allowed(number(outside), kind), (key, outside)
                assert is_allowed(number(inside), kind), (key, inside)
        assert not is_allowed(NAN, kind), key
        assert not is_allowed(True, kind), key
        assert not is_allowed("1", kind), key


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.gradient_clip_val=-1", "must be a number of at least 0 or null"),
        ("seed=-1", "must be a whole number from 0 to 4294967295"),
        (f"seed={2**70}", "must be a whole number from 0 to 4294967295"),
        ("seed=abc", "must be a whole number from 0 to 4294967295"),
        ("optimizer.lr=abc", "must be a number of at least 0"),
        ("optimizer.lr=null", "must be a number of at least 0"),
        ("optimizer.betas=[0.9]", "must be a list of two values, each a number in [0, 1)"),
        ("loss.delta=0", "must be a number above 0"),
        ("model.dropout=nan", "must be a number in [0, 1)"),
        ("model.dropout=1", "must be a number in [0, 1)"),
        ("trainer.accumulate_grad_batches=0", "must be a whole number from 1 to 1000000"),
        ("callbacks.histograms.every_n_steps=0", "must be a whole number from 1 to 1000000000000"),
        ("threads=10000000", "must be a whole number from 1 to 1024"),
        ("transform.steps.0.limit=0", None),
        ("source.timezone=5", "must be text or null; write \"source.timezone='5'\""),
        ("features.names=vwap", "must be a list of values, each text; write features.names=[vwap]"),
        (
            "model.hidden=64",
            "must be a list of values, each a whole number from 1 to 1000000; "
            "write model.hidden=[64]",
        ),
    ],
)
def test_wrong_value_raises_with_the_allowed_values(override: str, message: str | None) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config("train", [override])
    if message is not None:
        assert str(raised.value) == f"{override} {message}"


def test_item_of_a_list_is_checked() -> None:
    settings = config("transform=robust_clip")
    settings.transform.steps[1].limit = 0.0
    with pytest.raises(ConfigError, match=r"^transform\.steps\[1\]\.limit=0\.0 must be a number"):
        check_values(settings, verb="train")


def test_settings_of_a_user_class_are_not_checked() -> None:
    settings = config()
    settings.model = {"_target_": "my_nets.Net", "hidden": 64, "dropout": 7}
    check_values(settings, verb="train")


def test_wrong_values_raise_only_errors_of_the_package() -> None:
    assert len(cases()) > 200
    for (verb, general), (key, settings) in cases().items():
        kind = key_types(verb)[general]
        for value in WRONG:
            with changed_value(settings, key, value):
                if _is_accepted(settings, key, verb=verb):
                    assert value not in (2**70, -(2**70)) or "float" in kind, key
                    _build_group(settings, key.partition(".")[0])


def _is_accepted(settings: DictConfig, key: str, *, verb: str) -> bool:
    """Return False for a ConfigError, which must name the key or one of its parents."""
    try:
        check_values(settings, verb=verb)
    except ConfigError as error:
        assert key.startswith(str(error).partition("=")[0]), str(error)  # noqa: PT017
        return False
    return True


def _build_group(settings: DictConfig, group: str) -> None:
    """Build a group whose values are allowed; it may raise RobustFinError or HydraException."""
    node = settings.get(group)
    if not isinstance(node, DictConfig) or "_target_" not in node or group in ("logger", "trainer"):
        return
    keywords = {"features": 5} if group == "model" else {}
    try:
        instantiate(node, **keywords)
    except (RobustFinError, HydraException):
        return


@pytest.mark.parametrize("key", ["name", "seed", "threads", "predictions.members"])
def test_wrong_values_on_the_command_line_raise_only_config_errors(key: str) -> None:
    for value in ("null", "[1]", "{a:1}", "-1", "nan", "[", "'", "${no.such}"):
        with contextlib.suppress(ConfigError):
            compose_config("train", [f"{key}={value}"])
