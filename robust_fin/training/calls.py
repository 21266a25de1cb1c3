"""Many optimizer steps in one `training_step`, with Lightning's counts kept in optimizer steps.

Lightning costs about two milliseconds a `training_step`, a step of a small net three microseconds.
So a call runs hundreds of steps, and then tells the loops how many they were: global_step,
max_steps, the x-axis of the logger and the names of checkpoints go on counting optimizer steps.
"""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from torch import nn
from torch.optim import Optimizer

from robust_fin.data.batches import Call, TrainCalls
from robust_fin.errors import NonFiniteError
from robust_fin.training.step_state import StepState, only_group
from robust_fin.training.steps import StepLoop, StepResult


class StepCalls:
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
        self._state: StepState | None = None

    def begin(self, trainer: L.Trainer, net: nn.Module) -> None:
        """Take weights and optimizer state over, as a checkpoint or the plain engine left them."""
        (optimizer,) = trainer.optimizers
        self._base_lr = float(only_group(optimizer)["initial_lr"])  # set by the scheduler
        self._state = StepState(net)
        self._state.load(net, optimizer)

    def run(self, trainer: L.Trainer, net: nn.Module, call: Call) -> StepResult:
        """Do the steps of a call, hand the state back, and keep the counts.

        Raises:
            NonFiniteError: names the optimizer step whose loss or gradient is not finite; the
                weights are those before it.
        """
        assert self._state is not None
        (optimizer,) = trainer.optimizers
        first, count = trainer.global_step, self._steps_left(trainer, call)
        result = self.loop.run(
            self._state,
            x=call.x,
            target=call.target,
            rows=call.rows[:count],
            lr=self.rates(first, count),
            weight_decay=float(only_group(optimizer)["weight_decay"]),
            seed=self.seed,
        )
        self._state.store(net, optimizer)
        if result.first_bad is not None:
            bad = result.first_bad
            raise NonFiniteError(
                f"the loss is {float(result.loss[bad])} and the gradient's norm "
                f"{float(result.gradient_norm[bad])} at step {first + bad}, before the weights were"
                " changed. Lower optimizer.lr, or tame the features with transform=robust_clip"
            )
        count_steps(trainer.fit_loop, count)
        self._set_rate(trainer, optimizer, first + count)
        return result

    def rates(self, first: int, count: int) -> torch.Tensor:
        """Learning rate of each step, float64."""
        factors = [self._schedule(step) for step in range(first, first + count)]
        return torch.tensor(factors, dtype=torch.float64) * self._base_lr

    def _steps_left(self, trainer: L.Trainer, call: Call) -> int:
        """Steps of the call up to max_steps; the others are given back to the loader."""
        count = len(call.rows)
        if trainer.max_steps > 0:
            count = min(count, trainer.max_steps - trainer.global_step)
        loader = trainer.train_dataloader
        if count < len(call.rows):
            assert isinstance(loader, TrainCalls)
            loader.give_back(len(call.rows) - count)
        return count

    def _set_rate(self, trainer: L.Trainer, optimizer: Optimizer, step: int) -> None:
        """Leave optimizer and scheduler as the plain engine has them after `step` steps."""
        rate = self._base_lr * self._schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for config in trainer.lr_scheduler_configs:
            config.scheduler.last_epoch = step
            config.scheduler._step_count = step + 1
            config.scheduler._last_lr = [rate]


def count_steps(fit_loop: _FitLoop, count: int) -> None:
    """Tell Lightning's loops that a call was `count` optimizer steps."""
    progress = fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for part in (progress.total, progress.current):
        part.ready += count
        part.completed += count
    fit_loop.epoch_loop._batches_that_stepped += count - 1  # Lightning adds the last one itself


def translate_loops(checkpoint: dict[str, Any], *, calls_done: Callable[[int], int] | None) -> None:
    """Make the loops of a checkpoint those of the engine that goes on with it.

    The plain engine counts batches and its optimizer's steps, the compiled one calls and its own
    steps. The checkpoint tells the step of training and the place in the epoch, from which either
    follows.

    Args:
        checkpoint: changed in place.
        calls_done: steps of an epoch -> whole calls; None for the plain engine, where a call is one
            step.
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
    done = place if calls_done is None else calls_done(place)
    shift = done - current["ready"]
    if shift:  # else the last call of an epoch, stopped half way, would pass for its end
        progress["is_last_batch"] = False
    for key in ("ready", "started", "processed", "completed"):
        current[key] += shift
        total[key] += shift
