"""The LightningModule: it wires net, link, loss, optimizer and schedule, and owns no maths."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from robust_fin.data.batches import Batch, Call, CallPlan, ScoredBatch
from robust_fin.errors import ConfigError
from robust_fin.training.calls import StepCalls, translate_loops
from robust_fin.training.span_scores import SpanScores
from robust_fin.training.stability import require_finite_step
from robust_fin.training.steps import StepResult

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
        calls: the compiled engine, which then does the steps; None leaves them to Lightning.
        plan: how an epoch is cut into its calls.
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
        calls: StepCalls | None = None,
        plan: CallPlan | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__()
        self.net, self.link, self.loss = net, link, loss
        self._optimizer, self._schedule = optimizer, schedule
        self.val = val
        self.objective = MeanMetric(nan_strategy="disable")  # else it drops NaN in silence
        self.calls, self.plan = calls, plan
        self.automatic_optimization = calls is None
        self.gradient_norm: Tensor | None = None
        self._losses: Tensor | float = 0.0  # of the batches since the last optimizer step

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Forecasts, in rank units."""
        return self.link(self.net(x))

    def on_train_start(self) -> None:
        """Hand weights and optimizer over to the compiled engine."""
        if self.calls is not None:
            self.calls.begin(self.trainer, self.net)

    def training_step(self, batch: Batch | Call, batch_idx: int) -> Tensor | None:  # noqa: ARG002
        """The objective of one batch; or, compiled, all the steps of one call."""
        if isinstance(batch, Call):
            assert self.calls is not None
            self._log_call(self.calls.run(self.trainer, self.net, batch))
            return None
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

    def on_train_batch_end(self, outputs: object, batch: Batch | Call, batch_idx: int) -> None:  # noqa: ARG002
        """Log the gradient's norm where a point of the curves is due."""
        if self.gradient_norm is not None:
            self.log("train/gradient_norm", self.gradient_norm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the counts of this engine, whichever wrote the checkpoint."""
        translate_loops(checkpoint, calls_done=self.plan.calls_done if self.plan else None)

    def _log_call(self, result: StepResult) -> None:
        """Draw the points of the curves that fall due within a call."""
        assert self.calls is not None
        self.objective.update(result.loss)
        self.log("train/objective", result.loss.mean(), prog_bar=True, logger=False)
        first = self.global_step - len(result.loss)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        rates = self.calls.rates(first, len(result.loss))
        for at in range((-first - 1) % every, len(result.loss), every):
            point = {
                "train/objective": float(result.loss[at]),
                "train/gradient_norm": float(result.gradient_norm[at]),
                "lr": float(rates[at]),
            }
            for logger in self.loggers:
                logger.log_metrics(point, step=first + at)

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
