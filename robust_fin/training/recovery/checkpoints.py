"""Checkpoint callbacks: last.ckpt for exact resume, best.ckpt for the chosen weights."""

import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torchmetrics import Metric

from robust_fin.data.batches import TrainCalls, TrainWindows
from robust_fin.errors import Interrupted, ResumeError
from robust_fin.runtime.files import remove_partial_files
from robust_fin.runtime.terminal import command_hint
from robust_fin.training.lightning_loop import (
    TrackedCheckpoint,
    batches_started,
    enter_next_epoch,
    forget_sigterm,
    is_fit_complete,
    logged_metrics,
    next_logged_step,
    set_original_handlers,
    undo_batch_start,
    undo_epoch_end,
)
from robust_fin.training.recovery.checkpoint_files import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    read_checkpoint,
    run_origin,
)
from robust_fin.training.recovery.guard import StepGuard, check_finite_weights

Adjust = Callable[[dict[str, Any]], None]
_GUARD_NORMS = ("norms", "window")


class StepCheckpoint(Checkpoint):
    """Abstract base of the callbacks that save every `every_n_steps` optimizer steps.

    They save before a batch or at the end of an epoch. The loop counts in the checkpoint are
    adjusted so that a resume continues with exactly that batch.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._last_step = 0  # global step of the last question whether a checkpoint is due
        self._adjust: Adjust | None = None

    def on_save_checkpoint(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Adjust the loop counts of a checkpoint that this callback saves."""
        if self._adjust is not None:
            self._adjust(checkpoint)

    def _is_due(self, trainer: L.Trainer) -> bool:
        before, self._last_step = self._last_step, trainer.global_step
        return trainer.global_step // self.every_n_steps > before // self.every_n_steps

    def _save(
        self, path: Path, trainer: L.Trainer, module: L.LightningModule, adjust: Adjust | None
    ) -> None:
        check_finite_weights(module, when=f"at step {trainer.global_step}")
        self._adjust = adjust
        trainer.save_checkpoint(path)
        self._adjust = None


class LastCheckpoint(StepCheckpoint):
    """Saves last.ckpt, so that an interrupted run resumes with the same results.

    Ctrl-C and SIGTERM take effect between two optimizer steps, because within a step the weights
    are half updated. A running validation is completed first. A second signal stops at once.

    Args:
        folder: of last.ckpt.
        every_n_steps: optimizer steps between two checkpoints; each end of an epoch saves another.
    """

    def __init__(self, folder: Path, *, every_n_steps: int) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self.path = folder / LAST
        self._signalled, self._saved_step = False, 0
        self._handlers: dict[int, object] = {}  # signal handlers before the fit
        self._session: dict[str, Any] | None = None  # from the checkpoint of a resume
        self._next_point: int | None = 0  # first step to log; None if all are logged

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Make the Trainer read and write checkpoints by `AtomicCheckpointIO`."""
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self._lineage = run_origin(Path(trainer.default_root_dir), self.path.parent)
        if trainer.is_global_zero:
            remove_partial_files(self.path.parent)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Install signal handlers; make TensorBoard drop the points after the checkpoint.

        Only the main thread can receive signals; a fit in another thread has no handlers.
        """
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._handle_signal)
        if trainer.is_global_zero and self._next_point is not None:
            purge = Event(step=self._next_point, session_log=SessionLog(status=SessionLog.START))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment._get_file_writer().add_event(purge)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Restore random state and metrics after everything that could have changed them."""
        self._last_step = self._saved_step = trainer.global_step
        enter_next_epoch(trainer)
        if self._session is not None:
            torch.set_rng_state(self._session["rng_state"])
            if "cuda_rng_state" in self._session:
                torch.cuda.set_rng_state_all(self._session["cuda_rng_state"])
            logged_metrics(trainer).update(self._session["callback_metrics"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Save when due or signalled, before the batch is trained on."""
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a checkpoint would lose the accumulated gradients
        due = self._is_due(trainer) or self._signalled
        if due and trainer.global_step != self._saved_step:
            self._save_last(trainer, pl_module, partial(undo_batch_start, batch=batch))
        self._stop_if_signalled(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; an epoch that max_steps cut short is stored as unfinished."""
        self._save_last(trainer, pl_module, None if is_epoch_complete(trainer) else undo_epoch_end)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Flush the loggers, then stop if a signal came after the last step."""
        for logger in trainer.loggers:
            logger.save()
        self._stop_if_signalled(trainer)

    def on_exception(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """Restore the signal handlers, also those that Lightning restores."""
        set_original_handlers(trainer, self._handlers)
        self._restore_handlers()
        if isinstance(exception, KeyboardInterrupt):
            raise Interrupted(f"stopped at once; {_resume_hint(trainer)}") from exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Restore the signal handlers."""
        self._restore_handlers()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state that Lightning omits, and the origin of the run."""
        checkpoint["session"] = _session_state(trainer, pl_module)
        checkpoint["lineage"] = self._lineage
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the state that is needed even if no step is left; `on_train_start` the rest."""
        self._session = checkpoint["session"]
        _load_metrics(pl_module, self._session["metrics"])
        for name, norms in self._session.get("norms", {}).items():
            getattr(pl_module.guard, name).extend(norms)
        if self._session["stopped"]:
            trainer.should_stop = True
        done = trainer.should_stop or is_fit_complete(trainer, checkpoint)
        self._next_point = None if done else next_logged_step(checkpoint)

    def _save_last(
        self, trainer: L.Trainer, module: L.LightningModule, adjust: Adjust | None
    ) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # the curves on disk must reach at least as far as the checkpoint
        self._save(self.path, trainer, module, adjust)
        self._saved_step = trainer.global_step

    def _stop_if_signalled(self, trainer: L.Trainer) -> None:
        if self._signalled:
            step = trainer.global_step
            raise Interrupted(f"stopped after step {step}; {_resume_hint(trainer)}")

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        forget_sigterm(self._trainer)  # or Lightning would exit with code 0

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers = {}


def _resume_hint(trainer: L.Trainer) -> str:
    return f"to continue: {command_hint('train', 'resume', trainer.default_root_dir)}"


def _session_state(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Return the state of a fit that Lightning does not store.

    It holds the random state, the metrics within an epoch, the logged values, the gradient norms
    and whether a callback stopped the fit.
    """
    state: dict[str, Any] = {
        "rng_state": torch.get_rng_state(),
        "metrics": {
            name: {"updates": metric._update_count, "values": _to_cpu(metric.metric_state)}
            for name, metric in module.named_modules()
            if isinstance(metric, Metric)
        },
        "callback_metrics": _to_cpu(logged_metrics(trainer)),
        "stopped": trainer.should_stop and not _is_out_of_time(trainer),
    }
    if isinstance(guard := getattr(module, "guard", None), StepGuard):
        state["norms"] = {name: list(getattr(guard, name)) for name in _GUARD_NORMS}
    if torch.cuda.is_available():
        state["cuda_rng_state"] = torch.cuda.get_rng_state_all()
    return state


def _load_metrics(module: L.LightningModule, states: dict[str, Any]) -> None:
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name in states:
            for key, value in states[name]["values"].items():
                setattr(metric, key, value)
            metric._update_count, metric._computed = states[name]["updates"], None


def _to_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_cpu(item) for item in value]
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _is_out_of_time(trainer: L.Trainer) -> bool:
    """Return True if trainer.max_time stopped the fit; a resume with more time continues it."""
    timers = [item for item in trainer.callbacks if isinstance(item, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    return any(seconds is not None and seconds <= 0 for seconds in left)


class BestCheckpoint(TrackedCheckpoint):
    """Saves the weights with the best val metric as best.ckpt.

    Args:
        folder: of best.ckpt; a resume uses the file in this folder, even if the run was moved.
        monitor: the metric.
        mode: `max` or `min`.
    """

    def __init__(self, folder: Path, *, monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=folder,
            filename=BEST.removesuffix(".ckpt"),
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_on_train_epoch_end=False,  # after each validation; an epoch may hold several
            enable_version_counter=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Add the optimizer step of best.ckpt."""
        return {**super().state_dict(), "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, if best.ckpt is the file that it describes.

        A best.ckpt of a later step is ignored: the resumed run reaches that step again.

        Raises:
            ResumeError: best.ckpt is damaged or older than the state.
        """
        if not state_dict["best_model_path"]:
            return
        assert self.dirpath is not None
        path, step = Path(self.dirpath) / BEST, state_dict["best_step"]
        if _read_best_step(path, minimum=step) > step:
            return
        moved = {name: str(path) for name in ("best_model_path", "kth_best_model_path")}
        scores = {str(path): score for score in state_dict["best_k_models"].values()}
        super().load_state_dict(
            {**state_dict, **moved, "best_k_models": scores, "dirpath": self.dirpath}
        )
        self.set_best_step(step)


def _read_best_step(path: Path, *, minimum: int) -> int:
    remedy = (
        f"the weights chosen on val at step {minimum} are lost. Remove {path.parent} and resume "
        "again: the run then starts over with the same config"
    )
    try:
        step = int(read_checkpoint(path)["global_step"])
    except ResumeError as error:
        raise ResumeError(f"{error}; {remedy}") from None
    if step < minimum:
        raise ResumeError(f"{path} is of step {step}, older than last.ckpt expects; {remedy}")
    return step


def is_epoch_complete(trainer: L.Trainer) -> bool:
    """Return True if every batch of the current epoch was trained on."""
    loader = trainer.train_dataloader
    if isinstance(loader, TrainCalls | TrainWindows):
        return loader.order.next_step >= loader.plan.steps
    return batches_started(trainer) >= trainer.num_training_batches
