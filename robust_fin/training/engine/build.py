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
from robust_fin.training.engine.loop_library import NoCompilerError, note_seconds, usual_seconds
from robust_fin.training.engine.step_state import StepState
from robust_fin.training.engine.steps import StepLoop, StepSettings
from robust_fin.training.lightning_loop import StepCalls
from robust_fin.training.settings import COMPILED, FitSettings, TrainerSettings

log = logging.getLogger(__name__)

_REQUIRED = {  # Trainer arguments that the compiled step has no use for, and what they must be
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
) -> StepCalls | None:
    """The compiled engine where it is asked for and can be had; None means Lightning's own steps.

    Args:
        settings: of the fit.
        net: on the CPU.
        features: inputs a row.
        schedule: optimizer step, counted from 0 -> factor of the learning rate.

    Raises:
        ConfigError: a setting of the Trainer that the compiled engine does not follow.
        UnsupportedStepError: the net cannot be traced as a pure function.
    """
    if not settings.engine.compiled:
        return None
    check_trainer(settings.trainer, what=f"engine={COMPILED}")
    loop = compiled_loop(settings, net, features=features, loss=settings.loss)
    return None if loop is None else StepCalls(loop, schedule=schedule, seed=settings.seed)


def step_settings(settings: FitSettings) -> StepSettings:
    """Return the clipping norm and AdamW's constants of a step that is not Lightning's."""
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
    """The compiled steps of a net; None, with a warning, where there is no compiler.

    Args:
        settings: of the fit.
        net: on the CPU.
        features: inputs a row.
        loss: (forecast, target) -> the objective, or with a setting as third argument.
        loss_takes_setting: whether it has that.
        own_dropout: whether each call is given a rate of dropout.
    """
    try:
        with progress_seconds("compiling, once", usual=usual_seconds()):
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
    except NoCompilerError as error:
        log.warning("%s; the plain engine trains, slower and with the same numbers", error)
        return None
    if not loop.cached:
        note_seconds(loop.compile_seconds)
        log.info("compiling, once: %.1f s", loop.compile_seconds)
    return loop


def check_trainer(trainer: TrainerSettings, *, what: str, processes: bool = False) -> None:
    """Refuse what steps that are not Lightning's would ignore.

    Args:
        trainer: its settings.
        what: that takes those steps, for the message.
        processes: whether several may share the work.

    Raises:
        ConfigError: names the key and the values it may have.
    """
    for key, allowed in _REQUIRED.items():
        value = getattr(trainer, key)
        if value not in allowed and not (processes and key in _PROCESSES):
            raise ConfigError(
                f"trainer.{key}={value} is not for {what}, which knows "
                f"{' or '.join(map(str, allowed))}. Use engine=plain and one net"
            )


def call_plan(trainer: TrainerSettings, steps: int, *, steps_per_call: int) -> CallPlan:
    """Cut an epoch of `steps` steps so that a call ends where a validation is due.

    Args:
        trainer: its settings.
        steps: optimizer steps an epoch.
        steps_per_call: the most steps of one call.

    Raises:
        ConfigError: trainer.val_check_interval is longer than an epoch.
    """
    asked = trainer.val_check_interval
    every = steps if asked is None else asked
    every = max(1, int(steps * every)) if isinstance(every, float) else int(every)
    if every > steps:
        raise ConfigError(
            f"trainer.val_check_interval={asked} is longer than an epoch of {steps} steps, which "
            "engine=compiled does not know. Lower it, or use engine=plain"
        )
    return CallPlan(steps_per_call, steps, every)


def trainer_arguments(trainer: TrainerSettings, plan: CallPlan) -> dict[str, object]:
    """Trainer arguments that count batches, in calls."""
    asked = trainer.val_check_interval
    return {
        "limit_train_batches": None,  # the plan has the limit
        "val_check_interval": None if asked is None else plan.calls_per_validation,
        "gradient_clip_val": None,  # the compiled step clips
        "gradient_clip_algorithm": None,
    }


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
