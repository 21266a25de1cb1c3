"""Members of a population: their settings, weights and AdamW moments."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robust_fin.errors import ConfigError
from robust_fin.training.engine.step_state import ParameterLayout
from robust_fin.training.settings import (
    MEMBER_LISTS,
    OWN,
    FitSettings,
    PopulationSettings,
    TrainerSettings,
)


@dataclass(frozen=True, slots=True)
class Member:
    """The settings of one member; all other settings are the population's.

    Attributes:
        seed: of initialisation and dropout.
        order_seed: of the order of its training rows.
        lr: learning rate, before the schedule.
        weight_decay: AdamW's.
        delta: of the Huber loss, in rank units; None keeps the loss's own.
        dropout: share of activations zeroed, in [0, 1); None keeps the layers' own.
        data: number of its data set.
    """

    seed: int
    order_seed: int
    lr: float
    weight_decay: float
    delta: float | None = None
    dropout: float | None = None
    data: int = 0


def is_population(population: PopulationSettings, *, folds: int) -> bool:
    """Return True if a run has several nets: members, or one per fold.

    Raises:
        ConfigError: lists of member settings are given and there is a single net.
    """
    if population.members is not None or folds > 1:
        return True
    for name in MEMBER_LISTS:
        values = getattr(population, name)
        if values is not None:
            raise ConfigError(
                f"population.{name}={values} has one value per member, but "
                "population.members=null trains one net; set population.members"
            )
    return False


def make_members(settings: FitSettings, *, sets: int) -> tuple[Member, ...]:
    """Return the members that the settings ask for, data set by data set.

    Member k has the seed `seed` + k unless `population.seeds` says otherwise, so that it equals
    the single run with that seed.

    Args:
        settings: of the fit.
        sets: number of data sets; each gets the same members.

    Raises:
        ConfigError: a list has another length than there are members.
    """
    population, adamw = settings.population, settings.optimizer.keywords
    population.check_lengths()
    count = population.count
    seeds = population.seeds or range(settings.seed, settings.seed + count)
    rates = population.lr or [adamw["lr"]] * count
    decays = population.weight_decay or [adamw.get("weight_decay", 0.01)] * count
    deltas, dropouts = population.delta, population.dropout
    return tuple(
        Member(
            seed=seeds[k],
            order_seed=seeds[k] if population.order == OWN else settings.seed,
            lr=float(rates[k]),
            weight_decay=float(decays[k]),
            delta=None if deltas is None else float(deltas[k]),
            dropout=None if dropouts is None else float(dropouts[k]),
            data=data,
        )
        for data in range(sets)
        for k in range(count)
    )


def check_member_lists(settings: FitSettings, net: nn.Module) -> None:
    """Raise ConfigError if a list of the population would change nothing.

    Raises:
        ConfigError: deltas for a loss without one, or dropout for a net without dropout layers.
    """
    population = settings.population
    if population.delta is not None and "delta" not in settings.loss.keywords:
        raise ConfigError("population.delta needs a loss with a delta; use loss=huber")
    layers = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    if population.dropout is not None and not layers:
        raise ConfigError("population.dropout needs a net with nn.Dropout layers; this has none")


def check_val_limit(trainer: TrainerSettings) -> None:
    """Raise ConfigError if trainer.limit_val_batches cuts the val span: members have no batches."""
    limit = trainer.limit_val_batches
    if limit not in (None, 0, 1.0) or (limit == 1 and isinstance(limit, int)):
        raise ConfigError(
            f"trainer.limit_val_batches={limit} is not for a population, which scores every val "
            "span whole. Leave it at null, or at 0 for no validation"
        )


NEVER = -1  # value of `frozen_at`
LEAST = torch.finfo(torch.float64).min  # value of `best_value` before the first validation


@dataclass(slots=True)
class MemberState:
    """Views of one member's rows, updated in place by `StepLoop.run`.

    Attributes:
        parameters: flat.
        exp_avg: flat, AdamW's first moment.
        exp_avg_sq: flat, AdamW's second moment.
        alive: 1, or 0 once a loss or gradient was not finite.
        constants: buffers and frozen parameters.
        count: optimizer steps done; not a view.
    """

    parameters: Float[Tensor, " size"]
    exp_avg: Float[Tensor, " size"]
    exp_avg_sq: Float[Tensor, " size"]
    alive: Float[Tensor, "1"]
    constants: tuple[Tensor, ...]
    count: int

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parameters, both moments, and the flag `alive`."""
        return self.parameters, self.exp_avg, self.exp_avg_sq, self.alive

    def copied(self) -> "MemberState":
        """Return a copy that shares no memory."""
        parameters, exp_avg, exp_avg_sq, alive = (vector.clone() for vector in self.vectors)
        return MemberState(parameters, exp_avg, exp_avg_sq, alive, self.constants, self.count)


class MemberStates(nn.Module):
    """The states of all members; its buffers are the population's part of a checkpoint.

    Args:
        nets: one per member, of one architecture.

    Attributes:
        weights: flat parameters.
        best: flat parameters with the best metric on val so far, or the last ones without val.
        best_value: that metric.
        best_count: optimizer steps up to it.
        frozen_at: optimizer steps before the step that was not finite, or NEVER.
        norm_max: largest gradient norm of the steps done, before clipping.
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
        """Copy every net's parameters; moments start at zero."""
        super().__init__()
        self.layout = ParameterLayout(nets[0])
        flat = torch.stack([self._flat(net) for net in nets])
        members = len(nets)
        zeros = torch.zeros(members, dtype=torch.int64)
        for name, value in {
            "weights": flat,
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
            "alive": torch.ones(members, 1, dtype=flat.dtype),
            "count": zeros,
            "best": flat.clone(),
            "best_value": torch.full((members,), LEAST, dtype=torch.float64),
            "best_count": zeros.clone(),
            "frozen_at": torch.full_like(zeros, NEVER),
            "norm_max": torch.zeros(members, dtype=torch.float64),
        }.items():
            self.register_buffer(name, value)
        constants = zip(*(self.layout.constants_of(net) for net in nets), strict=True)
        self._constants = [f"constant_{place}" for place in range(len(self.layout.constants))]
        for name, values in zip(self._constants, constants, strict=True):
            self.register_buffer(name, torch.stack(list(values)))

    def _flat(self, net: nn.Module) -> Float[Tensor, " size"]:
        return torch.cat([value.detach().reshape(-1) for value in self.layout.trained(net)])

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.weights)

    def state(self, member: int) -> MemberState:
        """Return views of one member's rows, and its step count."""
        return MemberState(
            self.weights[member],
            self.exp_avg[member],
            self.exp_avg_sq[member],
            self.alive[member],
            tuple(getattr(self, name)[member] for name in self._constants),
            int(self.count[member]),
        )

    @torch.no_grad()
    def copy_state(self, member: int, state: MemberState) -> None:
        """Copy a member's state from another process."""
        torch._foreach_copy_(list(self.state(member).vectors), list(state.vectors))
        self.count[member] = state.count

    def living(self) -> Bool[Tensor, " members"]:
        """Return True for members that are not frozen."""
        return self.alive[:, 0] > 0

    @torch.no_grad()
    def keep_better(self, member: int, value: float) -> None:
        """Keep a member's weights if its metric on val is the best so far, or the first.

        Args:
            member: its number.
            value: larger is better; NaN is the smallest.
        """
        if value > float(self.best_value[member]) or not self.best_count[member]:
            self.best_value[member] = LEAST if math.isnan(value) else value
            self.best[member] = self.weights[member]
            self.best_count[member] = self.count[member]

    def update_norm_max(self, member: int, norms: Float[Tensor, " steps"]) -> None:
        """Update a member's largest gradient norm with the norms of its last steps."""
        if len(norms):
            self.norm_max[member] = max(float(self.norm_max[member]), float(norms.max()))

    @torch.no_grad()
    def choose_last(self) -> None:
        """Choose the last weights of members that were never validated."""
        never = self.best_count == 0
        self.best[never] = self.weights[never]
        self.best_count[never] = self.count[never]

    @torch.no_grad()
    def leave_out(self, members: Sequence[int]) -> None:
        """Freeze members before their first step."""
        rows = torch.tensor(list(members), dtype=torch.int64)
        self.alive[rows], self.frozen_at[rows] = 0, 0

    @torch.no_grad()
    def freeze_nonfinite(self) -> list[int]:
        """Freeze living members with a weight or moment that is not finite, and return them.

        A step with finite loss and gradient can still overflow a weight, at a huge learning rate.
        The values of such members are set to zero; otherwise they would end the whole run.
        """
        parts = (self.weights, self.exp_avg, self.exp_avg_sq, self.best)
        bad = ~torch.stack([part.isfinite().all(dim=1) for part in parts]).all(dim=0)
        frozen = torch.nonzero(bad & self.living())[:, 0]
        self.alive[frozen], self.frozen_at[frozen] = 0, self.count[frozen]
        for part in parts:
            part[bad] = 0
        return frozen.tolist()

    def stack(
        self, flat: Float[Tensor, "members size"], members: Sequence[int]
    ) -> dict[str, Float[Tensor, "kept ..."]]:
        """Return the state dicts of some members, with a leading axis of members.

        Args:
            flat: `weights` or `best`.
            members: their numbers.
        """
        rows = torch.tensor(list(members), dtype=torch.int64)
        parts = [self.layout.unflatten(vector) for vector in flat[rows]]
        names = [*self.layout.names, *self.layout.constants]
        values = [torch.stack(list(column)) for column in zip(*parts, strict=True)]
        values += [getattr(self, name)[rows] for name in self._constants]
        return dict(zip(names, values, strict=True))
