"""State of a training step as flat vectors: weights, AdamW moments and dropout keys."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.overrides import TorchFunctionMode

from robust_fin.errors import ConfigError
from robust_fin.training.engine.trace import UnsupportedStepError

# ------------------------------------------------------------------------------------------- AdamW


def adamw(
    parameters: Float[Tensor, " size"],
    exp_avg: Float[Tensor, " size"],
    exp_avg_sq: Float[Tensor, " size"],
    gradient: Float[Tensor, " size"],
    scalars: Float[Tensor, "3"],
    *,
    betas: tuple[float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return parameters and moments after one step of torch.optim.AdamW.

    Args:
        parameters: flat.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        gradient: after clipping.
        scalars: a row of `step_scalars`.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.

    Source: Loshchilov and Hutter (2019), arXiv:1711.05101.
    """
    first, second = betas
    exp_avg = exp_avg + (gradient - exp_avg) * (1 - first)
    exp_avg_sq = exp_avg_sq * second + gradient * gradient * (1 - second)
    size, decay, correction = scalars.unbind()
    move = size * (exp_avg / (exp_avg_sq.sqrt() / correction + eps))
    return parameters * decay - move, exp_avg, exp_avg_sq


def step_scalars(
    lr: Float[Tensor, " steps"],
    *,
    first_step: int,
    weight_decay: float,
    betas: tuple[float, float],
) -> Float[Tensor, "steps 3"]:
    """Compute AdamW's scalars of each step, in float64 as torch.optim does.

    Args:
        lr: learning rate of each step.
        first_step: optimizer steps done before.
        weight_decay: multiplied by the learning rate.
        betas: AdamW's.

    Returns:
        Columns: lr over the first bias correction; the factor of the weight decay; the root of the
        second bias correction.
    """
    lr = lr.double()
    # the last bit of torch's powers depends on the position in the array, so on where a call began
    step = np.arange(first_step + 1, first_step + 1 + len(lr), dtype=np.float64)
    first, second = (torch.from_numpy(1 - beta**step) for beta in betas)
    return torch.stack([lr / first, 1 - lr * weight_decay, second.sqrt()], dim=1)


def adamw_group(optimizer: Optimizer) -> dict[str, Any]:
    """Return the settings of an AdamW that the compiled step reproduces.

    Raises:
        ConfigError: another optimizer, several parameter groups, or amsgrad or maximize.
    """
    odd = [name for name in ("amsgrad", "maximize") if optimizer.param_groups[0].get(name)]
    if type(optimizer) is AdamW and len(optimizer.param_groups) == 1 and not odd:
        return optimizer.param_groups[0]
    raise ConfigError(
        "engine=compiled needs torch.optim.AdamW with one parameter group; this is "
        f"{type(optimizer).__name__} with {len(optimizer.param_groups)} groups"
        f"{''.join(f' and {word}' for word in odd)}. Use engine=plain"
    )


# ------------------------------------------------------------------------------------------ dropout

# odd multipliers; those above 2^31 - 1 as the int32 of the same bits
FIRST, SECOND, STRIDE = 0x7FEB352D, 0x846CA68B - 2**32, 0x9E3779B1 - 2**32
SEED_KEY = 0x1234567
BITS = 24  # of the hash that are compared with the dropout rate


def hash32(counter: Int[Tensor, "*shape"], key: Int[Tensor, "*keys"]) -> Int[Tensor, "*out"]:
    """Mix a counter and a key into 32 bits; int32 arithmetic that wraps and broadcasts.

    Source: the multipliers 0x7feb352d and 0x846ca68b are from Wellons (2018), "Prospecting for
    hash functions"; the counter's is 2^32 over the golden ratio.
    """
    bits = counter * STRIDE
    bits = (bits ^ _shift_right(bits, 16)) * FIRST + key
    bits = (bits ^ _shift_right(bits, 15)) * SECOND
    return bits ^ _shift_right(bits, 16)


def _shift_right(bits: Int[Tensor, "*shape"], places: int) -> Int[Tensor, "*shape"]:
    """Shift logically; the shift of int32 would copy the sign."""
    return (bits >> places) & ((1 << (32 - places)) - 1)


def step_keys(seed: int, *, first_step: int, steps: int) -> Int[Tensor, " steps"]:
    """Return one int32 key per step, which determines the step's dropout masks.

    Args:
        seed: of the run or member; its low 32 bits are used.
        first_step: optimizer steps done before.
        steps: number of keys.
    """
    counter = torch.arange(first_step, first_step + steps).to(torch.int32)
    start = torch.tensor(seed & 0xFFFFFFFF).to(torch.int32)
    return hash32(counter, hash32(start, torch.tensor(SEED_KEY, dtype=torch.int32)))


class HashedDropout(TorchFunctionMode):
    """A mode in which F.dropout and nn.Dropout take their masks from `hash32(position, key)`.

    Positions count on from one dropout call to the next; enter a new mode for each forward pass.

    Args:
        key: int32 key of the step.
        rate: share zeroed, in [0, 1), instead of each layer's own; None keeps theirs.
    """

    def __init__(self, key: Int[Tensor, ""], *, rate: Float[Tensor, ""] | None = None) -> None:
        """Start at position 0."""
        super().__init__()
        self._key, self._rate, self._position = key, rate, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace F.dropout and call every other function."""
        target = self._dropout if func is F.dropout else func
        return target(*args, **(kwargs or {}))

    def _dropout(
        self,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,  # noqa: ARG002 (only the returned tensor is used)
    ) -> Tensor:
        if not training or (self._rate is None and p == 0.0):
            return input
        bits = self._draw(input)
        if self._rate is not None:
            kept = bits >= (self._rate * 2.0**BITS).to(torch.int32)
            scaled = input * (1.0 / (1.0 - self._rate))
        else:
            kept = bits >= int(p * 2**BITS)
            scaled = input * (1.0 / (1.0 - p) if p < 1 else 0.0)
        return torch.where(kept, scaled, torch.zeros((), dtype=input.dtype))

    def _draw(self, input: Tensor) -> Tensor:
        first, self._position = self._position, self._position + input.numel()
        at = torch.arange(first, self._position, dtype=torch.int32, device=input.device)
        return hash32(at.view(input.shape), self._key) & (2**BITS - 1)


# ------------------------------------------------------------------------------------ flat vectors


class ParameterLayout:
    """Order and shapes of a net's trained parameters in one flat vector.

    Attributes:
        names: of the trained parameters.
        constants: names of the buffers and of the parameters that are not trained.
        dtype: of every trained parameter.
        size: number of trained values.
    """

    def __init__(self, net: nn.Module) -> None:
        """Read the layout of a net."""
        parameters = dict(net.named_parameters())
        self.names = [name for name, value in parameters.items() if value.requires_grad]
        trained: list[Tensor] = [parameters[name] for name in self.names]
        frozen = [name for name in parameters if name not in self.names]
        self.constants = [*frozen, *(name for name, _ in net.named_buffers())]
        self._shapes = [value.shape for value in trained]
        self._sizes = [value.numel() for value in trained]
        self.size, self.dtype = sum(self._sizes), _common_dtype(trained)

    def unflatten(self, flat: Float[Tensor, " size"]) -> list[Tensor]:
        """Return views of `flat` in the parameters' shapes."""
        parts = flat.split(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def trained(self, net: nn.Module) -> list[Tensor]:
        """Return a net's trained parameters in this order."""
        parameters: dict[str, Tensor] = dict(net.named_parameters())
        return [parameters[name] for name in self.names]

    def constants_of(self, net: nn.Module) -> list[Tensor]:
        """Return a net's constants in this order."""
        tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        return [tensors[name].detach().contiguous() for name in self.constants]


def _common_dtype(trained: list[Tensor]) -> torch.dtype:
    kinds = {(str(value.dtype), str(value.device)) for value in trained}
    if len(kinds) != 1:
        raise UnsupportedStepError(f"its parameters have several dtypes or devices {sorted(kinds)}")
    if trained[0].device.type != "cpu":
        raise UnsupportedStepError(f"its parameters are on {trained[0].device}, not on the CPU")
    return trained[0].dtype


@runtime_checkable
class LoopState(Protocol):
    """The state that `StepLoop.run` updates: flat vectors, a flag, and the number of steps."""

    alive: Float[Tensor, "1"]
    constants: tuple[Tensor, ...]
    count: int

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parameters, both moments, and the flag `alive`."""
        ...


class StepState:
    """Parameters and AdamW moments of one net, updated in place by `StepLoop.run`.

    Args:
        net: provides the first parameters; the moments start at zero.

    Attributes:
        parameters: flat.
        exp_avg: flat, AdamW's first moment.
        exp_avg_sq: flat, AdamW's second moment.
        alive: 1, or 0 once a loss or gradient was not finite.
        count: optimizer steps done.
        constants: buffers and frozen parameters of the loaded net.
    """

    def __init__(self, net: nn.Module) -> None:
        """Copy the net's parameters."""
        self._layout = ParameterLayout(net)
        self.parameters = torch.zeros(self._layout.size, dtype=self._layout.dtype)
        self.exp_avg = torch.zeros_like(self.parameters)
        self.exp_avg_sq = torch.zeros_like(self.parameters)
        self.alive = torch.ones(1, dtype=self._layout.dtype)
        self._views = [self._layout.unflatten(vector) for vector in self.vectors[:3]]
        self._load_parameters(net)

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parameters, both moments, and the flag `alive`."""
        return self.parameters, self.exp_avg, self.exp_avg_sq, self.alive

    def load(self, net: nn.Module, optimizer: Optimizer) -> None:
        """Copy a net's parameters and its AdamW's state; missing moments start at zero.

        Raises:
            ConfigError: the optimizer counts different steps for different parameters.
        """
        entries = [optimizer.state.get(value, {}) for value in self._layout.trained(net)]
        counts = {int(entry["step"]) if entry else 0 for entry in entries}
        if len(counts) > 1:
            raise ConfigError(
                "engine=compiled needs one step count for all parameters, but the optimizer's "
                f"state has {sorted(counts)}. Use engine=plain"
            )
        self._load_parameters(net)
        (self.count,) = counts
        for name, views in zip(("exp_avg", "exp_avg_sq"), self._views[1:], strict=True):
            if self.count:
                torch._foreach_copy_(views, [entry[name] for entry in entries])
            else:
                torch._foreach_zero_(views)

    @torch.no_grad()
    def _load_parameters(self, net: nn.Module) -> None:
        torch._foreach_copy_(self._views[0], self._layout.trained(net))
        self.constants = tuple(self._layout.constants_of(net))
        self.alive.fill_(1)
        self.count = 0

    @torch.no_grad()
    def store(self, net: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Copy the parameters into a net, and moments and step count into its AdamW."""
        trained = self._layout.trained(net)
        torch._foreach_copy_(trained, self._views[0])
        if optimizer is None:
            return
        states = [_adamw_entry(optimizer, value) for value in trained]
        for name, views in zip(("exp_avg", "exp_avg_sq"), self._views[1:], strict=True):
            torch._foreach_copy_([entry[name] for entry in states], views)
        for entry in states:
            entry["step"].fill_(self.count)


def _adamw_entry(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return a parameter's entry in the optimizer's state, created as AdamW does if missing."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state
