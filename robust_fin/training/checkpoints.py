"""Checkpoints for choosing (best) and for going on (last)."""

import signal
from pathlib import Path
from types import FrameType

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from robust_fin.data.batches import TrainCalls
from robust_fin.data.population import TrainWindows
from robust_fin.errors import Interrupted
from robust_fin.training.stability import require_finite_weights

BEST, LAST = "best.ckpt", "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt so that a run that was interrupted goes on where it was.

    Ctrl-C and SIGTERM are answered after the running optimizer step, because in the middle of one
    the weights are half changed. A second Ctrl-C ends at once.

    Args:
        folder: where last.ckpt lies.
        every_n_steps: optimizer steps between two writes; the end of an epoch writes too.
    """

    def __init__(self, folder: Path, *, every_n_steps: int) -> None:
        """Not yet listening to signals."""
        self.path = folder / LAST
        self.every_n_steps = every_n_steps
        self._asked, self._written_at = False, 0
        self._before: dict[int, object] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Listen to Ctrl-C and SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Write when due, and when asked to stop."""
        if self._asked:
            self._write(trainer, pl_module)
            raise Interrupted(
                f"stopped after step {trainer.global_step}; python -m robust_fin.train "
                f"resume={trainer.default_root_dir} goes on"
            )
        written, self._written_at = self._written_at, trainer.global_step
        due = trainer.global_step // self.every_n_steps > written // self.every_n_steps
        if due or 0 < trainer.max_steps <= trainer.global_step:
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write at the end of an epoch, not of the part of one that max_steps leaves.

        Lightning counts such a part as an epoch; a run that goes on from there would lose the rest.
        """
        if epoch_is_whole(trainer):
            self._write(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def on_save_checkpoint(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, object],
    ) -> None:
        """Keep the random state, so that dropout goes on as it would have."""
        checkpoint["rng_state"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_rng_state"] = torch.cuda.get_rng_state_all()

    def on_load_checkpoint(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, object],
    ) -> None:
        """Remember the random state until training starts."""
        self._rng = checkpoint

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Put the random state back, after everything that could have drawn from it."""
        self._written_at = trainer.global_step
        kept = self.__dict__.pop("_rng", None)
        if kept is not None:
            torch.set_rng_state(kept["rng_state"])
            if "cuda_rng_state" in kept:
                torch.cuda.set_rng_state_all(kept["cuda_rng_state"])

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        require_finite_weights(pl_module, when=f"at step {trainer.global_step}")
        trainer.save_checkpoint(self.path)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


def epoch_is_whole(trainer: L.Trainer) -> bool:
    """Whether every batch of the running epoch was trained on."""
    loader = trainer.train_dataloader
    if isinstance(loader, TrainCalls | TrainWindows):
        return loader.order.next_step >= loader.plan.steps
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return bool(done >= trainer.num_training_batches)


def best_checkpoint(folder: Path, *, monitor: str, mode: str) -> ModelCheckpoint:
    """Keeps the weights with the best figure of the val span in best.ckpt."""
    return ModelCheckpoint(
        dirpath=folder,
        filename=BEST.removesuffix(".ckpt"),
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        enable_version_counter=False,
    )
