"""What a training step reads and writes of one net, as flat vectors."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from robust_fin.errors import ConfigError
from robust_fin.training.loop_trace import UnsupportedStepError


class Layout:
    """Order and shapes of a net's trained parameters in one flat vector.

    Attributes:
        names: of the trained parameters.
        constants: names of the buffers and of the parameters that are not trained.
        dtype: of every trained parameter.
    """

    def __init__(self, net: nn.Module) -> None:
        """Read them off the net."""
        parameters = dict(net.named_parameters())
        self.names = [name for name, one in parameters.items() if one.requires_grad]
        trained: list[Tensor] = [parameters[name] for name in self.names]
        frozen = [name for name in parameters if name not in self.names]
        self.constants = [*frozen, *(name for name, _ in net.named_buffers())]
        self._shapes = [one.shape for one in trained]
        self._sizes = [one.numel() for one in trained]
        self.dtype = _only(trained)

    @property
    def size(self) -> int:
        """Trained numbers."""
        return sum(self._sizes)

    def unflatten(self, flat: Float[Tensor, " size"]) -> list[Tensor]:
        """Views of `flat` in the parameters' shapes."""
        parts = flat.split(self._sizes)
        return [one.view(shape) for one, shape in zip(parts, self._shapes, strict=True)]

    def trained(self, net: nn.Module) -> list[Tensor]:
        """A net's trained parameters in this order."""
        parameters: dict[str, Tensor] = dict(net.named_parameters())
        return [parameters[name] for name in self.names]

    def constants_of(self, net: nn.Module) -> list[Tensor]:
        """A net's constants in this order."""
        tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        return [tensors[name].detach().contiguous() for name in self.constants]


def _only(trained: list[Tensor]) -> torch.dtype:
    kinds = {(str(one.dtype), str(one.device)) for one in trained}
    if len(kinds) != 1:
        raise UnsupportedStepError(f"its parameters are of the kinds {sorted(kinds)}, not of one")
    if trained[0].device.type != "cpu":
        raise UnsupportedStepError(f"its parameters are on {trained[0].device}, not on the CPU")
    return trained[0].dtype


@runtime_checkable
class LoopState(Protocol):
    """What `StepLoop.run` changes in place; flat vectors, a flag, and the count of steps."""

    alive: Float[Tensor, "1"]
    constants: tuple[Tensor, ...]
    count: int

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parameters, both moments, and whether the state is alive."""
        ...


class StepState:
    """Parameters and AdamW moments of one net, which `StepLoop.run` changes in place.

    Args:
        net: whose parameters it starts with, the moments at zero.

    Attributes:
        parameters: flat.
        exp_avg: flat, AdamW's first moment.
        exp_avg_sq: flat, AdamW's second moment.
        alive: 1, or 0 since a loss or gradient was not finite.
        count: optimizer steps done.
        constants: buffers and frozen parameters, as the net had them when it was loaded.
    """

    def __init__(self, net: nn.Module) -> None:
        """Take the net's parameters."""
        self._layout = Layout(net)
        self.parameters = torch.zeros(self._layout.size, dtype=self._layout.dtype)
        self.exp_avg = torch.zeros_like(self.parameters)
        self.exp_avg_sq = torch.zeros_like(self.parameters)
        self.alive = torch.ones(1, dtype=self._layout.dtype)
        vectors = (self.parameters, self.exp_avg, self.exp_avg_sq)
        self._views = [self._layout.unflatten(one) for one in vectors]
        self._take(net)

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a step carries on to the next."""
        return self.parameters, self.exp_avg, self.exp_avg_sq, self.alive

    def load(self, net: nn.Module, optimizer: Optimizer) -> None:
        """Take the state of a net and its AdamW; one without moments yet starts at zero.

        Raises:
            ConfigError: parameters whose counts of steps differ.
        """
        entries = [optimizer.state.get(one, {}) for one in self._layout.trained(net)]
        counts = {int(one["step"]) if one else 0 for one in entries}
        if len(counts) > 1:
            raise ConfigError(
                "engine=compiled counts one number of steps, and the optimizer's state has "
                f"{sorted(counts)} of different parameters. Use engine=plain"
            )
        self._take(net)
        (self.count,) = counts
        for name, views in zip(("exp_avg", "exp_avg_sq"), self._views[1:], strict=True):
            if self.count:
                torch._foreach_copy_(views, [one[name] for one in entries])
            else:
                torch._foreach_zero_(views)

    @torch.no_grad()
    def _take(self, net: nn.Module) -> None:
        torch._foreach_copy_(self._views[0], self._layout.trained(net))
        self.constants = tuple(self._layout.constants_of(net))
        self.alive.fill_(1)
        self.count = 0

    @torch.no_grad()
    def store(self, net: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Write the parameters into a net, and the moments and the count into its AdamW."""
        trained = self._layout.trained(net)
        torch._foreach_copy_(trained, self._views[0])
        if optimizer is None:
            return
        states = [_state_of(optimizer, one) for one in trained]
        torch._foreach_copy_([one["exp_avg"] for one in states], self._views[1])
        torch._foreach_copy_([one["exp_avg_sq"] for one in states], self._views[2])
        for one in states:
            one["step"].fill_(self.count)


def _state_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's entry in the optimizer's state, made as AdamW's first step makes it."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def only_group(optimizer: Optimizer) -> dict[str, Any]:
    """The settings of an AdamW that the compiled step computes as it does.

    Raises:
        ConfigError: another optimizer, several groups of parameters, or amsgrad or maximize.
    """
    odd = [name for name in ("amsgrad", "maximize") if optimizer.param_groups[0].get(name)]
    if type(optimizer) is AdamW and len(optimizer.param_groups) == 1 and not odd:
        return optimizer.param_groups[0]
    raise ConfigError(
        "engine=compiled trains with torch.optim.AdamW and one group of parameters; this is "
        f"{type(optimizer).__name__} with {len(optimizer.param_groups)} groups"
        f"{''.join(f' and {word}' for word in odd)}. Use engine=plain"
    )
