"""Everything that depends on internals of Lightning: loops, progress counters, connectors."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.loop import _Loop
from torch import Tensor, nn
from torch.optim import Optimizer

from robust_fin.data.batches import Call, StepWindow, TrainCalls, TrainWindows
from robust_fin.training.engine.step_state import StepState, adamw_group, step_keys
from robust_fin.training.engine.steps import StepLoop, StepResult
from robust_fin.training.recovery.record import NonFiniteStep, net_tensors, optimizer_tensors


class CompiledSteps:
    """Runs the compiled steps of one net for `robust_fin.training.module.Forecaster`.

    Args:
        loop: the compiled steps.
        schedule: optimizer step, counted from 0 -> factor of the learning rate.
        seed: of dropout.
    """

    state: StepState

    def __init__(self, loop: StepLoop, *, schedule: Callable[[int], float], seed: int) -> None:
        """Keep the parts; the state is read when training starts."""
        self.loop, self.seed = loop, seed
        self._schedule = schedule

    def begin(self, trainer: L.Trainer, net: nn.Module, *, rate_factor: float) -> None:
        """Load weights and optimizer state, from a checkpoint or the plain engine.

        Args:
            trainer: has the optimizer.
            net: has the weights.
            rate_factor: of the learning rate, besides the schedule's.
        """
        (optimizer,) = trainer.optimizers
        self._base_lr = float(adamw_group(optimizer)["initial_lr"]) * rate_factor
        self.state = StepState(net)
        self.state.load(net, optimizer)

    def run(
        self, trainer: L.Trainer, net: nn.Module, call: Call
    ) -> tuple[StepResult, NonFiniteStep | None]:
        """Run the steps of a call, store the state, and update Lightning's counters.

        Returns:
            The steps that were done, and the first step that is not finite or None. If there is
            one, the state is that before it.
        """
        (optimizer,) = trainer.optimizers
        first, count = trainer.global_step, limit_to_max_steps(trainer, len(call.rows))
        before = [vector.clone() for vector in self.state.vectors], self.state.count
        result = self._steps(optimizer, call, first, count)
        bad = result.first_bad
        if not self._weights_are_finite():
            last = count if bad is None else bad
            bad = self._find_bad_step(optimizer, call, first, last, before)
        self.state.store(net, optimizer)
        if bad is not None:
            done = StepResult(result.loss[:bad], result.gradient_norm[:bad], None)
            return done, self._nonfinite_step(net, optimizer, call, result, first, bad)
        add_optimizer_steps(trainer, count)
        self._set_rate(trainer, optimizer, first + count)
        return result, None

    def _steps(self, optimizer: Optimizer, call: Call, first: int, count: int) -> StepResult:
        """Run the first `count` steps of a call."""
        return self.loop.run(
            self.state,
            x=call.x,
            target=call.target,
            rows=call.rows[:count],
            lr=self.rates(first, count),
            weight_decay=float(adamw_group(optimizer)["weight_decay"]),
            seed=self.seed,
        )

    def _weights_are_finite(self) -> bool:
        return bool(torch.isfinite(self.state.parameters.norm()))

    def _find_bad_step(
        self,
        optimizer: Optimizer,
        call: Call,
        first: int,
        last: int,
        before: tuple[list[Tensor], int],
    ) -> int:
        """Find the step of a call that makes a weight non-finite, by bisection.

        Weights are checked once at the end of a call, which costs nothing; only if one is bad, the
        call is run again. The state is left before the step.

        Args:
            optimizer: has the weight decay.
            call: the call.
            first: optimizer steps done before the call.
            last: number of its steps after which a weight is bad.
            before: the state's vectors and count before the call.
        """
        good = 0
        while last - good > 1:
            middle = (good + last) // 2
            self._replay(optimizer, call, first, middle, before)
            good, last = (middle, last) if self._weights_are_finite() else (good, middle)
        self._replay(optimizer, call, first, good, before)
        return good

    def _replay(
        self,
        optimizer: Optimizer,
        call: Call,
        first: int,
        count: int,
        before: tuple[list[Tensor], int],
    ) -> None:
        """Restore the state and run `count` steps."""
        torch._foreach_copy_(list(self.state.vectors), before[0])
        self.state.count = before[1]
        if count:
            self._steps(optimizer, call, first, count)

    def _nonfinite_step(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        call: Call,
        result: StepResult,
        first: int,
        bad: int,
    ) -> NonFiniteStep:
        """Describe step `bad` of a call; the state is that before it."""
        rows, loss, norm = call.rows[bad], float(result.loss[bad]), float(result.gradient_norm[bad])
        reason = "its loss or gradient is not finite"
        if not self._weights_are_finite():
            reason = "a weight is not finite already before it"
        elif math.isfinite(loss) and math.isfinite(norm):
            reason = "it would make a weight that is not finite"
        return NonFiniteStep(
            step=first + bad,
            loss=loss,
            gradient_norm=norm,
            lr=float(self.rates(first + bad, 1)),
            reason=reason,
            x=call.x[rows],
            target=call.target[rows],
            rows=rows,
            batches=1,
            net=net_tensors(net),
            optimizer=optimizer_tensors(net, optimizer),
            dropout_key=int(step_keys(self.seed, first_step=self.state.count, steps=1)),
        )

    def rates(self, first: int, count: int) -> Tensor:
        """Return the learning rate of each step, float64."""
        factors = [self._schedule(step) for step in range(first, first + count)]
        return torch.tensor(factors, dtype=torch.float64) * self._base_lr

    def _set_rate(self, trainer: L.Trainer, optimizer: Optimizer, step: int) -> None:
        """Leave optimizer and scheduler as the plain engine does after `step` steps."""
        rate = self._base_lr * self._schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for config in trainer.lr_scheduler_configs:
            config.scheduler.last_epoch = step
            config.scheduler._step_count = step + 1
            config.scheduler._last_lr = [rate]


# --------------------------------------------------------------------- counters of a running fit


def limit_to_max_steps(trainer: L.Trainer, planned: int) -> int:
    """Return the steps of a call up to max_steps, and return the others to the loader.

    Lightning counts calls and would take a shortened call for the end of an epoch or of the steps
    between two validations; both are prevented.
    """
    left = trainer.max_steps - trainer.global_step
    if trainer.max_steps < 0 or left >= planned:
        return planned
    loader = trainer.train_dataloader
    assert isinstance(loader, TrainCalls | TrainWindows)
    loader.rewind(planned - left)
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = False
        trainer.val_check_batch = float("inf")
    return left


def add_optimizer_steps(trainer: L.Trainer, count: int) -> None:
    """Count a call as `count` optimizer steps in Lightning's loops."""
    loop = trainer.fit_loop.epoch_loop
    progress = loop.manual_optimization.optim_step_progress
    for part in (progress.total, progress.current):
        part.ready += count
        part.completed += count
    loop._batches_that_stepped += count - 1  # Lightning adds the last one itself


def enter_next_epoch(trainer: L.Trainer) -> None:
    """Start the next epoch from a checkpoint at the end of an epoch.

    If `trainer.max_steps` is set, Lightning would take that epoch for unfinished, end it a second
    time, and skip the next epoch's order of rows.
    """
    loop = trainer.fit_loop
    if not loop.restarted_on_epoch_end:
        return
    loop.epoch_progress.increment_completed()
    _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]
    loop.reset_restart_stage()
    loop.epoch_loop.reset_restart_stage()
    loader = trainer.train_dataloader
    if loader is not None:
        loader.load_state_dict({"next_batch": 0})


def batches_started(trainer: L.Trainer) -> int:
    """Return how many batches of the current epoch have been fetched."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


# --------------------------------------------------------------------- counters in a checkpoint


def convert_loop_counts(
    checkpoint: dict[str, Any], *, completed_calls: Callable[[int], int] | None
) -> None:
    """Convert the counters of a checkpoint to the engine that resumes it.

    The plain engine counts batches and its optimizer's steps, the compiled engine calls and its
    own steps. Both follow from the global step and the position in the epoch.

    Args:
        checkpoint: changed in place.
        completed_calls: steps of an epoch -> completed calls; None for the plain engine, whose
            calls are single steps.
    """
    loops = checkpoint["loops"]["fit_loop"]
    step = int(checkpoint["global_step"])
    manual = loops["epoch_loop.manual_optimization.optim_step_progress"]["total"]
    automatic = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    for total in (manual, automatic["total"]):
        total["ready"], total["completed"] = step, step
    steps_done = loops["state_dict"]["combined_loader"][0]["next_batch"]
    progress = loops["epoch_loop.batch_progress"]
    done = steps_done if completed_calls is None else completed_calls(steps_done)
    shift = done - progress["current"]["ready"]
    if shift:  # otherwise an interrupted last call of an epoch would count as its end
        progress["is_last_batch"] = False
    for counts in (progress["current"], progress["total"]):
        for key in ("ready", "started", "processed", "completed"):
            counts[key] += shift


def undo_batch_start(checkpoint: dict[str, Any], batch: object) -> None:
    """Undo the count of a batch that was fetched but not trained on.

    Args:
        checkpoint: as dumped when the batch starts; changed in place.
        batch: the batch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_loop.batch_progress"]
    for counts in (progress["current"], progress["total"]):
        counts["ready"] -= 1
    (loader,) = loops["state_dict"]["combined_loader"]
    loader["next_batch"] -= batch_steps(batch)
    _undo_batch_end(loops)


def batch_steps(batch: object) -> int:
    """Return the optimizer steps of a batch, call or window."""
    if isinstance(batch, StepWindow):
        return batch.stop - batch.start
    return len(batch.rows) if isinstance(batch, Call) else 1


def undo_epoch_end(checkpoint: dict[str, Any]) -> None:
    """Undo the end of an epoch that was cut short, which Lightning counts as complete.

    Args:
        checkpoint: as dumped at the end of the epoch; changed in place.
    """
    loops = checkpoint["loops"]["fit_loop"]
    for part in ("current", "total"):
        loops["epoch_progress"][part]["processed"] -= 1
    _undo_batch_end(loops)


def _undo_batch_end(loops: dict[str, Any]) -> None:
    progress = loops["epoch_loop.batch_progress"]
    for counts in (progress["current"], progress["total"]):
        counts["completed"] -= 1
    progress["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def is_fit_complete(trainer: L.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Return True if a resumed checkpoint has no step left to do."""
    done = (epochs_done(checkpoint), checkpoint["global_step"])
    limits = (trainer.max_epochs, trainer.max_steps)
    pairs = zip(limits, done, strict=True)
    return any(limit is not None and -1 < limit <= count for limit, count in pairs)


def next_logged_step(checkpoint: dict[str, Any]) -> int:
    """Return the step at which a resumed checkpoint continues the curves."""
    loops = checkpoint["loops"]["fit_loop"]
    total = loops["epoch_loop.batch_progress"]["total"]
    uncounted = total["completed"] < total["processed"]  # written at the end of a batch
    return int(loops["epoch_loop.state_dict"]["_batches_that_stepped"]) + uncounted


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return how many epochs were complete when a checkpoint was written."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


# ----------------------------------------------------------- connectors, callbacks and loggers


def logged_metrics(trainer: L.Trainer) -> dict[str, Any]:
    """Return the metrics that callbacks such as EarlyStopping read; changing it changes theirs."""
    return trainer._logger_connector._callback_metrics


def set_original_handlers(trainer: L.Trainer, handlers: dict[int, Any]) -> None:
    """Set the signal handlers that Lightning restores after an exception."""
    trainer._signal_connector._original_handlers.update(handlers)


def forget_sigterm(trainer: L.Trainer) -> None:
    """Clear Lightning's SIGTERM flag; otherwise the process would exit with code 0."""
    trainer._signal_connector.received_sigterm = False


class TrackedCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that knows the optimizer step of the best checkpoint.

    Attributes:
        best_step: optimizer step at which the best checkpoint was written; 0 before there is one.
    """

    best_step = 0

    def save_again_from(self, step: int) -> None:
        """Allow another save after a rollback to `step`, even at a step that was saved before."""
        if self._last_global_step_saved > step:
            self._last_global_step_saved = 0

    def set_best_step(self, step: int) -> None:
        """Record that the best checkpoint was written at `step`."""
        self._last_global_step_saved = self.best_step = step

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.best_step = trainer.global_step


def logger_prefix(logger: TensorBoardLogger) -> str:
    """Return the text before every tag of a logger."""
    return f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""
