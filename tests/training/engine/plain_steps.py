"""What the compiled steps are held against: autograd, clip_grad_norm_, torch.optim.AdamW."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_fin.models.mlp import ResidualMLP, sigmoid
from robust_fin.training.engine.step_state import HashedDropout, StepState, step_keys
from robust_fin.training.engine.steps import StepLoop, StepResult, StepSettings

FEATURES, BATCH, DELTA, CLIP = 5, 16, 0.1, 0.015
SETTINGS = StepSettings(clip=CLIP, betas=(0.9, 0.999), eps=1e-8)
F64, F32 = torch.float64, torch.float32


class Skip(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("share", torch.tensor([1.0, 0.5, 2.0] * 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.share * x + self.inner(x)


def foreign() -> nn.Module:
    """A net that is not ours, with a constant buffer and an activation in place."""
    return nn.Sequential(
        nn.Linear(FEATURES, 24),
        nn.GELU(),
        Skip(nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.Tanh())),
        nn.RMSNorm(24),
        nn.SiLU(inplace=True),
        nn.Linear(24, 1, bias=False),
        nn.Flatten(0),
    )


def residual(hidden: Sequence[int], *, dropout: float = 0.0) -> ResidualMLP:
    return ResidualMLP(
        FEATURES,
        hidden=hidden,
        residual=True,
        layer_norm=True,
        input_norm=True,
        dropout=dropout,
        head_start=None,
    )


def loss(forecast: Tensor, target: Tensor) -> Tensor:
    return F.huber_loss(forecast, target, delta=DELTA)


def data(rows: int = 3000, *, dtype: torch.dtype, seed: int = 7) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, FEATURES, generator=draw, dtype=F64)
    target = torch.sigmoid(x[:, 0] + torch.randn(rows, generator=draw, dtype=F64))
    return x.to(dtype), target.to(dtype)


def row_numbers(steps: int, *, batch: int = BATCH, rows: int = 3000, seed: int = 8) -> Tensor:
    return torch.randint(0, rows, (steps, batch), generator=torch.Generator().manual_seed(seed))


def warmup(steps: int, *, lr: float = 3e-3) -> Tensor:
    return lr * torch.arange(1, steps + 1, dtype=F64).div(steps / 2).clamp(max=1.0)


def adamw(net: nn.Module, *, weight_decay: float = 1e-2) -> torch.optim.AdamW:
    return torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=weight_decay)


def compiled(net: nn.Module, *, batch: int = BATCH, matmul: str = "auto") -> StepLoop:
    settings = StepSettings(clip=CLIP, betas=(0.9, 0.999), eps=1e-8, matmul=matmul)
    return StepLoop(
        net, link=sigmoid, loss=loss, batch_size=batch, features=FEATURES, settings=settings
    )


def plain(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    x: Tensor,
    target: Tensor,
    rows: Tensor,
    lr: Tensor,
    seed: int | None = None,
    first_step: int = 0,
    rate: Tensor | None = None,
    delta: float = DELTA,
) -> StepResult:
    """The same steps, one by one; with a seed, dropout draws the masks of the compiled loop."""
    losses, norms = [], []
    keys = step_keys(seed or 0, first_step=first_step, steps=len(rows))
    for number, key, rate_of_step in zip(rows, keys, lr.tolist(), strict=True):
        optimizer.param_groups[0]["lr"] = rate_of_step
        optimizer.zero_grad()
        with HashedDropout(key, rate=rate) if seed is not None else nullcontext():
            score = net(x[number])
        objective = F.huber_loss(torch.sigmoid(score), target[number], delta=delta)
        objective.backward()
        norms.append(nn.utils.clip_grad_norm_(net.parameters(), CLIP))
        optimizer.step()
        losses.append(objective.detach())
    return StepResult(torch.stack(losses), torch.stack(norms), None)


def start(net: nn.Module, optimizer: torch.optim.Optimizer) -> StepState:
    state = StepState(net)
    state.load(net, optimizer)
    return state


@torch.no_grad()
def furthest(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of a parameter."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@torch.no_grad()
def relative(one: nn.Module, other: nn.Module) -> float:
    """L2 of the difference of all parameters over the L2 of the other's."""
    a, b = (nn.utils.parameters_to_vector(net.parameters()).double() for net in (one, other))
    return float((a - b).norm() / b.norm())
