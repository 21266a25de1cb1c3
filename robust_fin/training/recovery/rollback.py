"""Rollback after a non-finite step: resume from an earlier checkpoint at half the learning rate.

Every `keep_every_n_steps` optimizer steps a checkpoint is saved as kept_<step>.ckpt; the last two
are kept. Weights can be finite and already beyond recovery, so a rollback goes back at least that
many steps, or else to the oldest checkpoint. The chosen checkpoint, with the number of rollbacks
and the reduced rate, becomes last.ckpt, so that an interrupted run resumes after the rollback.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from robust_fin.errors import NonFiniteError
from robust_fin.runtime.files import replacing
from robust_fin.training.lightning_loop import undo_batch_start, undo_epoch_end
from robust_fin.training.module import Forecaster
from robust_fin.training.recovery.checkpoint_files import LAST, AtomicCheckpointIO, read_checkpoint
from robust_fin.training.recovery.checkpoints import (
    Adjust,
    BestCheckpoint,
    StepCheckpoint,
    is_epoch_complete,
)
from robust_fin.training.settings import ROLLBACK, StabilitySettings

log = logging.getLogger(__name__)

_KEPT = 2


@dataclass(frozen=True, slots=True)
class FitAttempt:
    """A Trainer and the module that it will train.

    Attributes:
        trainer: not yet run.
        module: its guard counts the rollbacks.
        best: saves the best weights on val; None without a val span.
        run: trains to the end, or raises NonFiniteError.
    """

    trainer: L.Trainer
    module: Forecaster
    best: ModelCheckpoint | None
    run: Callable[[], None]


def run_with_rollbacks(
    make_attempt: Callable[[bool], FitAttempt],
    *,
    resume: bool,
    folder: Path,
    settings: StabilitySettings,
) -> tuple[FitAttempt, float]:
    """Train, and roll back after a non-finite step if the settings allow it.

    Args:
        make_attempt: makes an attempt; its argument says whether to resume from last.ckpt.
        resume: the argument for the first attempt.
        folder: of the checkpoints.
        settings: conf/stability.

    Returns:
        The attempt that finished, and the seconds that all attempts trained.

    Raises:
        NonFiniteError: the policy is to stop, or max_rollbacks is reached.
    """
    seconds = 0.0
    while True:
        attempt = make_attempt(resume)
        started = time.perf_counter()
        try:
            attempt.run()
        except NonFiniteError as error:
            if settings.on_nonfinite != ROLLBACK:
                raise
            _roll_back(attempt, error, folder=folder, settings=settings)
            resume, seconds = True, seconds + time.perf_counter() - started
        else:
            return attempt, seconds + time.perf_counter() - started


class RollbackCheckpoints(StepCheckpoint):
    """Saves the checkpoints that a rollback can go back to, and keeps the last two.

    Args:
        folder: of the checkpoints.
        every_n_steps: optimizer steps between two checkpoints.
    """

    def __init__(self, folder: Path, *, every_n_steps: int) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the checkpoints of an abandoned attempt; save the state that training starts from.

        After a rollback, allow best.ckpt to be saved again at the steps that are repeated.
        """
        self._last_step = step = trainer.global_step
        if trainer.is_global_zero:
            for saved, path in rollback_checkpoints(self.folder).items():
                if step == 0 or saved > step:
                    path.unlink()
            if step and not rollback_checkpoints(self.folder):
                with replacing(self._path(step)) as part:
                    shutil.copyfile(self.folder / LAST, part)
        if step == 0:
            self._keep(trainer, pl_module, None)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint):
                callback.save_again_from(step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Save when due, before the batch is trained on."""
        if batch_idx % trainer.accumulate_grad_batches == 0 and self._is_due(trainer):
            self._keep(trainer, pl_module, partial(undo_batch_start, batch=batch))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when due after the last step of the epoch."""
        if self._is_due(trainer):
            self._keep(trainer, pl_module, None if is_epoch_complete(trainer) else undo_epoch_end)

    def _keep(self, trainer: L.Trainer, module: L.LightningModule, adjust: Adjust | None) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._save(self._path(trainer.global_step), trainer, module, adjust)
        if trainer.is_global_zero:
            for path in list(rollback_checkpoints(self.folder).values())[:-_KEPT]:
                path.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"kept_{step}.ckpt"


def rollback_checkpoints(folder: Path) -> dict[int, Path]:
    """Return the saved checkpoints by step, the oldest first."""
    files = {int(path.stem.partition("_")[2]): path for path in folder.glob("kept_*.ckpt")}
    return dict(sorted(files.items()))


def choose_rollback_step(saved: Iterable[int], *, step: int, at_least: int) -> int:
    """Return the newest saved step that is `at_least` steps before `step`, or else the oldest."""
    steps = list(saved)
    return max((old for old in steps if old <= step - at_least), default=min(steps))


def _roll_back(
    attempt: FitAttempt, error: NonFiniteError, *, folder: Path, settings: StabilitySettings
) -> None:
    """Make an earlier checkpoint last.ckpt, with half the learning rate of the failed attempt."""
    guard, step, saved = (
        attempt.module.guard,
        attempt.trainer.global_step,
        rollback_checkpoints(folder),
    )
    guard.nonfinite_steps += 1
    if guard.rollbacks >= settings.max_rollbacks:
        raise NonFiniteError(
            f"{error} (after {guard.rollbacks} rollbacks; "
            f"stability.max_rollbacks={settings.max_rollbacks})"
        ) from None
    if not saved:
        raise error
    guard.rollbacks += 1
    target = choose_rollback_step(saved, step=step, at_least=settings.keep_every_n_steps)
    checkpoint = read_checkpoint(saved[target])
    scale_learning_rate(checkpoint, guard.rate_factor / 0.5 ** checkpoint["stability"]["rollbacks"])
    checkpoint["stability"] = guard.state_dict()
    if attempt.best is not None:  # best.ckpt stays the best of all attempts
        checkpoint["callbacks"][attempt.best.state_key] = attempt.best.state_dict()
    if attempt.trainer.is_global_zero:
        AtomicCheckpointIO().save_checkpoint(checkpoint, folder / LAST)
    attempt.trainer.strategy.barrier()
    log.warning(
        "rollback %d: from step %d to step %d, with %g of the learning rate: %s",
        guard.rollbacks,
        step,
        target,
        guard.rate_factor,
        error,
    )


def scale_learning_rate(checkpoint: dict[str, Any], factor: float) -> None:
    """Multiply the learning rate of a checkpoint's next step, in place."""
    for optimizer in checkpoint["optimizer_states"]:
        for group in optimizer["param_groups"]:
            group["lr"] *= factor
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["_last_lr"] = [rate * factor for rate in scheduler["_last_lr"]]
