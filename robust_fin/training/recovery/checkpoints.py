"""Checkpoint callbacks (last and best), and the session state they add."""

import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor, nn
from torchmetrics import Metric

from robust_fin.data.batches import TrainCalls
from robust_fin.data.datamodule import TrainWindows
from robust_fin.errors import Interrupted, ResumeError
from robust_fin.runtime.atomic_files import remove_partial_files
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

_NORMS = ("norms", "window")  # of the guard


def session_state(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Random state, metrics amid an epoch, figures of val, gradient norms, early stopping."""
    figures = logged_metrics(trainer)
    state: dict[str, Any] = {
        "rng_state": torch.get_rng_state(),
        "metrics": metric_states(module),
        "callback_metrics": {name: _cpu(value) for name, value in figures.items()},
        "stopped": trainer.should_stop and not _out_of_time(trainer),
    }
    if isinstance(guard := getattr(module, "guard", None), StepGuard):
        state["norms"] = {name: list(getattr(guard, name)) for name in _NORMS}
    if torch.cuda.is_available():
        state["cuda_rng_state"] = torch.cuda.get_rng_state_all()
    return state


def restore_metrics(trainer: L.Trainer, module: L.LightningModule, state: dict[str, Any]) -> None:
    """What must be there even if no step is left to do: the metrics, and that training stopped."""
    load_metric_states(module, state["metrics"])
    for name, norms in state.get("norms", {}).items():
        getattr(module.guard, name).extend(norms)
    if state["stopped"]:
        trainer.should_stop = True


def restore_session(trainer: L.Trainer, state: dict[str, Any]) -> None:
    """Random state and figures, after everything that could have drawn from or cleared them."""
    torch.set_rng_state(state["rng_state"])
    if "cuda_rng_state" in state:
        torch.cuda.set_rng_state_all(state["cuda_rng_state"])
    logged_metrics(trainer).update(state["callback_metrics"])


def metric_states(module: nn.Module) -> dict[str, Any]:
    """The state of every metric in the middle of its updates, by name."""
    return {
        name: {"updates": one._update_count, "values": _cpu(one.metric_state)}
        for name, one in module.named_modules()
        if isinstance(one, Metric)
    }


def load_metric_states(module: nn.Module, states: dict[str, Any]) -> None:
    """Go on with the updates that the metrics had."""
    for name, one in module.named_modules():
        if isinstance(one, Metric) and name in states:
            for key, value in states[name]["values"].items():
                setattr(one, key, value)
            one._update_count, one._computed = states[name]["updates"], None


def forget_points(loggers: Iterable[Logger], *, first: int) -> None:
    """Let TensorBoard drop the points of a session that went further than its checkpoint.

    Args:
        loggers: of the Trainer.
        first: step of the first point that will be drawn again.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            start = SessionLog(status=SessionLog.START)
            writer = logger.experiment._get_file_writer()
            writer.add_event(Event(step=first, session_log=start))


def _cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cpu(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_cpu(one) for one in value]
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _out_of_time(trainer: L.Trainer) -> bool:
    """Whether `trainer.max_time` ended the fit; more of it lets the fit go on."""
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    left = [one.time_remaining() for one in timers]
    return any(seconds is not None and seconds <= 0 for seconds in left)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt so that a run that was interrupted goes on where it was.

    Ctrl-C and SIGTERM are answered between two steps, because in the middle of one the weights are
    half changed; a validation that is running comes to its end. A second Ctrl-C ends at once.

    Args:
        folder: where last.ckpt lies.
        every_n_steps: optimizer steps between two writes; the end of an epoch writes too.
    """

    def __init__(self, folder: Path, *, every_n_steps: int) -> None:
        """Not yet listening to signals."""
        self.path = folder / LAST
        self.every_n_steps = every_n_steps
        self._asked, self._seen_at, self._written_at = False, 0, 0
        self._before: dict[int, object] = {}
        self._settle: Callable[[dict[str, Any]], None] | None = None
        self._session: dict[str, Any] | None = None  # of the checkpoint that is gone on from
        self._next_point: int | None = 0  # of the curves; None where all are drawn

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Let the Trainer write and read every checkpoint our way."""
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self._lineage = run_origin(Path(trainer.default_root_dir), self.path.parent)
        if trainer.is_global_zero:
            remove_partial_files(self.path.parent)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Listen to Ctrl-C and SIGTERM, and take the curves back to the checkpoint.

        Signals come to the main thread only; a fit in another one goes on to its end.
        """
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        if trainer.is_global_zero and self._next_point is not None:
            forget_points(trainer.loggers, first=self._next_point)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Go on as the session before would have."""
        self._seen_at = self._written_at = trainer.global_step
        enter_next_epoch(trainer)
        if self._session is not None:
            restore_session(trainer, self._session)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Write when due, and when asked to stop, before the next batch is trained on."""
        if batch_idx % trainer.accumulate_grad_batches:
            return  # the gradients so far would be lost
        seen, self._seen_at = self._seen_at, trainer.global_step
        due = trainer.global_step // self.every_n_steps > seen // self.every_n_steps
        if (due or self._asked) and trainer.global_step != self._written_at:
            self._write(trainer, pl_module, settle=lambda kept: undo_batch_start(kept, batch))
        self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write; where max_steps cut the epoch short, as a place in its middle."""
        self._write(
            trainer, pl_module, settle=None if is_epoch_complete(trainer) else undo_epoch_end
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Bring the last points of the curves to the disk; no step after this draws them again."""
        for logger in trainer.loggers:
            logger.save()
        self._stop_if_asked(trainer)

    def on_exception(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """Leave the signals as they were, also to Lightning, which puts back what it found."""
        set_original_handlers(trainer, self._before)
        self._stop_listening()
        if isinstance(exception, KeyboardInterrupt):
            raise Interrupted(f"stopped at once; {self._how_to_go_on(trainer)}") from exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Leave the signals as they were."""
        self._stop_listening()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what Lightning leaves out, and what the run is."""
        checkpoint["session"] = session_state(trainer, pl_module)
        checkpoint["lineage"] = self._lineage
        if self._settle is not None:
            self._settle(checkpoint)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the metrics; the random state waits until training starts."""
        self._session = checkpoint["session"]
        restore_metrics(trainer, pl_module, self._session)
        over = trainer.should_stop or is_fit_complete(trainer, checkpoint)
        self._next_point = None if over else next_logged_step(checkpoint)

    def _write(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        *,
        settle: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        """Write last.ckpt.

        Args:
            trainer: as it is.
            pl_module: whose weights must be finite.
            settle: gives the loops the counts to go on from; None leaves them.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        check_finite_weights(pl_module, when=f"at step {trainer.global_step}")
        for logger in trainer.loggers:
            logger.save()  # the points up to here must be on disk when the checkpoint is
        self._settle = settle
        trainer.save_checkpoint(self.path)
        self._settle = None
        self._written_at = trainer.global_step

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if self._asked:
            step = trainer.global_step
            raise Interrupted(f"stopped after step {step}; {self._how_to_go_on(trainer)}")

    def _how_to_go_on(self, trainer: L.Trainer) -> str:
        return f"python -m robust_fin.train resume={trainer.default_root_dir} goes on"

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        forget_sigterm(self._trainer)

    def _stop_listening(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}


class BestCheckpoint(TrackedCheckpoint):
    """Keeps the weights with the best figure of the val span in best.ckpt.

    Args:
        folder: where best.ckpt lies; a run that was moved goes on with the one beside last.ckpt.
        monitor: the figure.
        mode: `max` or `min` of it.
    """

    def __init__(self, folder: Path, *, monitor: str, mode: str) -> None:
        """Nothing seen yet."""
        super().__init__(
            dirpath=folder,
            filename=BEST.removesuffix(".ckpt"),
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_on_train_epoch_end=False,  # after every validation, however many calls lie between
            enable_version_counter=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """With the step that best.ckpt is of."""
        return {**super().state_dict(), "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with best.ckpt as it was when the checkpoint was written.

        One that was written after it is forgotten: the run comes by its step again, and then has
        the same weights, or others where trainer.max_epochs changed.

        Raises:
            ResumeError: best.ckpt is damaged, or an older one.
        """
        if not state_dict["best_model_path"]:
            return
        assert self.dirpath is not None
        path, step = Path(self.dirpath) / BEST, state_dict["best_step"]
        found = _step_of_best(path, wanted=step)
        if found > step:
            return
        here = {name: str(path) for name in ("best_model_path", "kth_best_model_path")}
        scores = {str(path): score for score in state_dict["best_k_models"].values()}
        super().load_state_dict(
            {**state_dict, **here, "best_k_models": scores, "dirpath": self.dirpath}
        )
        self.set_best_step(step)


def _step_of_best(path: Path, *, wanted: int) -> int:
    """The step that best.ckpt is of, at least the one that last.ckpt knows."""
    remedy = (
        f"the weights chosen on val at step {wanted} are lost. Remove {path.parent} and resume "
        "again: the run then starts anew, with the same config"
    )
    try:
        found = int(read_checkpoint(path)["global_step"])
    except ResumeError as error:
        raise ResumeError(f"{error}; {remedy}") from None
    if found < wanted:
        raise ResumeError(f"{path} is of step {found}, older than last.ckpt knows it; {remedy}")
    return found


def is_epoch_complete(trainer: L.Trainer) -> bool:
    """Whether every batch of the running epoch was trained on."""
    loader = trainer.train_dataloader
    if isinstance(loader, TrainCalls | TrainWindows):
        return loader.order.next_step >= loader.plan.steps
    return batches_started(trainer) >= trainer.num_training_batches
