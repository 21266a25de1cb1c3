"""The members of a population: what may differ between nets that are trained in one run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig
from torch import nn

from robust_fin.errors import ConfigError

OWN, SHARED = "own", "shared"
_LISTS = ("seeds", "lr", "weight_decay", "delta", "dropout")
_SEEDS = 2**32


@dataclass(frozen=True, slots=True)
class Member:
    """The settings of one member; everything else is the population's.

    Attributes:
        seed: of initialisation and dropout.
        order_seed: of the order of its training rows.
        lr: learning rate, before the schedule.
        weight_decay: AdamW's.
        delta: of the Huber loss, in rank units; None leaves the loss as it is.
        dropout: share of activations zeroed, in [0, 1); None leaves the layers' own.
        data: number of its data set.
    """

    seed: int
    order_seed: int
    lr: float
    weight_decay: float
    delta: float | None = None
    dropout: float | None = None
    data: int = 0

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def wants_population(config: DictConfig, *, folds: int) -> bool:
    """Whether a run has several nets: members, or one a fold.

    Raises:
        ConfigError: settings of members where there is one net.
    """
    if config.population.members is not None or folds > 1:
        return True
    for name in _LISTS:
        if config.population[name] is not None:
            raise ConfigError(
                f"population.{name}={config.population[name]} has a value a member, and "
                "population.members=null trains one net; set population.members"
            )
    return False


def members_of(config: DictConfig, *, sets: int) -> tuple[Member, ...]:
    """The members that the config asks for, data set by data set.

    Member k has the seed `seed` + k unless `population.seeds` says otherwise, so that it is the
    single run with that seed.

    Args:
        config: as composed.
        sets: number of data sets; each gets as many members.

    Raises:
        ConfigError: a list of another length than there are members, or a number out of range.
    """
    asked, count = config.population, _count(config)
    given = {name: _values(asked[name], name, count) for name in _LISTS}
    seeds = [_seed(one) for one in given["seeds"] or range(config.seed, config.seed + count)]
    if asked.order not in (OWN, SHARED):
        raise ConfigError(f"population.order={asked.order} is neither {OWN} nor {SHARED}")
    rates = given["lr"] or [config.optimizer.lr] * count
    decays = given["weight_decay"] or [config.optimizer.get("weight_decay", 0.01)] * count
    deltas, dropouts = given["delta"], given["dropout"]
    return tuple(
        Member(
            seed=seeds[k],
            order_seed=seeds[k] if asked.order == OWN else config.seed,
            lr=_at_least_zero("lr", rates[k]),
            weight_decay=_at_least_zero("weight_decay", decays[k]),
            delta=None if deltas is None else _above_zero("delta", deltas[k]),
            dropout=None if dropouts is None else _share("dropout", dropouts[k]),
            data=data,
        )
        for data in range(sets)
        for k in range(count)
    )


def check_lists(config: DictConfig, net: nn.Module) -> None:
    """Refuse lists that would change nothing.

    Raises:
        ConfigError: deltas for a loss without one, or rates for a net without dropout.
    """
    if config.population.delta is not None and "delta" not in config.loss:
        raise ConfigError("population.delta needs a loss with a delta; use loss=huber")
    layers = [one for one in net.modules() if isinstance(one, nn.Dropout)]
    if config.population.dropout is not None and not layers:
        raise ConfigError("population.dropout needs a net with nn.Dropout layers; this has none")


def check_validation(config: DictConfig) -> None:
    """Refuse a part of the val span.

    Raises:
        ConfigError: trainer.limit_val_batches, which counts batches; a population has none.
    """
    limit = config.trainer.limit_val_batches
    if limit not in (None, 0, 1.0) or (limit == 1 and isinstance(limit, int)):
        raise ConfigError(
            f"trainer.limit_val_batches={limit} is not for a population, which scores every val "
            "span whole. Leave it at null, or at 0 for no validation"
        )


def _count(config: DictConfig) -> int:
    count = config.population.members
    if count is None:
        return 1
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"population.members={count} must be a whole number above 0, or null")
    return count


def _values(given: Any, name: str, count: int) -> list[Any] | None:
    if given is None:
        return None
    if not isinstance(given, ListConfig | Sequence) or isinstance(given, str):
        raise ConfigError(f"population.{name}={given} must be a list with a value a member")
    if len(given) != count:
        raise ConfigError(
            f"population.{name} has {len(given)} values, and population.members={count}; give one "
            "a member"
        )
    return list(given)


def _seed(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < _SEEDS:
        raise ConfigError(f"population.seeds: {value} must be a whole number in [0, {_SEEDS})")
    return value


def _at_least_zero(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"population.{name}: {value} must be a finite number, at least 0")
    return float(value)


def _above_zero(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"population.{name}: {value} must be a finite number above 0")
    return float(value)


def _share(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"population.{name}: {value} must be a number in [0, 1)")
    return float(value)
