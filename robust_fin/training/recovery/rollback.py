"""Going back to a good state after a step that was not finite, at half the learning rate.

A rollback is a resume inside the process: weights, optimizer moments, place in the schedule, order
of the rows and random state are those of a checkpoint. Every `keep_every_n_steps` optimizer steps
such a state is kept on disk, and the last two are there: weights that are finite can be lost
already, so a rollback goes back at least that many steps, or to the first state there is. The
state, with the count of rollbacks and the halved rate, also becomes last.ckpt, so that a run that
is interrupted after a rollback goes on after it.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from omegaconf import DictConfig

from robust_fin.errors import NonFiniteError
from robust_fin.training.lightning_loop import undo_batch_start, undo_epoch_end
from robust_fin.training.module import Forecaster
from robust_fin.training.recovery.checkpoint_files import LAST, AtomicCheckpointIO, read_checkpoint
from robust_fin.training.recovery.checkpoints import BestCheckpoint, is_epoch_complete
from robust_fin.training.recovery.guard import check_finite_weights

log = logging.getLogger(__name__)

STOP, ROLLBACK = "stop", "rollback"
POLICIES = (STOP, ROLLBACK)
_KEPT = 2
Settle = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class FitAttempt:
    """A Trainer and what it is about to train.

    Attributes:
        trainer: not yet run.
        module: whose guard counts the rollbacks.
        best: keeps the best weights on val; None without a val span.
        run: trains to the end, or raises NonFiniteError.
    """

    trainer: L.Trainer
    module: Forecaster
    best: ModelCheckpoint | None
    run: Callable[[], None]


def run_with_rollbacks(
    assemble: Callable[[bool], FitAttempt], *, resume: bool, folder: Path, settings: DictConfig
) -> tuple[FitAttempt, float]:
    """Train, and after a step that was not finite do what the policy says.

    Args:
        assemble: makes an attempt; told whether it goes on from last.ckpt.
        resume: whether the first one does.
        folder: of the checkpoints.
        settings: conf/stability.

    Returns:
        The attempt that came to its end, and the seconds that all of them trained.

    Raises:
        NonFiniteError: the policy is to stop, or no rollback is left.
    """
    seconds = 0.0
    while True:
        attempt = assemble(resume)
        began = time.perf_counter()
        try:
            attempt.run()
        except NonFiniteError as error:
            if settings.on_nonfinite != ROLLBACK:
                raise
            attempt.module.guard.nonfinite_steps += 1
            _require_one_left(error, attempt, settings)
            roll_back(attempt, error, folder=folder, every_n_steps=settings.keep_every_n_steps)
            resume, seconds = True, seconds + time.perf_counter() - began
        else:
            return attempt, seconds + time.perf_counter() - began


class RollbackCheckpoints(Checkpoint):
    """Keeps the last two good states on disk, at fixed steps, for a rollback.

    Args:
        folder: of the checkpoints.
        every_n_steps: optimizer steps between two states.
    """

    def __init__(self, folder: Path, *, every_n_steps: int) -> None:
        """Nothing kept yet."""
        self.folder, self.every_n_steps = folder, every_n_steps
        self._seen = 0
        self._settle: Settle | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget states of another way; the first state is the one that training starts from."""
        self._seen = step = trainer.global_step
        if trainer.is_global_zero:
            for at, path in rollback_checkpoints(self.folder).items():
                if step == 0 or at > step:
                    path.unlink()
            if step and not rollback_checkpoints(self.folder):
                shutil.copyfile(self.folder / LAST, self.folder / _name(step))
        if step == 0:
            self._keep(trainer, pl_module, settle=None)
        for one in trainer.checkpoint_callbacks:
            if isinstance(one, BestCheckpoint):
                one.save_again_from(step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Keep a state when due, before the next batch is trained on."""
        if batch_idx % trainer.accumulate_grad_batches == 0 and self._due(trainer):
            self._keep(trainer, pl_module, settle=lambda kept: undo_batch_start(kept, batch))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep a state that fell due with the last step of the epoch."""
        if self._due(trainer):
            settle = None if is_epoch_complete(trainer) else undo_epoch_end
            self._keep(trainer, pl_module, settle=settle)

    def on_save_checkpoint(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Give the loops of a kept state the counts to go on from."""
        if self._settle is not None:
            self._settle(checkpoint)

    def _due(self, trainer: L.Trainer) -> bool:
        seen, self._seen = self._seen, trainer.global_step
        return trainer.global_step // self.every_n_steps > seen // self.every_n_steps

    def _keep(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, settle: Settle | None
    ) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        check_finite_weights(pl_module, when=f"at step {trainer.global_step}")
        self._settle = settle
        trainer.save_checkpoint(self.folder / _name(trainer.global_step))
        self._settle = None
        if trainer.is_global_zero:
            for old in list(rollback_checkpoints(self.folder).values())[:-_KEPT]:
                old.unlink()


def _name(step: int) -> str:
    return f"kept_{step}.ckpt"


def rollback_checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> file, the oldest first."""
    files = {int(path.stem.partition("_")[2]): path for path in folder.glob("kept_*.ckpt")}
    return dict(sorted(files.items()))


def choose_rollback_step(kept: Mapping[int, Path], *, step: int, at_least: int) -> int:
    """Step of the newest state that is `at_least` steps older than `step`, or of the oldest."""
    old_enough = [one for one in kept if one <= step - at_least]
    return max(old_enough) if old_enough else min(kept)


def roll_back(
    attempt: FitAttempt, error: NonFiniteError, *, folder: Path, every_n_steps: int
) -> None:
    """Make last.ckpt the state to go on from.

    Args:
        attempt: that failed.
        error: how.
        folder: of the checkpoints.
        every_n_steps: that states are kept.
    """
    kept, step = rollback_checkpoints(folder), attempt.trainer.global_step
    if not kept:
        raise error
    place = choose_rollback_step(kept, step=step, at_least=every_n_steps)
    state = read_checkpoint(kept[place])
    guard = attempt.module.guard
    guard.rollbacks += 1
    scale_learning_rate(state, guard.rate_factor / 0.5 ** state["stability"]["rollbacks"])
    state["stability"] = guard.state_dict()
    if attempt.best is not None:  # its file is that of the best figure so far, whichever way
        state["callbacks"][attempt.best.state_key] = attempt.best.state_dict()
    if attempt.trainer.is_global_zero:
        AtomicCheckpointIO().save_checkpoint(state, folder / LAST)
    attempt.trainer.strategy.barrier()
    log.warning(
        "rollback %d, from step %d to step %d, on with %g of the learning rate: %s",
        guard.rollbacks,
        step,
        place,
        guard.rate_factor,
        error,
    )


def scale_learning_rate(state: dict[str, Any], factor: float) -> None:
    """Multiply the learning rate of the next step in a checkpoint, in place."""
    for optimizer in state["optimizer_states"]:
        for group in optimizer["param_groups"]:
            group["lr"] *= factor
    for scheduler in state["lr_schedulers"]:
        scheduler["_last_lr"] = [rate * factor for rate in scheduler["_last_lr"]]


def _require_one_left(error: NonFiniteError, attempt: FitAttempt, settings: DictConfig) -> None:
    done = attempt.module.guard.rollbacks
    if done >= settings.max_rollbacks:
        raise NonFiniteError(
            f"{error} (after {done} rollbacks; stability.max_rollbacks={settings.max_rollbacks})"
        ) from None  # the message has all that the error says
