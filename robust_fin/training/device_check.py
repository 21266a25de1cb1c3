"""Whether a device computes what float64 on the CPU computes: forward, backward, ten steps."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from robust_fin.training.steps import StepLoop, StepSettings, StepState

ROWS, STEPS, CLIP = 256, 10, 1.0
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True, slots=True)
class Passes:
    """What a net does with the same rows; all float64 on the CPU.

    Attributes:
        score: of the rows, before training.
        gradient: of the objective, flat.
        weights: after ten steps, flat.
    """

    score: Float[Tensor, " rows"]
    gradient: Float[Tensor, " parameters"]
    weights: Float[Tensor, " parameters"]

    def relative_errors(self, wanted: "Passes") -> dict[str, float]:
        """L2 of the difference over the L2 of what is wanted, part by part."""
        parts = {
            "forward": (self.score, wanted.score),
            "backward": (self.gradient, wanted.gradient),
            f"{STEPS} steps": (self.weights, wanted.weights),
        }
        return {name: float((a - b).norm() / b.norm()) for name, (a, b) in parts.items()}


def rows(features: int) -> tuple[Float[Tensor, "rows features"], Float[Tensor, " rows"]]:
    """Made-up rows with a signal, float64, always the same."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, features, generator=draw, dtype=torch.float64)
    noise = torch.randn(ROWS, generator=draw, dtype=torch.float64)
    return x, torch.sigmoid(x[:, 0] + noise)


def passes(
    net: nn.Module,
    *,
    features: int,
    loss: Loss,
    optimizer: MakeOptimizer,
    device: torch.device,
    dtype: torch.dtype,
) -> Passes:
    """Run a copy of the net on a device.

    Args:
        net: left as it is; without dropout, which draws other masks on other devices.
        features: inputs a row.
        loss: (forecast, target) -> the objective.
        optimizer: makes the optimizer.
        device: to run on.
        dtype: of weights and rows.
    """
    own = copy.deepcopy(net).to(device, dtype).train()
    x, target = (one.to(device, dtype) for one in rows(features))
    score = own(x)
    loss(score, target).backward()
    gradient = _flat([one.grad for one in own.parameters() if one.grad is not None])
    stepper = optimizer(own.parameters())
    for _ in range(STEPS):
        stepper.zero_grad()
        loss(own(x), target).backward()
        nn.utils.clip_grad_norm_(own.parameters(), CLIP)
        stepper.step()
    return Passes(_flat([score]), gradient, _flat(list(own.parameters())))


def compiled_error(
    net: nn.Module, *, features: int, loss: Loss, optimizer: MakeOptimizer
) -> tuple[StepLoop, float]:
    """Ten steps of the compiled loop against float64: the loop, and the relative error.

    Raises:
        NoCompilerError: there is no C++ compiler.
        UnsupportedStepError: the compiler or PyTorch cannot build the loop.
    """
    own = copy.deepcopy(net).train()
    group = optimizer(own.parameters()).param_groups[0]
    loop = StepLoop(
        own,
        link=nn.Identity(),
        loss=loss,
        batch_size=ROWS,
        features=features,
        settings=StepSettings(clip=CLIP, betas=group["betas"], eps=group["eps"]),
    )
    x, target = (one.to(torch.float32) for one in rows(features))
    state = StepState(own)
    loop.run(
        state,
        x=x,
        target=target,
        rows=torch.arange(ROWS).expand(STEPS, ROWS).contiguous(),
        lr=torch.full((STEPS,), float(group["lr"]), dtype=torch.float64),
        weight_decay=float(group["weight_decay"]),
        seed=0,
    )
    state.store(own)
    wanted = passes(
        net,
        features=features,
        loss=loss,
        optimizer=optimizer,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    got = _flat(list(own.parameters()))
    return loop, float((got - wanted.weights).norm() / wanted.weights.norm())


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([one.detach().reshape(-1).to("cpu", torch.float64) for one in tensors])
