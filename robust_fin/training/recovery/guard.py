"""Checks that stop a run before a non-finite number reaches the weights."""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from robust_fin.errors import ConfigError, NonFiniteError
from robust_fin.training.recovery.record import NonFiniteStep, StepRecorder

HISTORY = 100  # gradient norms that a record holds
WINDOW = 1 << 16  # and those that wait to be drawn, at most
FP16_PRECISIONS = (16, "16", "16-mixed")
REMEDY = "Lower optimizer.lr, or tame the features with transform=robust_clip"


class StepNumbers(NamedTuple):
    """What a step is judged by before it is taken.

    Attributes:
        loss: sum over the batches of the step; read too, because under Huber or absolute loss an
            infinite target has a finite gradient.
        gradient_norm: of all gradients, before clipping.
        weights: norm of each weight. A norm overflows where a square does, in float32 from 1.8e19
            on: such a weight is as lost as an infinite one.
    """

    loss: float
    gradient_norm: float
    weights: Sequence[float]

    @property
    def finite(self) -> bool:
        """Whether the step may be taken."""
        return all(map(math.isfinite, (self.loss, self.gradient_norm, *self.weights)))


@torch.no_grad()
def read_step(loss: Tensor, gradient_norm: Tensor, weights: Sequence[nn.Parameter]) -> StepNumbers:
    """The numbers of a step, brought from the device at once.

    The weights are those that the step before left, so that a bad one is met before it is used.
    """
    norms = torch._foreach_norm(list(weights))
    first, second, *rest = torch.stack([loss.float(), gradient_norm, *norms]).tolist()
    return StepNumbers(first, second, rest)


def is_skipped_by_scaler(numbers: StepNumbers, scaler: torch.amp.GradScaler | None) -> bool:
    """Whether a step that is not finite is the fp16 scaler's to skip, and no failure.

    It skips a step whose gradient overflows and halves its scale. A loss or a weight that is not
    finite it cannot heal, nor a gradient that is not finite without any scaling.

    Args:
        numbers: not all finite.
        scaler: None without fp16.
    """
    if scaler is None or not all(map(math.isfinite, (numbers.loss, *numbers.weights))):
        return False
    return scaler.get_scale() > 1.0


class StepGuard:
    """Refuses a step that is not finite, after recording what is needed to see it again.

    Args:
        recorder: writes the record; None writes none.

    Attributes:
        norms: gradient norms of the last steps, the newest last.
        window: those that no diagnosis has read yet.
        rollbacks: of this fit so far; each halves the learning rate.
        nonfinite_steps: that were not taken: each led to a rollback, or the fp16 scaler skipped it.
        largest_norm: of the gradients of all steps taken, before clipping; NaN before the first.
    """

    def __init__(self, recorder: StepRecorder | None = None) -> None:
        """Nothing happened yet."""
        self.recorder = recorder
        self.norms: deque[float] = deque(maxlen=HISTORY)
        self.window: deque[float] = deque(maxlen=WINDOW)
        self.rollbacks = self.nonfinite_steps = 0
        self.largest_norm = math.nan

    @property
    def rate_factor(self) -> float:
        """Of the learning rate."""
        return 0.5**self.rollbacks

    def note(self, norms: Sequence[float]) -> None:
        """Remember gradient norms."""
        self.norms.extend(norms)
        self.window.extend(norms)
        taken = [one for one in (*norms, self.largest_norm) if math.isfinite(one)]
        self.largest_norm = max(taken, default=math.nan)

    def state_dict(self) -> dict[str, float]:
        """What a run that goes on must know."""
        return {
            "rollbacks": self.rollbacks,
            "nonfinite_steps": self.nonfinite_steps,
            "largest_norm": self.largest_norm,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with the counts of a checkpoint."""
        self.rollbacks, self.nonfinite_steps = (
            int(state[name]) for name in ("rollbacks", "nonfinite_steps")
        )
        self.largest_norm = state["largest_norm"]

    def reject(self, bad: NonFiniteStep) -> NoReturn:
        """Record the step and stop.

        Raises:
            NonFiniteError: says what was not finite, and where the record lies.
        """
        told = "" if self.recorder is None else self.recorder.told(bad, norms=list(self.norms))
        raise NonFiniteError(
            f"the loss is {bad.loss} and the gradient's norm {bad.gradient_norm} at step "
            f"{bad.step}, before the weights were changed; {bad.reason}. {REMEDY}{told}"
        )


def describe_nonfinite(net: nn.Module) -> str:
    """The weights and gradients of a net that are not finite, in words."""
    named = dict(net.named_parameters())
    weights = [name for name, p in named.items() if not torch.isfinite(p.norm())]
    if weights:
        return f"weights that are not finite already before it: {', '.join(weights)}"
    bad = [n for n, p in named.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
    return f"gradients that are not finite: {', '.join(bad) or 'none'}"


def check_finite_weights(net: nn.Module, *, when: str) -> None:
    """Stop when a weight is NaN or infinite, or so large that its square is.

    Args:
        net: whose weights are read.
        when: for the message, such as `at the end of epoch 3`.

    Raises:
        NonFiniteError: names the weights.
    """
    bad = [name for name, one in net.state_dict().items() if not torch.isfinite(one).all()]
    large = [name for name, p in net.named_parameters() if not torch.isfinite(p.norm())]
    bad += [name for name in large if name not in bad]
    if bad:
        raise NonFiniteError(
            f"weights are not finite {when}: {', '.join(bad)}. The run stops; lower optimizer.lr"
        )


class StopOnNonFiniteWeights(L.Callback):
    """Reads every weight where weights are used or handed on, so that none ends "finished"."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check before a figure could be made of them."""
        check_finite_weights(pl_module, when=f"at step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check after the epoch's last step."""
        check_finite_weights(pl_module, when=f"at the end of epoch {trainer.current_epoch}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check what is handed on."""
        check_finite_weights(pl_module, when=f"after {trainer.global_step} steps")


def check_precision(settings: DictConfig) -> None:
    """Refuse fp16 mixed precision on a CPU, where Lightning would take bf16 instead.

    Args:
        settings: of the Trainer.

    Raises:
        ConfigError: says what to write instead.
    """
    automatic = settings.accelerator == "auto" and not torch.accelerator.is_available()
    if settings.precision in FP16_PRECISIONS and (settings.accelerator == "cpu" or automatic):
        raise ConfigError(
            f"trainer.precision={settings.precision} is for a GPU; on a CPU write "
            "trainer.precision=bf16-mixed or 32-true"
        )
