"""Choose the engine, build the compiled one, and check what a device computes."""

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from robust_fin.data.batches import CallPlan
from robust_fin.errors import ConfigError
from robust_fin.runtime.terminal import progress_seconds
from robust_fin.training.engine.loop_library import (
    NoCompilerError,
    expected_build_seconds,
    record_build_seconds,
)
from robust_fin.training.engine.step_state import StepState
from robust_fin.training.engine.steps import StepLoop, StepSettings
from robust_fin.training.engine.trace import EngineDriftError
from robust_fin.training.lightning_loop import CompiledSteps
from robust_fin.training.settings import COMPILED, FitSettings, TrainerSettings

log = logging.getLogger(__name__)

_REQUIRED = {  # Trainer arguments that the compiled step ignores, and their allowed values
    "accelerator": ("cpu",),
    "devices": (1,),
    "num_nodes": (1,),
    "precision": ("32-true", 32, "32"),
    "accumulate_grad_batches": (1,),
    "gradient_clip_algorithm": (None, "norm"),
    "overfit_batches": (0, 0.0),
    "detect_anomaly": (False,),
}
_PROCESSES = ("devices", "num_nodes")


def compiled_calls(
    settings: FitSettings,
    net: nn.Module,
    *,
    features: int,
    schedule: Callable[[int], float],
) -> CompiledSteps | None:
    """Build the compiled engine if it is asked for and available; None means Lightning's loop.

    Args:
        settings: of the fit.
        net: on the CPU.
        features: inputs per row.
        schedule: optimizer step, counted from 0 -> factor of the learning rate.

    Raises:
        ConfigError: a setting of the Trainer that the compiled engine does not support.
        UnsupportedStepError: the net cannot be traced as a pure function.
    """
    if not settings.engine.compiled:
        return None
    check_trainer(settings.trainer, what=f"engine={COMPILED}")
    loop = compiled_loop(settings, net, features=features, loss=settings.loss)
    return None if loop is None else CompiledSteps(loop, schedule=schedule, seed=settings.seed)


def step_settings(settings: FitSettings) -> StepSettings:
    """Return the clipping norm and AdamW's constants of a compiled or stacked step."""
    adamw = settings.optimizer.keywords
    first, second = adamw.get("betas", (0.9, 0.999))
    return StepSettings(
        clip=settings.trainer.gradient_clip_val,
        betas=(float(first), float(second)),
        eps=float(adamw.get("eps", 1e-8)),
        matmul=settings.engine.matmul,
    )


def compiled_loop(
    settings: FitSettings,
    net: nn.Module,
    *,
    features: int,
    loss: Callable[..., Tensor],
    loss_takes_setting: bool = False,
    own_dropout: bool = False,
) -> StepLoop | None:
    """Compile the steps of a net; None, with a warning, if this machine or torch cannot.

    Args:
        settings: of the fit.
        net: on the CPU.
        features: inputs per row.
        loss: (forecast, target) -> objective, or (forecast, target, setting) -> objective.
        loss_takes_setting: the loss has a third argument.
        own_dropout: each call takes the dropout rate.

    Raises:
        UnsupportedStepError: the net or loss cannot be compiled.
    """
    try:
        with progress_seconds("compiling, once", usual=expected_build_seconds()):
            loop = StepLoop(
                net.train(),
                link=settings.link,
                loss=loss,
                batch_size=settings.batch_size,
                features=features,
                settings=step_settings(settings),
                loss_takes_setting=loss_takes_setting,
                own_dropout=own_dropout,
            )
    except (NoCompilerError, EngineDriftError) as error:
        log.warning("%s; the plain engine trains, slower and with the same numbers", error)
        return None
    if not loop.cached:
        record_build_seconds(loop.compile_seconds)
        log.info("compiling, once: %.1f s", loop.compile_seconds)
    return loop


def check_trainer(trainer: TrainerSettings, *, what: str, processes: bool = False) -> None:
    """Raise ConfigError for Trainer settings that steps outside Lightning's loop would ignore.

    Args:
        trainer: its settings.
        what: runs those steps, for the message.
        processes: several processes may share the work.
    """
    for key, allowed in _REQUIRED.items():
        value = getattr(trainer, key)
        if value not in allowed and not (processes and key in _PROCESSES):
            raise ConfigError(
                f"trainer.{key}={value} is not for {what}, which supports "
                f"{' or '.join(map(str, allowed))}. Use engine=plain and one net"
            )


def call_plan(trainer: TrainerSettings, steps: int, *, steps_per_call: int) -> CallPlan:
    """Split an epoch of `steps` steps into calls that end where a validation is due.

    Args:
        trainer: its settings.
        steps: optimizer steps per epoch.
        steps_per_call: largest number of steps per call.

    Raises:
        ConfigError: trainer.val_check_interval is longer than an epoch.
    """
    interval = trainer.val_check_interval
    every = steps if interval is None else interval
    every = max(1, int(steps * every)) if isinstance(every, float) else int(every)
    if every > steps:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is longer than an epoch of {steps} steps, "
            "which engine=compiled does not support. Lower it, or use engine=plain"
        )
    return CallPlan(steps_per_call, steps, every)


def trainer_arguments(trainer: TrainerSettings, plan: CallPlan) -> dict[str, object]:
    """Return the Trainer arguments that count batches, converted to calls."""
    interval = trainer.val_check_interval
    return {
        "limit_train_batches": None,  # part of the plan
        "val_check_interval": None if interval is None else plan.calls_per_validation,
        "gradient_clip_val": None,  # the compiled step clips
        "gradient_clip_algorithm": None,
    }


# ------------------------------------------------------------------------------- the device check

ROWS, STEPS, CLIP = 256, 10, 1.0
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True, slots=True)
class NetPasses:
    """Results of a net on the same rows; all float64 on the CPU.

    Attributes:
        score: of the rows, before training.
        gradient: of the objective, flat.
        weights: after ten steps, flat.
    """

    score: Float[Tensor, " rows"]
    gradient: Float[Tensor, " parameters"]
    weights: Float[Tensor, " parameters"]

    def relative_errors(self, expected: "NetPasses") -> dict[str, float]:
        """Return the L2 norm of each difference over the L2 norm of the expected values."""
        pairs = {
            "forward": (self.score, expected.score),
            "backward": (self.gradient, expected.gradient),
            f"{STEPS} steps": (self.weights, expected.weights),
        }
        return {name: float((a - b).norm() / b.norm()) for name, (a, b) in pairs.items()}


def synthetic_rows(
    features: int,
) -> tuple[Float[Tensor, "rows features"], Float[Tensor, " rows"]]:
    """Return rows with a signal, float64, always the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    return x, torch.sigmoid(x[:, 0] + noise)


def run_passes(
    net: nn.Module,
    *,
    features: int,
    loss: Loss,
    optimizer: MakeOptimizer,
    device: torch.device,
    dtype: torch.dtype,
) -> NetPasses:
    """Run a forward pass, a backward pass and ten steps of a copy of the net on a device.

    Args:
        net: not changed; without dropout, whose masks differ between devices.
        features: inputs per row.
        loss: (forecast, target) -> objective.
        optimizer: makes the optimizer.
        device: to run on.
        dtype: of weights and rows.
    """
    trained = copy.deepcopy(net).to(device, dtype).train()
    x, target = (tensor.to(device, dtype) for tensor in synthetic_rows(features))
    score = trained(x)
    loss(score, target).backward()
    gradient = _flat([p.grad for p in trained.parameters() if p.grad is not None])
    stepper = optimizer(trained.parameters())
    for _ in range(STEPS):
        stepper.zero_grad()
        loss(trained(x), target).backward()
        nn.utils.clip_grad_norm_(trained.parameters(), CLIP)
        stepper.step()
    return NetPasses(_flat([score]), gradient, _flat(list(trained.parameters())))


def compiled_error(
    net: nn.Module, *, features: int, loss: Loss, optimizer: MakeOptimizer
) -> tuple[StepLoop, float]:
    """Run ten steps of the compiled loop, and return it with its relative error to float64.

    Raises:
        NoCompilerError: there is no C++ compiler.
        UnsupportedStepError: the compiler or PyTorch cannot build the loop.
    """
    trained = copy.deepcopy(net).train()
    group = optimizer(trained.parameters()).param_groups[0]
    loop = StepLoop(
        trained,
        link=nn.Identity(),
        loss=loss,
        batch_size=ROWS,
        features=features,
        settings=StepSettings(clip=CLIP, betas=group["betas"], eps=group["eps"]),
    )
    x, target = (tensor.to(torch.float32) for tensor in synthetic_rows(features))
    state = StepState(trained)
    loop.run(
        state,
        x=x,
        target=target,
        rows=torch.arange(ROWS).expand(STEPS, ROWS).contiguous(),
        lr=torch.full((STEPS,), float(group["lr"]), dtype=torch.float64),
        weight_decay=float(group["weight_decay"]),
        seed=0,
    )
    state.store(trained)
    expected = run_passes(
        net,
        features=features,
        loss=loss,
        optimizer=optimizer,
        device=torch.device("cpu"),
        dtype=torch.float64,
    ).weights
    return loop, float((_flat(list(trained.parameters())) - expected).norm() / expected.norm())


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.detach().reshape(-1).to("cpu", torch.float64) for x in tensors])
