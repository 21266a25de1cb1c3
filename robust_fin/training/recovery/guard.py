"""Checks that stop a run before a non-finite number reaches the weights."""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import lightning as L
import torch
from torch import Tensor, nn

from robust_fin.errors import ConfigError, NonFiniteError
from robust_fin.runtime.terminal import command_hint
from robust_fin.training.recovery.record import NonFiniteStep, StepRecorder

RECORDED_NORMS = 100  # gradient norms kept for a record
_UNREAD_NORMS = 1 << 16  # gradient norms kept for the next diagnosis, at most
_STORED = ("rollbacks", "nonfinite_steps", "largest_norm")
_FP16 = (16, "16", "16-mixed")
REMEDY = "Lower optimizer.lr, or limit the features with transform=robust_clip"


class StepNumbers(NamedTuple):
    """The numbers that decide whether an optimizer step is taken.

    Attributes:
        loss: sum over the batches of the step. Under Huber or absolute loss an infinite target has
            a finite gradient, so the gradient alone is not enough.
        gradient_norm: of all gradients, before clipping.
        weights: norm of each weight. A norm overflows when a square does, in float32 from 1.8e19
            on. Such a weight counts as not finite.
    """

    loss: float
    gradient_norm: float
    weights: Sequence[float]

    @property
    def finite(self) -> bool:
        """True if the step may be taken."""
        return all(map(math.isfinite, (self.loss, self.gradient_norm, *self.weights)))


@torch.no_grad()
def read_step(loss: Tensor, gradient_norm: Tensor, weights: Sequence[nn.Parameter]) -> StepNumbers:
    """Copy the numbers of a step from the device in one transfer.

    The weights are those that the previous step left, so a bad weight is noticed before it is used.
    """
    norms = torch._foreach_norm(list(weights))
    first, second, *rest = torch.stack([loss.float(), gradient_norm, *norms]).tolist()
    return StepNumbers(first, second, rest)


def is_skipped_by_scaler(numbers: StepNumbers, scaler: torch.amp.GradScaler | None) -> bool:
    """Return True if the fp16 scaler handles a step whose numbers are not all finite.

    The scaler skips a step whose gradient overflows, and halves its scale. It cannot repair a loss
    or a weight that is not finite, nor a gradient that is not finite at scale 1.

    Args:
        numbers: not all finite.
        scaler: None without fp16.
    """
    if scaler is None or not all(map(math.isfinite, (numbers.loss, *numbers.weights))):
        return False
    return scaler.get_scale() > 1.0


class StepGuard:
    """Rejects an optimizer step that is not finite, after writing a record for `replay`.

    Args:
        recorder: writes the record; None writes none.

    Attributes:
        norms: gradient norms of the last steps, the newest last.
        window: gradient norms since the last diagnosis.
        rollbacks: of this fit so far; each halves the learning rate.
        nonfinite_steps: steps that were not taken: rolled back, or skipped by the fp16 scaler.
        largest_norm: largest gradient norm so far, before clipping; NaN before the first step.
    """

    def __init__(self, recorder: StepRecorder | None = None) -> None:
        self.recorder = recorder
        self.norms: deque[float] = deque(maxlen=RECORDED_NORMS)
        self.window: deque[float] = deque(maxlen=_UNREAD_NORMS)
        self.rollbacks = self.nonfinite_steps = 0
        self.largest_norm = math.nan

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rate after the rollbacks so far."""
        return 0.5**self.rollbacks

    def add_norms(self, norms: Sequence[float]) -> None:
        """Append gradient norms."""
        self.norms.extend(norms)
        self.window.extend(norms)
        finite = [norm for norm in (*norms, self.largest_norm) if math.isfinite(norm)]
        self.largest_norm = max(finite, default=math.nan)

    def state_dict(self) -> dict[str, float]:
        """Return the counts that a checkpoint stores."""
        return {name: getattr(self, name) for name in _STORED}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the counts of a checkpoint."""
        for name in _STORED:
            setattr(self, name, state[name])

    def reject(self, step: NonFiniteStep) -> NoReturn:
        """Write the record of a step and raise NonFiniteError."""
        hint = ""
        if self.recorder is not None:
            path = self.recorder.try_write(step, norms=list(self.norms))
            if path is not None:
                command = command_hint("replay", "record", path)
                hint = f". {command} shows the module and the rows"
        raise NonFiniteError(
            f"the loss is {step.loss} and the gradient norm {step.gradient_norm} at step "
            f"{step.step}, before the weights were changed; {step.reason}. {REMEDY}{hint}"
        )


def nonfinite_weights(net: nn.Module) -> list[str]:
    """Return the names of weights and buffers that are NaN, infinite or too large to square."""
    large = {name for name, weight in net.named_parameters() if not weight.norm().isfinite()}
    state = net.state_dict().items()
    return [name for name, value in state if name in large or not value.isfinite().all()]


def describe_nonfinite(net: nn.Module) -> str:
    """Name the weights of a net that are not finite, or else the gradients."""
    if weights := nonfinite_weights(net):
        return f"weights that were not finite before the step: {', '.join(weights)}"
    gradients = {name: weight.grad for name, weight in net.named_parameters()}
    bad = [k for k, grad in gradients.items() if grad is not None and not grad.isfinite().all()]
    return f"gradients that are not finite: {', '.join(bad) or 'none'}"


def check_finite_weights(net: nn.Module, *, when: str) -> None:
    """Raise NonFiniteError if a weight is NaN, infinite or too large to square.

    Args:
        net: the module to check.
        when: for the message, such as `at the end of epoch 3`.
    """
    if bad := nonfinite_weights(net):
        raise NonFiniteError(f"weights are not finite {when}: {', '.join(bad)}. Lower optimizer.lr")


class StopOnNonFiniteWeights(L.Callback):
    """Stops a run whose weights are not finite before they are validated, saved or returned."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check before validation."""
        check_finite_weights(pl_module, when=f"at step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check after the last step of the epoch."""
        check_finite_weights(pl_module, when=f"at the end of epoch {trainer.current_epoch}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the final weights."""
        check_finite_weights(pl_module, when=f"after {trainer.global_step} steps")


def check_precision(precision: int | str, *, accelerator: str) -> None:
    """Raise ConfigError for fp16 on a CPU, where Lightning would silently use bf16.

    Args:
        precision: of the Trainer.
        accelerator: of the Trainer.
    """
    on_cpu = accelerator == "cpu" or (
        accelerator == "auto" and not torch.accelerator.is_available()
    )
    if precision in _FP16 and on_cpu:
        raise ConfigError(
            f"trainer.precision={precision} needs a GPU; on a CPU use "
            "trainer.precision=bf16-mixed or 32-true"
        )
