"""Schema of the composed config: its keys and their types, so that unknown keys are refused."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import to_absolute_path
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.runtime.terminal import DETAILED, NORMAL, QUIET

USER_ERRORS = (RobustFinError, HydraException, OmegaConfBaseException)
SWEEP_KEYS = ("sweep", "executor")  # groups that a single run does not see


@dataclass
class PredictionSettings:
    """Settings of the predictions table.

    Attributes:
        members: number of members of a population whose single scores are kept.
    """

    members: int = MISSING


@dataclass
class ReportSettings:
    """Settings of report.html.

    Attributes:
        pictures: draw pictures, for the report and for TensorBoard; needs matplotlib.
    """

    pictures: bool = MISSING


@dataclass
class TrainSettings:
    """Top level of conf/train.yaml, which holds the values.

    Attributes:
        name: name of the folder of runs.
        ledger: file of the trial ledger.
        seed: of initialisation, dropout and row order.
        batch_size: rows per training batch and rank.
        score_batch_size: rows per validation batch.
        threads: number of torch threads.
        verbose: console output: 0, 1 or 2.
        predictions: settings of the predictions table.
        report: settings of the report.
    """

    name: str = MISSING
    ledger: str = MISSING
    seed: int = MISSING
    batch_size: int = MISSING
    score_batch_size: int = MISSING
    threads: int = MISSING
    verbose: int = MISSING
    predictions: PredictionSettings = field(default_factory=PredictionSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    source: Any = MISSING
    cache: Any = MISSING
    features: Any = MISSING
    target: Any = MISSING
    target_scale: Any = MISSING
    transform: Any = MISSING
    split: Any = MISSING
    model: Any = MISSING
    link: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    engine: Any = MISSING
    population: Any = MISSING
    trainer: Any = MISSING
    hardware: Any = MISSING
    checkpoint: Any = MISSING
    stability: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    baselines: Any = MISSING
    instrument: Any = MISSING
    debug: Any = MISSING
    sweep: Any = MISSING
    executor: Any = MISSING


@dataclass
class SelectSettings(TrainSettings):
    """Top level of conf/select.yaml.

    Attributes:
        select: how features are ranked.
    """

    select: Any = MISSING


@dataclass
class LeakcheckSettings(TrainSettings):
    """Top level of conf/leakcheck.yaml.

    Attributes:
        leaks: which perturbations are tried.
    """

    leaks: Any = MISSING


def register_schema() -> None:
    """Register the schemas that conf/train.yaml, select.yaml and leakcheck.yaml refer to."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainSettings)
    store.store(name="select_schema", node=SelectSettings)
    store.store(name="leakcheck_schema", node=LeakcheckSettings)


def apply_schema(config: DictConfig) -> DictConfig:
    """Validate a config read from a file against the schema, as Hydra does when it composes."""
    merged = OmegaConf.merge(OmegaConf.structured(TrainSettings), config)
    assert isinstance(merged, DictConfig)
    return merged if any(key in config for key in SWEEP_KEYS) else without_sweep_keys(merged)


def without_sweep_keys(config: DictConfig) -> DictConfig:
    """Return the config of a single run, so that no hash depends on the sweep's settings."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in SWEEP_KEYS])


def with_absolute_ledger(config: DictConfig) -> DictConfig:
    """Make the path of the trial ledger absolute, so that later commands find it.

    A relative path starts at the folder in which the command was started.
    """
    changed = config.copy()
    changed.ledger = to_absolute_path(str(Path(config.ledger).expanduser()))
    return changed


def plain_values(config: DictConfig) -> dict[str, Any]:
    """Return a config as nested dictionaries and lists, every value resolved."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@cache
def key_types(verb: str) -> Mapping[str, str]:
    """Return what each key of a command may hold, in the notation of key_types.yaml.

    Args:
        verb: name of a primary YAML such as train.
    """
    text = (Path(__file__).parent / "key_types.yaml").read_text(encoding="utf-8")
    table: dict[str, str] = yaml.safe_load(text)
    common = {key: kind for key, kind in table.items() if "/" not in key}
    prefix = f"{verb}/"
    own = {k.removeprefix(prefix): kind for k, kind in table.items() if k.startswith(prefix)}
    return common | own


def check_values(config: DictConfig, *, verb: str) -> None:
    """Check the type and the range of every value that key_types.yaml describes.

    Args:
        config: composed config.
        verb: command whose config it is.

    Raises:
        ConfigError: names the first key whose value is not allowed, and the values that are.
    """
    types = key_types(verb)
    for key, general_key, value in config_entries(config):
        kind = types.get(general_key)
        if kind is not None and not is_allowed(value, kind):
            raise ConfigError(describe_value(key, value, kind))


def config_entries(node: DictConfig, parent: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield every key of a config, its form with `*` for the items of lists, and its value.

    Values that are required but not given, and the keys of foreign constructors, are left out.
    """
    for name in map(str, node):
        key = f"{parent}.{name}" if parent else name
        if name.startswith("_") or key == "hydra" or OmegaConf.is_missing(node, name):
            continue
        value = node[name]
        yield key, key, value
        items = [(key, key, value)]
        if isinstance(value, ListConfig):
            items = [(f"{key}[{at}]", f"{key}.*", item) for at, item in enumerate(value)]
        for shown, general, item in items:
            if isinstance(item, DictConfig) and _is_known(item):
                for sub, sub_general, sub_value in config_entries(item):
                    yield f"{shown}.{sub}", f"{general}.{sub_general}", sub_value


def _is_known(node: DictConfig) -> bool:
    """Return True unless the node builds an object of a package that we know nothing about."""
    target = node.get("_target_", "robust_fin.")
    return str(target).startswith(_KNOWN_PACKAGES)


_KNOWN_PACKAGES = ("robust_fin.", "torch.", "lightning.", "optuna.", "hydra_plugins.robust_fin.")
_TYPE = re.compile(r"(?:(list|pair) of )?([\w+/-]+)(?: ([\[(])(\S+), (\S+)([\])]))?")


def is_allowed(value: object, kind: str) -> bool:
    """Return whether a value is of a type in the notation of key_types.yaml.

    >>> is_allowed(0.5, "int [1, 9] | float (0, 1]"), is_allowed(0, "int [1, 9] | float (0, 1]")
    (True, False)
    >>> is_allowed(float("nan"), "float [0, inf)"), is_allowed(True, "int [0, 1]")
    (False, False)
    """
    return any(_is_alternative(value, alternative) for alternative in kind.split(" | "))


def _is_alternative(value: object, kind: str) -> bool:
    match = _TYPE.fullmatch(kind)
    assert match is not None, kind
    container, name, left, low, high, right = match.groups()
    if container is not None:
        item = kind.partition(" of ")[2]
        if not isinstance(value, ListConfig | list | tuple):
            return False
        wanted_length = container == "list" or len(value) == 2
        return wanted_length and all(_is_alternative(part, item) for part in value)
    if name in ("int", "float"):
        number = int if name == "int" else int | float
        if isinstance(value, bool) or not isinstance(value, number):
            return False
        return _is_between(value, float(low), float(high), closed=(left == "[", right == "]"))
    return _is_plain_type(value, name)


def _is_between(value: int | float, low: float, high: float, *, closed: tuple[bool, bool]) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    above = value >= low if closed[0] else value > low
    return above and (value <= high if closed[1] else value < high)


def _is_plain_type(value: object, name: str) -> bool:
    if name == "node":
        return isinstance(value, DictConfig)
    if name == "part":
        target = value.get("_target_") if isinstance(value, DictConfig) else None
        return isinstance(target, str) and "." in target
    if name == "null":
        return value is None
    if name in ("bool", "str"):
        return isinstance(value, bool if name == "bool" else str)
    return str(value) == name


def describe_value(key: str, value: object, kind: str) -> str:
    """Format the error for a value that is not allowed.

    Args:
        key: full key.
        value: given to it.
        kind: in the notation of key_types.yaml.
    """
    alternatives = kind.split(" | ")
    *most, last = map(_in_words, alternatives)
    rule = f"{', '.join(most)} or {last}" if most else last
    text = shorten(_as_override(value), 60, placeholder="...")
    hint = ""
    items = [a.removeprefix("list of ") for a in alternatives if a.startswith("list of ")]
    if any(_is_alternative(value, item) for item in items):
        hint = f"; write {key}=[{text}]"
    elif "str" in alternatives and isinstance(value, bool | int | float):
        hint = f"; write \"{key}='{text}'\""
    return f"{key}={text} must be {rule}{hint}"


def _as_override(value: object) -> str:
    """Format a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, ListConfig | DictConfig):
        value = OmegaConf.to_container(value)
    return str(value).replace("'", "") if isinstance(value, list) else str(value)


def _in_words(kind: str) -> str:
    """Describe one alternative of key_types.yaml.

    >>> _in_words("int [1, 9]"), _in_words("float (0, inf)"), _in_words("list of float [0, 1)")
    ('a whole number from 1 to 9', 'a number above 0', 'a list of values, each a number in [0, 1)')
    """
    match = _TYPE.fullmatch(kind)
    assert match is not None, kind
    container, name, left, low, high, right = match.groups()
    if container is not None:
        count = "a list of values" if container == "list" else "a list of two values"
        return f"{count}, each {_in_words(kind.partition(' of ')[2])}"
    if name == "int":
        return f"a whole number from {low} to {high}"
    if name == "float" and high == "inf":
        return {"-inf": "a finite number"}.get(
            low, f"a number above {low}" if left == "(" else f"a number of at least {low}"
        )
    if name == "float":
        return f"a number in {left}{low}, {high}{right}"
    words = {"bool": "true or false", "str": "text", "node": "a group of keys"}
    return words.get(name, "a group of keys with a _target_" if name == "part" else name)


def check_settings(config: DictConfig) -> None:
    """Check the values of a training, one by one and against each other.

    Raises:
        ConfigError: a value is not allowed, or the link does not fit the target scale.
    """
    check_values(config, verb="train")
    scale, link = config.target_scale["_target_"], config.link["_target_"]
    if scale.endswith(".ReturnScale") and link.endswith(".sigmoid"):
        raise ConfigError(
            "link=sigmoid keeps forecasts in (0, 1), and target_scale=return trains on returns; "
            "write link=identity"
        )


def get_verbosity(config: DictConfig) -> int:
    """Return the value of `verbose`; NORMAL where the config has none.

    Raises:
        ConfigError: the value is not 0, 1 or 2.
    """
    verbose = OmegaConf.select(config, "verbose")
    if verbose is None:
        return NORMAL
    if verbose not in (QUIET, NORMAL, DETAILED):
        raise ConfigError(
            f"verbose={verbose} must be 0 (errors and the verdict), 1 (normal) or 2 (details)"
        )
    return int(verbose)


def format_error(error: BaseException) -> str:
    """Format an error for the user: our message as it is, Hydra's together with its cause."""
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, RobustFinError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    if isinstance(error.__cause__, OmegaConfBaseException) and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    return text
