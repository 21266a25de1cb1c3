"""The search space: config keys and the values that each may take."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep
from omegaconf import DictConfig, OmegaConf
from scipy.stats import qmc

from robust_fin.errors import ConfigError
from robust_fin.runtime.terminal import hydra_text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Number = float | int
Settings = dict[str, str]  # values by config key, as text
# keys that can vary between members, and the list of `population` that holds their values
MEMBER_KEYS: Mapping[str, str] = {
    "optimizer.lr": "lr",
    "optimizer.weight_decay": "weight_decay",
    "loss.delta": "delta",
    "model.dropout": "dropout",
    "seed": "seeds",
}
_FIELDS = {"type", "low", "high", "log", "step", "choices"}
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Between:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: smallest value.
        high: largest value.
        whole: integers only.
        log: uniform in the logarithm.
        step: distance between values, counted from `low`; None allows all numbers.
    """

    low: Number
    high: Number
    whole: bool = False
    log: bool = False
    step: Number | None = None

    def contains(self, value: object) -> bool:
        """Check whether a config value lies in the range."""
        if not _is_number(value) or not self.low <= value <= self.high:
            return False
        if self.whole and value != round(value):
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-8)

    def convert(self, value: object) -> object:
        """Return a config value as a trial stores it."""
        assert isinstance(value, int | float)
        return int(value) if self.whole else float(value)

    def describe(self) -> str:
        """Return the range for a message."""
        return f"the numbers from {self.low} to {self.high}"

    def example(self) -> str:
        """Return some value, as text."""
        return to_text(self.low)

    def at(self, u: float) -> str:
        """Return the value at quantile u in [0, 1), as text."""
        low, high = self.low, self.high
        step = 1 if self.whole and self.step is None else self.step
        if self.log:
            value = low * (high / low) ** u
            return to_text(round(value) if self.whole else value)
        if step is None:
            return to_text(low + u * (high - low))
        value = low + int(u * (math.floor((high - low) / step + 1e-9) + 1)) * step
        return to_text(round(value) if self.whole else round(value, 12))


@dataclass(frozen=True, slots=True)
class OneOf:
    """Values without an order.

    Attributes:
        choices: as text, as on a command line, because an Optuna study stores no lists.
    """

    choices: tuple[str, ...]

    def contains(self, value: object) -> bool:
        """Check whether a config value is one of the choices."""
        return to_text(value) in self.choices

    def convert(self, value: object) -> object:
        """Return a config value as a trial stores it."""
        return to_text(value)

    def describe(self) -> str:
        """Return the choices for a message."""
        return ", ".join(self.choices)

    def example(self) -> str:
        """Return some value, as text."""
        return self.choices[0]

    def at(self, u: float) -> str:
        """Return the value at quantile u in [0, 1), as text."""
        return self.choices[int(u * len(self.choices))]


Values = Between | OneOf
Space = Mapping[str, Values]


def read_space(given: Mapping[str, Any], swept: Sequence[Override] = ()) -> dict[str, Values]:
    """Return the search space of YAML and command line; the command line wins.

    Args:
        given: as in YAML, in plain types.
        swept: swept overrides of the command line.

    Raises:
        ConfigError: the values of a key are invalid.
    """
    fields_of: dict[str, dict[str, Any]] = {}
    for key, fields in _iter_fields(given, ""):
        fields_of.setdefault(key, {}).update(fields)
    space = {key: _read_values(f"sweep.space.{key}", fields) for key, fields in fields_of.items()}
    return space | {word.get_key_element(): _read_override(word) for word in swept}


def default_values(
    space: Space, config: DictConfig, choices: Mapping[str, str]
) -> dict[str, object]:
    """Return the default values of the searched keys, as a trial stores them.

    Raises:
        ConfigError: a default value is not in the space.
    """
    defaults: dict[str, object] = {}
    for key, values in space.items():
        value = choices.get(key, _MISSING)
        if value is _MISSING:
            value = OmegaConf.select(config, key.lstrip("+"), default=_MISSING)
        if value is _MISSING or not values.contains(value):
            state = "has no default" if value is _MISSING else f"is {to_text(value)} by default"
            raise ConfigError(
                f"{key} {state}, which is not in its search space ({values.describe()}), so the "
                "default settings cannot be the first trial. Extend the space, or set "
                "sweep.try_default=false"
            )
        defaults[key] = values.convert(value)
    return defaults


def distribution(values: Values) -> "BaseDistribution":
    """Return the values of a key as an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, OneOf):
        return CategoricalDistribution(values.choices)
    low, high, log = values.low, values.high, values.log
    if values.whole:
        return IntDistribution(int(low), int(high), log=log, step=int(values.step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=values.step)


def suggest(trial: "Trial", key: str, values: Values) -> object:
    """Let the sampler of an Optuna study choose a value."""
    if isinstance(values, OneOf):
        return trial.suggest_categorical(key, values.choices)
    low, high, step, log = values.low, values.high, values.step, values.log
    if values.whole:
        return trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=log)
    return trial.suggest_float(key, float(low), float(high), step=step, log=log)


def sobol_points(space: Space, count: int, *, seed: int) -> list[Settings]:
    """Return points of a scrambled Sobol sequence over the space.

    Args:
        space: keys and their values.
        count: number of points; powers of two cover the space most evenly.
        seed: of the scrambling.
    """
    if not space:
        return []
    drawn = qmc.Sobol(len(space), seed=seed).random_base2(math.ceil(math.log2(count)))[:count]
    return [
        {key: values.at(float(u)) for (key, values), u in zip(space.items(), point, strict=True)}
        for point in drawn
    ]


def to_text(value: object) -> str:
    """Return a config value in the syntax of Hydra's command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, QuotedString):
        return to_text(value.text)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return hydra_text(value)
    if isinstance(value, Sequence):
        return f"[{','.join(map(to_text, value))}]"
    raise ConfigError(
        f"{value} is an invalid choice; use numbers, text, true, false, null or lists"
    )


def _iter_fields(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over keys and their fields at any depth; null removes a key."""
    for name, below in node.items():
        key = f"{prefix}{name}"
        if below is None:
            continue
        if not isinstance(below, Mapping):
            raise ConfigError(
                f"sweep.space.{key}={below} must be {{low: .., high: ..}} or {{choices: [..]}}"
            )
        if _FIELDS.isdisjoint(below):
            yield from _iter_fields(below, f"{key}.")
        else:
            yield key, dict(below)


def _read_values(where: str, fields: Mapping[str, Any]) -> Values:
    unknown = sorted(set(fields) - _FIELDS)
    if unknown:
        raise ConfigError(
            f"{where} has the unknown field {unknown[0]}; use {', '.join(sorted(_FIELDS))}"
        )
    if "choices" in fields:
        if not set(fields) <= {"choices", "type"}:
            raise ConfigError(f"{where} has choices and therefore no low, high, log or step")
        return _one_of(where, fields["choices"])
    missing = sorted({"low", "high"} - set(fields))
    if missing:
        raise ConfigError(f"{where} has no {missing[0]}; use {{low: .., high: ..}} or choices")
    return _between(where, fields)


def _one_of(where: str, choices: object) -> OneOf:
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise ConfigError(f"{where}.choices={choices} must be a non-empty list")
    texts = tuple(map(to_text, choices))
    if len(set(texts)) < len(texts):
        raise ConfigError(f"{where}.choices={list(texts)} contains a value twice")
    return OneOf(texts)


def _between(where: str, fields: Mapping[str, Any]) -> Between:
    low, high, step = fields["low"], fields["high"], fields.get("step")
    for name, value in (("low", low), ("high", high), ("step", step)):
        if value is not None and not _is_number(value):
            raise ConfigError(f"{where}.{name}={value} must be a finite number")
    whole = all(value is None or isinstance(value, int) for value in (low, high, step))
    kind = fields.get("type") or ("int" if whole else "float")
    if kind not in ("int", "float"):
        raise ConfigError(f"{where}.type={kind} must be int or float")
    if kind == "int" and not whole:
        raise ConfigError(f"{where} has type int, so low, high and step must be integers")
    log = fields.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log={log} must be true or false")
    _check_range(where, low, high, step, log=log)
    return Between(low, high, kind == "int", log, step)


def _check_range(where: str, low: Number, high: Number, step: Number | None, *, log: bool) -> None:
    if not low < high:
        raise ConfigError(f"{where}: low={low} must be below high={high}")
    if log and low <= 0:
        raise ConfigError(f"{where}: low={low} must be positive with log=true")
    if step is not None and (log or step <= 0):
        raise ConfigError(f"{where}: step={step} must be positive and needs log=false")


def _read_override(override: Override) -> Values:
    """Return the values of a swept override such as lr=interval(0.1,1) or seed=1,2,3."""
    where, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        fields: dict[str, Any] = {"low": value.start, "high": value.end}
        return _between(where, {**fields, "log": "log" in value.tags})
    if isinstance(value, RangeSweep) and "log" in value.tags:
        raise ConfigError(
            f"{where}: a range cannot have the tag log; use tag(log,int(interval(1,64)))"
        )
    return _one_of(where, list(override.sweep_iterator()))


def _is_number(value: object) -> TypeGuard[Number]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
