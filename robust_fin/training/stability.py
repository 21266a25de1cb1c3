"""What makes a run stop before, and never after, a number stops being one."""

from collections.abc import Iterable

import lightning as L
import torch
from torch import Tensor, nn

from robust_fin.errors import NonFiniteError


def require_finite_step(
    loss: Tensor | float,
    norm: Tensor,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    step: int,
) -> None:
    """Stop before the optimizer's step when the loss or the gradient's norm is NaN or infinite.

    After the step it is too late: clipping by a NaN norm spreads it over every weight, and the
    weights no longer tell which came first. The loss is read too, because under Huber or absolute
    loss an infinite target has a finite gradient.

    Args:
        loss: sum over the batches of the step.
        norm: of all gradients, before clipping.
        parameters: named, with their gradients.
        step: optimizer steps done.

    Raises:
        NonFiniteError: names the parameters whose gradients are not finite.
    """
    if torch.isfinite(norm + loss):
        return
    bad = [n for n, p in parameters if p.grad is not None and not torch.isfinite(p.grad).all()]
    raise NonFiniteError(
        f"the loss is {float(loss)} and the gradient's norm {float(norm)} at step {step}, before "
        f"the weights were changed; gradients that are not finite: {', '.join(bad) or 'none'}. "
        "Lower optimizer.lr, or tame the features with transform=robust_clip"
    )


def require_finite_weights(net: nn.Module, *, when: str) -> None:
    """Stop when a weight is NaN or infinite.

    Args:
        net: whose weights are read.
        when: for the message, such as `at the end of epoch 3`.

    Raises:
        NonFiniteError: names the weights.
    """
    bad = [name for name, p in net.state_dict().items() if not torch.isfinite(p).all()]
    if bad:
        raise NonFiniteError(
            f"weights are not finite {when}: {', '.join(bad)}. The run stops; lower optimizer.lr"
        )


class StopOnNonFiniteWeights(L.Callback):
    """Reads every weight after each epoch and before the run ends, so that none ends "finished"."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check after the epoch's last step."""
        require_finite_weights(pl_module, when=f"at the end of epoch {trainer.current_epoch}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check what is handed on."""
        require_finite_weights(pl_module, when=f"after {trainer.global_step} steps")
