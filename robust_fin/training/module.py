"""The LightningModule that trains one net, and the torchmetrics Metric for its val span."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities import dim_zero_cat

from robust_fin.data.batches import Batch, Call, CallPlan, ScoredBatch, TrainBatches
from robust_fin.errors import ConfigError
from robust_fin.metrics import span_metrics
from robust_fin.training.engine.steps import StepResult, steps_to_log
from robust_fin.training.lightning_loop import CompiledSteps, convert_loop_counts
from robust_fin.training.losses import check_same_shape
from robust_fin.training.recovery.guard import (
    StepGuard,
    StepNumbers,
    describe_nonfinite,
    is_skipped_by_scaler,
    read_step,
)
from robust_fin.training.recovery.record import (
    NonFiniteStep,
    last_batch_rows,
    net_tensors,
    optimizer_tensors,
)

Scores = Float[np.ndarray, " rows"]
Link = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Schedule = Callable[[int], float]


class SpanScores(Metric):
    """Collects the forecasts of a span and computes `robust_fin.metrics.span_metrics` of them.

    It keeps whole vectors, because the rank correlations of parts do not add up to that of the
    span. Under DDP the vectors of all ranks are gathered, so the metrics are exact.

    Args:
        train_median: of the target over the training rows, in rank units.
        train_mean: of the target over the training rows, in rank units.
        to_rank: forecast -> rank units; None if the net forecasts ranks.
    """

    full_state_update = False
    score: list[Tensor]
    target: list[Tensor]
    outcome: list[Tensor]

    def __init__(
        self,
        *,
        train_median: float,
        train_mean: float,
        to_rank: Callable[[Scores], Scores] | None = None,
    ) -> None:
        super().__init__()
        self.train_median, self.train_mean, self.to_rank = train_median, train_mean, to_rank
        for name in ("score", "target", "outcome"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        score: Float[Tensor, " batch"],
        target: Float[Tensor, " batch"],
        outcome: Float[Tensor, " batch"],
    ) -> None:
        """Append a batch."""
        self.score.append(score)
        self.target.append(target)
        self.outcome.append(outcome)

    def forecasts(self) -> Scores:
        """Return the forecasts collected so far by this process, in rank units."""
        score = _to_float64(self.score)
        return score if self.to_rank is None else self.to_rank(score)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Return the metrics of the span by name, as float32 scalars."""
        metrics = span_metrics(
            self.forecasts(),
            _to_float64(self.target),
            _to_float64(self.outcome),
            train_median=self.train_median,
            train_mean=self.train_mean,
        )
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in metrics.items()}


def _to_float64(batches: list[Tensor] | Tensor) -> Scores:
    """Concatenate a metric state: a list of batches, or a tensor after it is gathered."""
    vector: np.ndarray = dim_zero_cat(batches).double().cpu().numpy()
    return vector


class Forecaster(L.LightningModule):
    """Trains a net to forecast the rank of the forward return.

    Args:
        net: (batch, features) -> (batch,), raw scores.
        link: raw score -> forecast, in rank units.
        loss: (forecast, target) -> the objective.
        optimizer: makes the optimizer of the net's parameters.
        schedule: optimizer step, counted from 0 -> factor of the learning rate.
        val: collects the forecasts of the val span.
        calls: runs the steps in the compiled engine; None lets Lightning run them.
        plan: how the compiled engine divides an epoch into calls.

    Attributes:
        guard: rejects optimizer steps that are not finite.
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
        calls: CompiledSteps | None = None,
        plan: CallPlan | None = None,
    ) -> None:
        super().__init__()
        self.net, self.link, self.loss = net, link, loss
        self._optimizer, self._schedule = optimizer, schedule
        self.val = val
        self.objective = MeanMetric(nan_strategy="disable")  # the default drops NaN silently
        self.calls, self.plan = calls, plan
        self.automatic_optimization = calls is None
        self.guard = StepGuard()
        self.gradient_norm: Tensor | None = None
        self._pending: list[Batch] = []  # batches since the last optimizer step
        self._losses: Tensor | float = 0.0  # sum of their losses
        self._loss: Tensor | None = None  # loss of the last batch
        self._rng_state: Tensor | None = None  # before the first pending batch

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Return the forecasts, in rank units."""
        return self.link(self.net(x))

    def on_train_start(self) -> None:
        """Pass weights and optimizer state to the compiled engine."""
        self._begin_step()
        if self.calls is not None:
            self.calls.begin(self.trainer, self.net, rate_factor=self.guard.rate_factor)

    def training_step(self, batch: Batch | Call, batch_idx: int) -> Tensor | None:  # noqa: ARG002
        """Return the loss of a batch; in the compiled engine, run all steps of a call."""
        if isinstance(batch, Call):
            self._run_call(batch)
            return None
        if not self._pending:
            self._rng_state = torch.get_rng_state()
        self._pending.append(batch)
        forecast = self(batch.x)
        check_same_shape(forecast, batch.target)
        loss = self.loss(forecast, batch.target)
        self.objective.update(loss.detach())
        self._loss = loss.detach()
        self._losses = self._losses + self._loss
        return loss

    def on_train_epoch_start(self) -> None:
        """Reset the mean objective of the epoch."""
        self.objective.reset()

    def validation_step(self, batch: ScoredBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Collect forecasts."""
        self.val.update(self(batch.x), batch.target, batch.outcome)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the val span."""
        for name, value in self.val.compute().items():
            self.log(f"val/{name}", value, prog_bar=name == "skill")
        self.val.reset()

    def val_forecasts(self) -> Float[np.ndarray, " rows"]:
        """Return the forecasts of the running validation, in rank units."""
        return self.val.forecasts()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer is configured; reject a step that is not finite.

        After the step it is too late: clipping by a NaN norm spreads NaN over every weight, and the
        weights no longer show which was the first. `gradient_norm` is the norm before clipping. The
        fp16 scaler must be able to update after unscaling, so there is no early return between the
        two.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves it to the step of such an optimizer
        parameters = [p for p in self.parameters() if p.grad is not None]
        self.gradient_norm = nn.utils.get_total_norm(
            [p.grad for p in parameters if p.grad is not None]
        )
        numbers = read_step(self._summed_loss(), self.gradient_norm, list(self.net.parameters()))
        if not numbers.finite:
            if not is_skipped_by_scaler(numbers, scaler):
                self.guard.reject(self._pending_step(numbers, optimizer))
            self.guard.nonfinite_steps += 1
        self.guard.add_norms([numbers.gradient_norm])
        self._begin_step()
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm)

    def _summed_loss(self) -> Tensor:
        """Sum over the pending batches and all ranks, so that every rank decides the same."""
        assert isinstance(self._losses, Tensor)
        if self.trainer.world_size == 1:
            return self._losses
        return self.trainer.strategy.reduce(self._losses, reduce_op="sum")

    def _begin_step(self) -> None:
        self._pending, self._losses = [], 0.0

    def _pending_step(self, numbers: StepNumbers, optimizer: Optimizer) -> NonFiniteStep:
        loader, batches = self.trainer.train_dataloader, len(self._pending)
        rows = None
        if isinstance(loader, TrainBatches):
            rows = last_batch_rows(loader.order, batches=batches)
        return NonFiniteStep(
            step=self.global_step,
            loss=numbers.loss,
            gradient_norm=numbers.gradient_norm,
            lr=float(optimizer.param_groups[0]["lr"]),
            reason=describe_nonfinite(self.net),
            x=torch.cat([batch.x for batch in self._pending]),
            target=torch.cat([batch.target for batch in self._pending]),
            rows=rows,
            batches=batches,
            net=net_tensors(self.net),
            optimizer=optimizer_tensors(self.net, optimizer),
            rng_state=self._rng_state,
            rank=self.global_rank if self.trainer.world_size > 1 else None,
        )

    def on_train_batch_end(self, outputs: object, batch: Batch | Call, batch_idx: int) -> None:  # noqa: ARG002
        """Log the optimizer step that this batch completed."""
        if self.calls is None and not self._pending:
            self._log_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the counts of the guard."""
        checkpoint["stability"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts of the guard; convert those of the loops to this engine."""
        self.guard.load_state_dict(checkpoint["stability"])
        convert_loop_counts(
            checkpoint, completed_calls=self.plan.completed_calls if self.plan else None
        )

    def _run_call(self, call: Call) -> None:
        """Run and log the steps of a call; reject its first step that is not finite."""
        assert self.calls is not None
        first = self.global_step
        result, bad = self.calls.run(self.trainer, self.net, call)
        self.guard.add_norms(result.gradient_norm.tolist())
        self._log_call(result, first)
        if bad is not None:
            self.guard.reject(bad)

    def _log_step(self) -> None:
        step = self.global_step - 1
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not steps_to_log(step, 1, every=every):
            return
        assert self._loss is not None
        assert self.gradient_norm is not None
        self.log("train/objective", self._loss, prog_bar=True, logger=False)
        (optimizer,) = self.trainer.optimizers
        self._log_point(step, self._loss, self.gradient_norm, self.rate(optimizer, step))

    def _log_call(self, result: StepResult, first: int) -> None:
        """Log the steps of a call, the first of which is step `first` of the run."""
        assert self.calls is not None
        if not len(result.loss):
            return
        self.objective.update(result.loss)
        self.log("train/objective", result.loss.mean(), prog_bar=True, logger=False)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        rates = self.calls.rates(first, len(result.loss))
        for at in steps_to_log(first, len(result.loss), every=every):
            self._log_point(first + at, result.loss[at], result.gradient_norm[at], rates[at])

    def _log_point(self, step: int, loss: Tensor, norm: Tensor, rate: Tensor | float) -> None:
        """Write a point to the loggers directly.

        `self.log` would process the values at every step, which costs a fifth of the step's time.
        """
        point = {"train/objective": loss, "train/gradient_norm": norm, "lr": rate}
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in point.items()}, step=step)

    def rate(self, optimizer: Optimizer, step: int) -> float:
        """Return the learning rate of an optimizer step."""
        base: float = optimizer.param_groups[0]["initial_lr"]  # set by the scheduler
        return base * self._schedule(step) * self.guard.rate_factor

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer, and the schedule as a scheduler that advances at every step."""
        try:
            optimizer = self._optimizer(self.net.parameters())
        except ValueError as error:
            raise ConfigError(f"the optimizer rejects its settings: {error}") from error
        # the guard is read at every step, because loading a checkpoint changes its rollbacks
        scheduler = LambdaLR(optimizer, lambda step: self._schedule(step) * self.guard.rate_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }


def parameter_count(net: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
