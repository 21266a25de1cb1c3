"""The search space: config keys and the values that each may take."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep
from scipy.stats import qmc

from robust_fin.errors import ConfigError

Number = float | int
LOG = "log"
_FIELDS = {"type", "low", "high", "log", "step", "choices"}
_PLAIN = re.compile(r"[A-Za-z_][\w./:+-]*")
_READ_OTHERWISE = {"null", "true", "false", "nan", "inf"}


@dataclass(frozen=True, slots=True)
class Between:
    """Numbers from low to high, both included.

    Attributes:
        low: the least.
        high: the greatest.
        whole: whole numbers only.
        log: equally likely in their logarithm.
        step: distance of two neighbours from low on; None takes all there are.
    """

    low: Number
    high: Number
    whole: bool = False
    log: bool = False
    step: Number | None = None

    def holds(self, value: object) -> bool:
        """Whether a value of the config lies in it."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not self.low <= value <= self.high or (self.whole and value != round(value)):
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-8)

    def suggested(self, value: object) -> object:
        """A value of the config as a trial has it."""
        assert isinstance(value, int | float)
        return int(value) if self.whole else float(value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Values without an order.

    Attributes:
        choices: as they are written on a command line, because a study keeps text and no lists.
    """

    choices: tuple[str, ...]

    def holds(self, value: object) -> bool:
        """Whether a value of the config is one of them."""
        return text_of(value) in self.choices

    def suggested(self, value: object) -> object:
        """A value of the config as a trial has it."""
        return text_of(value)


Values = Between | OneOf
Space = Mapping[str, Values]


def read_space(given: Mapping[str, Any], words: Sequence[Override] = ()) -> dict[str, Values]:
    """The space of YAML and command line together; a key of both is that of the command line.

    Args:
        given: as in YAML, of plain types.
        words: what is swept on the command line.

    Raises:
        ConfigError: names the key and what is wrong with its values.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, fields in _leaves(given, ""):
        found.setdefault(key, {}).update(fields)
    space = {key: _values(f"sweep.space.{key}", fields) for key, fields in found.items()}
    return space | {word.get_key_element(): _of_word(word) for word in words}


def text_of(value: object) -> str:
    """A value of the config as it is written on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, QuotedString):
        return text_of(value.text)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _READ_OTHERWISE:
            return value
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{quoted}'"
    if isinstance(value, Sequence):
        return f"[{','.join(map(text_of, value))}]"
    raise ConfigError(f"{value} cannot be a choice; take numbers, text, true, false, null or lists")


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys with their fields, however they are nested; null takes one out of the defaults."""
    for name, below in node.items():
        key = f"{prefix}{name}"
        if below is None:
            continue
        if not isinstance(below, Mapping):
            raise ConfigError(
                f"sweep.space.{key}={below} says nothing of its values; write {{low: .., high: ..}}"
                " or {choices: [..]}"
            )
        if _FIELDS.isdisjoint(below):
            yield from _leaves(below, f"{key}.")
        else:
            yield key, dict(below)


def _values(where: str, fields: Mapping[str, Any]) -> Values:
    unknown = sorted(set(fields) - _FIELDS)
    if unknown:
        raise ConfigError(
            f"{where} has {unknown[0]}, which is none of {', '.join(sorted(_FIELDS))}"
        )
    if "choices" in fields:
        if len(fields) > 1 and set(fields) != {"choices", "type"}:
            raise ConfigError(f"{where} has choices, so it can have no low, high, log or step")
        return _one_of(where, fields["choices"])
    missing = sorted({"low", "high"} - set(fields))
    if missing:
        raise ConfigError(f"{where} has no {missing[0]}; write {{low: .., high: ..}} or choices")
    return _between(where, fields)


def _one_of(where: str, choices: object) -> OneOf:
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise ConfigError(f"{where}.choices={choices} must be a list with a value at least")
    texts = tuple(map(text_of, choices))
    if len(set(texts)) < len(texts):
        raise ConfigError(f"{where}.choices={list(texts)} has a value twice")
    return OneOf(texts)


def _between(where: str, fields: Mapping[str, Any]) -> Between:
    low, high, step = fields["low"], fields["high"], fields.get("step")
    for name, value in (("low", low), ("high", high), ("step", step)):
        if value is not None and not _is_number(value):
            raise ConfigError(f"{where}.{name}={value} must be a finite number")
    kind = fields.get("type") or ("int" if _are_whole(low, high, step) else "float")
    if kind not in ("int", "float"):
        raise ConfigError(f"{where}.type={kind} must be int or float")
    if kind == "int" and not _are_whole(low, high, step):
        raise ConfigError(f"{where} is of type int; low, high and step must be whole numbers")
    log = fields.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log={log} must be true or false")
    found = Between(low, high, kind == "int", log, step)
    _check_range(where, found)
    return found


def _check_range(where: str, found: Between) -> None:
    if not found.low < found.high:
        raise ConfigError(f"{where}: low={found.low} must be below high={found.high}")
    if found.log and found.low <= 0:
        raise ConfigError(f"{where}: low={found.low} must be above 0 with log=true")
    if found.step is not None and (found.log or found.step <= 0):
        raise ConfigError(f"{where}: step={found.step} must be above 0, and needs log=false")


def _of_word(word: Override) -> Values:
    """What a swept word of the command line says, such as interval(0.1,1) or 1,2,3."""
    where, value = word.get_key_element(), word.value()
    if isinstance(value, IntervalSweep):
        fields: dict[str, Any] = {"low": value.start, "high": value.end}
        return _between(where, {**fields, LOG: LOG in value.tags})
    if isinstance(value, RangeSweep) and LOG in value.tags:
        raise ConfigError(f"{where}: a range cannot be log; write tag(log,int(interval(1,64)))")
    return _one_of(where, list(word.sweep_iterator()))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_whole(*values: object) -> bool:
    return all(value is None or isinstance(value, int) for value in values)


Settings = dict[str, str]  # values by key, both as they are written
# keys of a single run, and the lists of a population that say the same of its members
MEMBER_KEYS: Mapping[str, str] = {
    "optimizer.lr": "lr",
    "optimizer.weight_decay": "weight_decay",
    "loss.delta": "delta",
    "model.dropout": "dropout",
    "seed": "seeds",
}


def combinations(words: Sequence[Override]) -> list[Settings]:
    """Every combination of what is swept, the last key changing fastest; one of none is empty.

    Raises:
        ConfigError: an interval, which has no end of values.
    """
    for word in words:
        if word.is_interval_sweep():
            raise ConfigError(
                f"{word.input_line} has no end of values; give a list or a range, or a number of "
                "points with sweep.trials"
            )
    keys = [word.get_key_element() for word in words]
    lists = [list(word.sweep_string_iterator()) for word in words]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*lists)]


def points(space: Space, count: int, *, seed: int) -> list[Settings]:
    """Points spread over a space: a scrambled Sobol sequence.

    Args:
        space: keys and their values.
        count: of points; the sequence is most even for powers of two.
        seed: of the scrambling.
    """
    if not space:
        return []
    drawn = qmc.Sobol(len(space), seed=seed).random_base2(math.ceil(math.log2(count)))[:count]
    return [
        {key: _at(values, float(u)) for (key, values), u in zip(space.items(), row, strict=True)}
        for row in drawn
    ]


def _at(values: Values, u: float) -> str:
    """The value at a place in [0, 1)."""
    if not isinstance(values, Between):
        return values.choices[int(u * len(values.choices))]
    low, high = values.low, values.high
    step = 1 if values.whole and values.step is None else values.step
    if values.log:
        found = low * (high / low) ** u
        return text_of(round(found) if values.whole else found)
    if step is None:
        return text_of(low + u * (high - low))
    steps = int(u * (math.floor((high - low) / step + 1e-9) + 1))
    found = low + steps * step
    return text_of(round(found) if values.whole else round(found, 12))
