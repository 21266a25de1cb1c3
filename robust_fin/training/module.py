"""The LightningModule: it wires net, link, loss, optimizer and schedule, and owns no maths."""

from collections.abc import Callable, Iterable

import lightning as L
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from robust_fin.data.batches import Batch, ScoredBatch
from robust_fin.errors import ConfigError
from robust_fin.training.span_scores import SpanScores
from robust_fin.training.stability import require_finite_step

Link = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Schedule = Callable[[int], float]


class Forecaster(L.LightningModule):
    """Trains a net to forecast the rank of the forward return.

    Args:
        net: (batch, features) -> (batch,), raw scores.
        link: raw score -> forecast, in rank units.
        loss: (forecast, target) -> the objective.
        optimizer: makes the optimizer of the net's parameters.
        schedule: optimizer step, counted from 0 -> factor of the learning rate.
        val: the figures of the val span, against the trivial forecasts of the training rows.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        link: Link,
        loss: Loss,
        optimizer: MakeOptimizer,
        schedule: Schedule,
        val: SpanScores,
    ) -> None:
        """Keep the parts."""
        super().__init__()
        self.net, self.link, self.loss = net, link, loss
        self._optimizer, self._schedule = optimizer, schedule
        self.val = val
        self.objective = MeanMetric(nan_strategy="disable")  # else it drops NaN in silence
        self.gradient_norm: Tensor | None = None
        self._losses: Tensor | float = 0.0  # of the batches since the last optimizer step

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Forecasts, in rank units."""
        return self.link(self.net(x))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The objective of one batch."""
        loss = self.loss(self(batch.x), batch.target)
        self.objective.update(loss.detach())
        self._losses = self._losses + loss.detach()
        self.log("train/objective", loss, prog_bar=True)
        return loss

    def on_train_epoch_start(self) -> None:
        """A mean over the epoch starts afresh."""
        self.objective.reset()

    def validation_step(self, batch: ScoredBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Gather forecasts."""
        self.val.update(self(batch.x), batch.target, batch.outcome)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole span."""
        for name, value in self.val.compute().items():
            self.log(f"val/{name}", value, prog_bar=name == "skill")
        self.val.reset()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says; stop before a step that would poison the weights.

        The norm is the one before clipping. In fp16 the scaler skips a step whose gradient is not
        finite, and lowers its scale; that is its work, not a failure.
        """
        parameters = [p for p in self.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.gradient_norm = nn.utils.get_total_norm(gradients)
        losses, self._losses = self._losses, 0.0
        if self.trainer.precision != "16-mixed":
            require_finite_step(
                losses, self.gradient_norm, self.named_parameters(), step=self.global_step
            )
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm)
        else:
            self.clip_gradients(
                optimizer,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm=gradient_clip_algorithm,
            )

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Log the gradient's norm where a point of the curves is due."""
        if self.gradient_norm is not None:
            self.log("train/gradient_norm", self.gradient_norm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer, and the schedule as a step-wise scheduler."""
        try:
            optimizer = self._optimizer(self.net.parameters())
        except ValueError as error:
            raise ConfigError(f"the optimizer refuses its settings: {error}") from error
        scheduler = LambdaLR(optimizer, self._schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }


def parameter_count(net: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
