"""Everything that depends on the internals of Lightning's loops."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
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

    def __init__(self, loop: StepLoop, *, schedule: Callable[[int], float], seed: int) -> None:
        """The state is read when training starts."""
        self.loop, self.seed = loop, seed
        self._schedule = schedule
        self.state: StepState | None = None

    def begin(self, trainer: L.Trainer, net: nn.Module, *, rate_factor: float) -> None:
        """Take weights and optimizer state over, as a checkpoint or the plain engine left them.

        Args:
            trainer: whose optimizer it is.
            net: whose weights.
            rate_factor: of the learning rate, beside the schedule's.
        """
        (optimizer,) = trainer.optimizers
        self._base_lr = float(adamw_group(optimizer)["initial_lr"]) * rate_factor
        self.state = StepState(net)
        self.state.load(net, optimizer)

    def run(
        self, trainer: L.Trainer, net: nn.Module, call: Call
    ) -> tuple[StepResult, NonFiniteStep | None]:
        """Do the steps of a call, hand the state back, and keep the counts.

        Returns:
            The steps that were taken, and the first one that was not, where there is such a step:
            then the state is the one before it.
        """
        assert self.state is not None
        (optimizer,) = trainer.optimizers
        first, count = trainer.global_step, limit_to_max_steps(trainer, len(call.rows))
        before, done = [one.clone() for one in self.state.vectors], self.state.count
        result = self._steps(optimizer, call, first, count)
        bad = result.first_bad
        if not self._weights_are_finite():
            last = count if bad is None else bad
            bad = self._poisoning_step(optimizer, call, first, last, before=(before, done))
        self.state.store(net, optimizer)
        if bad is not None:
            return first_steps(result, bad), self._bad_step(
                net, optimizer, call, result, first, bad
            )
        add_optimizer_steps(trainer.fit_loop, count)
        self._set_rate(trainer, optimizer, first + count)
        return result, None

    def _steps(self, optimizer: Optimizer, call: Call, first: int, count: int) -> StepResult:
        """The first `count` steps of a call."""
        assert self.state is not None
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
        assert self.state is not None
        return bool(torch.isfinite(self.state.parameters.norm()))

    def _poisoning_step(
        self,
        optimizer: Optimizer,
        call: Call,
        first: int,
        last: int,
        *,
        before: tuple[list[Tensor], int],
    ) -> int:
        """The step of a call that makes a weight not finite; the state is left before it.

        A call is looked at once, at its end, which costs nothing; only where a weight is bad is it
        run again, to halve the steps that may have done it.

        Args:
            optimizer: for its weight decay.
            call: the call.
            first: optimizer step of its first one.
            last: steps of it after which a weight is bad.
            before: the state's vectors and count before it.
        """
        good = 0
        while last - good > 1:
            middle = (good + last) // 2
            self._again(optimizer, call, first, middle, before)
            good, last = (middle, last) if self._weights_are_finite() else (good, middle)
        self._again(optimizer, call, first, good, before)
        return good

    def _again(
        self,
        optimizer: Optimizer,
        call: Call,
        first: int,
        count: int,
        before: tuple[list[Tensor], int],
    ) -> None:
        """Put the state back and do `count` steps."""
        assert self.state is not None
        torch._foreach_copy_(list(self.state.vectors), before[0])
        self.state.count = before[1]
        if count:
            self._steps(optimizer, call, first, count)

    def _bad_step(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        call: Call,
        result: StepResult,
        first: int,
        bad: int,
    ) -> NonFiniteStep:
        """What is at hand of step `bad` of a call."""
        assert self.state is not None
        rows, numbers = call.rows[bad], (float(result.loss[bad]), float(result.gradient_norm[bad]))
        reason = "its loss or gradient is not finite"
        if not self._weights_are_finite():
            reason = "a weight is not finite already before it"
        elif all(map(math.isfinite, numbers)):
            reason = "it would make a weight that is not finite"
        return NonFiniteStep(
            step=first + bad,
            loss=numbers[0],
            gradient_norm=numbers[1],
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
        """Learning rate of each step, float64."""
        factors = [self._schedule(step) for step in range(first, first + count)]
        return torch.tensor(factors, dtype=torch.float64) * self._base_lr

    def _set_rate(self, trainer: L.Trainer, optimizer: Optimizer, step: int) -> None:
        """Leave optimizer and scheduler as the plain engine has them after `step` steps."""
        rate = self._base_lr * self._schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for config in trainer.lr_scheduler_configs:
            config.scheduler.last_epoch = step
            config.scheduler._step_count = step + 1
            config.scheduler._last_lr = [rate]


def first_steps(result: StepResult, steps: int) -> StepResult:
    """The first steps of a call."""
    return StepResult(result.loss[:steps], result.gradient_norm[:steps], None)


def limit_to_max_steps(trainer: L.Trainer, planned: int) -> int:
    """Steps of a call up to max_steps; the others are given back to the loader.

    A call that is cut short ends neither an epoch nor the steps between two validations, although
    Lightning, which counts calls, would take it for their end.
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


def add_optimizer_steps(fit_loop: _FitLoop, count: int) -> None:
    """Tell Lightning's loops that a call was `count` optimizer steps."""
    progress = fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for part in (progress.total, progress.current):
        part.ready += count
        part.completed += count
    fit_loop.epoch_loop._batches_that_stepped += count - 1  # Lightning adds the last one itself


def convert_loop_counts(
    checkpoint: dict[str, Any], *, completed_calls: Callable[[int], int] | None
) -> None:
    """Make the loops of a checkpoint those of the engine that goes on with it.

    The plain engine counts batches and its optimizer's steps, the compiled one calls and its own
    steps. The checkpoint tells the step of training and the place in the epoch, from which either
    follows.

    Args:
        checkpoint: changed in place.
        completed_calls: steps of an epoch -> whole calls; None for the plain engine, where a call
            is one step.
    """
    loops = checkpoint["loops"]["fit_loop"]
    step = int(checkpoint["global_step"])
    manual = loops["epoch_loop.manual_optimization.optim_step_progress"]["total"]
    automatic = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    for total in (manual, automatic["total"]):
        total["ready"], total["completed"] = step, step
    place = loops["state_dict"]["combined_loader"][0]["next_batch"]
    progress = loops["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    done = place if completed_calls is None else completed_calls(place)
    shift = done - current["ready"]
    if shift:  # else the last call of an epoch, stopped half way, would pass for its end
        progress["is_last_batch"] = False
    for key in ("ready", "started", "processed", "completed"):
        current[key] += shift
        total[key] += shift


def batch_steps(batch: object) -> int:
    """How far a batch moves the place in the epoch."""
    if isinstance(batch, StepWindow):
        return batch.stop - batch.start
    return len(batch.rows) if isinstance(batch, Call) else 1


def undo_batch_start(checkpoint: dict[str, Any], batch: object) -> None:
    """Take back a batch that was fetched and not yet trained on.

    Args:
        checkpoint: as dumped when a batch starts; changed in place.
        batch: that one.
    """
    loops = checkpoint["loops"]["fit_loop"]
    for part in _batches(loops):
        part["ready"] -= 1
    (loader,) = loops["state_dict"]["combined_loader"]
    loader["next_batch"] -= batch_steps(batch)
    _as_a_batch_ends(loops)


def undo_epoch_end(checkpoint: dict[str, Any]) -> None:
    """Take back the end of an epoch that was cut short, which Lightning counts as a whole one.

    Args:
        checkpoint: as dumped at the end of the epoch; changed in place.
    """
    loops = checkpoint["loops"]["fit_loop"]
    for part in ("current", "total"):
        loops["epoch_progress"][part]["processed"] -= 1
    _as_a_batch_ends(loops)


def enter_next_epoch(trainer: L.Trainer) -> None:
    """Start the next epoch from a checkpoint of the end of one, when `trainer.max_steps` is set.

    Lightning would take the epoch for an unfinished one, end it a second time, and pass over the
    order of rows of the next.
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


def is_fit_complete(trainer: L.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Whether the fit is over where a checkpoint goes on."""
    limits = (
        (trainer.max_epochs, epochs_done(checkpoint)),
        (trainer.max_steps, checkpoint["global_step"]),
    )
    return any(limit is not None and -1 < limit <= done for limit, done in limits)


def next_logged_step(checkpoint: dict[str, Any]) -> int:
    """The step on the x-axis of the curves that a checkpoint goes on with."""
    loops = checkpoint["loops"]["fit_loop"]
    total = loops["epoch_loop.batch_progress"]["total"]
    batch_ends = total["completed"] < total["processed"]  # and its step is not counted yet
    return int(loops["epoch_loop.state_dict"]["_batches_that_stepped"]) + batch_ends


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return how many epochs were complete when a checkpoint was written."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def batches_started(trainer: L.Trainer) -> int:
    """Return how many batches of the current epoch have been fetched."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def logged_metrics(trainer: L.Trainer) -> dict[str, Any]:
    """Return the metrics that callbacks such as EarlyStopping read; changing it changes theirs."""
    return trainer._logger_connector._callback_metrics


def set_original_handlers(trainer: L.Trainer, handlers: dict[int, Any]) -> None:
    """Set the signal handlers that Lightning restores after an exception."""
    trainer._signal_connector._original_handlers.update(handlers)  # type: ignore[arg-type]


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


def _batches(loops: dict[str, Any]) -> list[dict[str, int]]:
    progress = loops["epoch_loop.batch_progress"]
    return [progress["current"], progress["total"]]


def _as_a_batch_ends(loops: dict[str, Any]) -> None:
    for part in _batches(loops):
        part["completed"] -= 1
    loops["epoch_loop.batch_progress"]["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
