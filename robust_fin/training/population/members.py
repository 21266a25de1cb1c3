"""Members of a population: their settings, weights and AdamW moments."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from robust_fin.errors import ConfigError
from robust_fin.training.engine.step_state import Layout

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


NEVER = -1  # of `frozen_at`
LEAST = torch.finfo(torch.float64).min  # of `best_value`, before there is one


@dataclass(slots=True)
class MemberState:
    """One member's rows; what `StepLoop.run` changes in place.

    Attributes:
        parameters: flat, a view.
        exp_avg: flat, AdamW's first moment, a view.
        exp_avg_sq: flat, AdamW's second moment, a view.
        alive: 1, or 0 since a loss or gradient was not finite; a view.
        constants: buffers and frozen parameters.
        count: optimizer steps done.
    """

    parameters: Float[Tensor, " size"]
    exp_avg: Float[Tensor, " size"]
    exp_avg_sq: Float[Tensor, " size"]
    alive: Float[Tensor, "1"]
    constants: tuple[Tensor, ...]
    count: int

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a step carries on to the next."""
        return self.parameters, self.exp_avg, self.exp_avg_sq, self.alive

    def copied(self) -> "MemberState":
        """The same state in memory of its own."""
        parameters, exp_avg, exp_avg_sq, alive = (one.clone() for one in self.vectors)
        return MemberState(parameters, exp_avg, exp_avg_sq, alive, self.constants, self.count)


class MemberStates(nn.Module):
    """The states of E members; its buffers are the population's part of a checkpoint.

    Args:
        nets: one a member, of one architecture; an iterable, so that they need not all be held.

    Attributes:
        weights: flat parameters.
        best: those with the best figure on val so far, and the last ones where there is none.
        best_value: that figure.
        best_count: optimizer steps up to it.
        frozen_at: optimizer steps up to the one that was not finite, or NEVER.
        norm_max: largest gradient norm of the steps taken, before clipping.
    """

    weights: Float[Tensor, "members size"]
    exp_avg: Float[Tensor, "members size"]
    exp_avg_sq: Float[Tensor, "members size"]
    alive: Float[Tensor, "members 1"]
    count: Tensor
    best: Float[Tensor, "members size"]
    best_value: Tensor
    best_count: Tensor
    frozen_at: Tensor
    norm_max: Float[Tensor, " members"]

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        """Take every net's parameters; moments start at zero."""
        super().__init__()
        self.layout = Layout(nets[0])
        flat = torch.stack([self._flat(net) for net in nets])
        members = len(nets)
        whole = torch.zeros(members, dtype=torch.int64)
        for name, value in {
            "weights": flat,
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
            "alive": torch.ones(members, 1, dtype=flat.dtype),
            "count": whole,
            "best": flat.clone(),
            "best_value": torch.full((members,), LEAST, dtype=torch.float64),
            "best_count": whole.clone(),
            "frozen_at": torch.full_like(whole, NEVER),
            "norm_max": torch.zeros(members, dtype=torch.float64),
        }.items():
            self.register_buffer(name, value)
        constants = zip(*(self.layout.constants_of(net) for net in nets), strict=True)
        self._constants = [f"constant_{place}" for place in range(len(self.layout.constants))]
        for name, values in zip(self._constants, constants, strict=True):
            self.register_buffer(name, torch.stack(list(values)))

    def __len__(self) -> int:
        """Members."""
        return len(self.weights)

    def state(self, member: int) -> MemberState:
        """Views of one member's rows, and its count of steps."""
        return MemberState(
            self.weights[member],
            self.exp_avg[member],
            self.exp_avg_sq[member],
            self.alive[member],
            tuple(getattr(self, name)[member] for name in self._constants),
            int(self.count[member]),
        )

    @torch.no_grad()
    def take(self, member: int, state: MemberState) -> None:
        """Write a member's state as another process has it."""
        torch._foreach_copy_(list(self.state(member).vectors), list(state.vectors))
        self.count[member] = state.count

    def living(self) -> Bool[Tensor, " members"]:
        """Members that no step has frozen."""
        return self.alive[:, 0] > 0

    @torch.no_grad()
    def keep_better(self, member: int, value: float) -> None:
        """Remember a member's weights where its figure on val is the best so far, or the first.

        Args:
            member: its number.
            value: larger is better; NaN is the least.
        """
        if value > float(self.best_value[member]) or not self.best_count[member]:
            self.best_value[member] = LEAST if math.isnan(value) else value
            self.best[member] = self.weights[member]
            self.best_count[member] = self.count[member]

    def note_norms(self, member: int, norms: Float[Tensor, " steps"]) -> None:
        """Remember the largest gradient norm.

        Args:
            member: its number.
            norms: of steps that it took.
        """
        if len(norms):
            self.norm_max[member] = max(float(self.norm_max[member]), float(norms.max()))

    @torch.no_grad()
    def choose_last(self) -> None:
        """Of members that val never chose weights of, the last ones count."""
        never = self.best_count == 0
        self.best[never] = self.weights[never]
        self.best_count[never] = self.count[never]

    @torch.no_grad()
    def leave_out(self, members: Sequence[int]) -> None:
        """Freeze members before their first step."""
        rows = torch.tensor(list(members), dtype=torch.int64)
        self.alive[rows], self.frozen_at[rows] = 0, 0

    @torch.no_grad()
    def freeze_overflown(self) -> list[int]:
        """Freeze the living members with a weight or moment that is not finite, and name them.

        A step whose loss and gradient are finite can still overflow a weight, at a huge learning
        rate. What is not finite is dropped, or it would end the run of the others too.
        """
        parts = (self.weights, self.exp_avg, self.exp_avg_sq, self.best)
        bad = ~torch.stack([one.isfinite().all(dim=1) for one in parts]).all(dim=0)
        found = torch.nonzero(bad & self.living())[:, 0]
        self.alive[found], self.frozen_at[found] = 0, self.count[found]
        for one in parts:
            one[bad] = 0
        return found.tolist()

    def stack(
        self, flat: Float[Tensor, "members size"], members: Sequence[int]
    ) -> dict[str, Float[Tensor, "kept ..."]]:
        """The state dicts of some members, with a leading axis of members.

        Args:
            flat: `weights` or `best`.
            members: their numbers.
        """
        rows = torch.tensor(list(members), dtype=torch.int64)
        chosen = flat[rows]
        parts = [self.layout.unflatten(one) for one in chosen]
        names = [*self.layout.names, *self.layout.constants]
        values = [torch.stack(list(one)) for one in zip(*parts, strict=True)]
        values += [getattr(self, name)[rows] for name in self._constants]
        return dict(zip(names, values, strict=True))

    def _flat(self, net: nn.Module) -> Float[Tensor, " size"]:
        return torch.cat([one.detach().reshape(-1) for one in self.layout.trained(net)])
