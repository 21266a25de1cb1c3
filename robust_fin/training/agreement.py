"""What processes that train together must agree on: their weights, and when to stop."""

import hashlib
import signal
import time
from collections.abc import Mapping
from types import FrameType

import lightning as L
import torch
from torch import Tensor

from robust_fin.hardware.ending import RankError
from robust_fin.hardware.group import greatest, in_group, require_agreement, world_size

_SECONDS_BETWEEN = 0.5  # two questions whether any process was asked to stop
_MOST_BATCHES = 4096
_DIGITS = 16  # of a hash, in messages


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values, shortened; the same on every device."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]


def shared_callbacks() -> list[L.Callback]:
    """Those of a fit that other processes take part in; none where it is alone."""
    return [WeightsAgree(), AgreedStop()] if in_group() else []


class WeightsAgree(L.Callback):
    """Compares the weights of all processes after each epoch, bit by bit, by their hashes.

    Gradients are averaged, so the weights are the same everywhere, unless a message, a device or a
    seed went wrong; every later step would then average gradients of different nets.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Hold the trainer's count of processes against those that met."""
        if trainer.world_size != world_size():
            raise RankError(
                f"the trainer counts {trainer.world_size} processes, and {world_size()} have met; "
                "trainer.devices, trainer.num_nodes and trainer.strategy must make them all train"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare; a mismatch stops every process before anything is written."""
        require_agreement(
            weights_hash(pl_module.state_dict()),
            what=f"the weights at the end of epoch {trainer.current_epoch} (step "
            f"{trainer.global_step})",
        )


class AgreedStop(L.Callback):
    """Answers Ctrl-C and SIGTERM after the same batch in every process.

    A process that stopped alone would leave the others waiting for its gradients. So a signal is
    noted, and every half second, by a count of batches that all share, the processes ask each other
    whether one of them has noted one; if so, each calls the handler that was there before.
    """

    def __init__(self) -> None:
        """Not yet listening."""
        self._asked = 0  # the signal's number
        self._before: dict[int, object] = {}
        self._done, self._due, self._since = 0, 1, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stand before the handlers that the other callbacks have set."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        self._since = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Ask when it is due; the callbacks after this one then find that they were asked."""
        self._done += 1
        if self._done < self._due:
            return
        asked, minus_next = greatest([self._asked, -self._batches_ahead()])
        self._done, self._due, self._since = 0, -minus_next, time.monotonic()
        if asked:
            handler = self._before[asked]
            assert callable(handler)
            handler(asked, None)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _batches_ahead(self) -> int:
        """Batches of this process in half a second, at its pace since the last question."""
        seconds = max(time.monotonic() - self._since, 1e-6)
        return max(1, min(_MOST_BATCHES, int(self._done * _SECONDS_BETWEEN / seconds)))

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._asked = number
