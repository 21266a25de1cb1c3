"""Fit a net: from the settings to the chosen weights, with rollbacks and on several ranks."""

import hashlib
import logging
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from robust_fin.bundle.predictions import Nets
from robust_fin.data.datamodule import BarDataModule
from robust_fin.runtime.rank_info import all_reduce_max, is_distributed, require_equal_on_ranks
from robust_fin.training.assembly import (
    batches_per_epoch,
    make_forecaster,
    make_trainer,
    step_limit,
)
from robust_fin.training.baselines import TrivialObjective, trivial_objective
from robust_fin.training.diagnostics import Diagnostics
from robust_fin.training.engine.build import trainer_arguments
from robust_fin.training.module import Forecaster
from robust_fin.training.pruning import pruning_callbacks
from robust_fin.training.recovery.checkpoints import LAST, BestCheckpoint, LastCheckpoint
from robust_fin.training.recovery.guard import (
    StepGuard,
    StopOnNonFiniteWeights,
    check_finite_weights,
    check_precision,
)
from robust_fin.training.recovery.record import StepRecorder
from robust_fin.training.recovery.rollback import (
    FitAttempt,
    RollbackCheckpoints,
    run_with_rollbacks,
)
from robust_fin.training.settings import ROLLBACK, FitSettings, TrainerSettings

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_POLLS = 0.5  # polls of the ranks for a signal
_MAX_BATCHES_BETWEEN_POLLS = 4096
_HASH_DIGITS = 16


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return a shortened SHA-256 of names and values, the same on every device."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_HASH_DIGITS]


def distributed_callbacks() -> list[L.Callback]:
    """Return the callbacks that keep several ranks in step; none for a single process."""
    return [WeightAgreement(), SynchronizedStop()] if is_distributed() else []


class WeightAgreement(L.Callback):
    """Checks after each epoch that the weights of all ranks are equal bit by bit, by their hashes.

    Gradients are averaged over the ranks, so weights differ only if a message, a device or a seed
    is wrong. Every later step would then average gradients of different nets.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the hashes; a mismatch stops every rank before anything is written."""
        require_equal_on_ranks(
            weights_hash(pl_module.state_dict()),
            what=f"the weights at the end of epoch {trainer.current_epoch} (step "
            f"{trainer.global_step})",
        )


class SynchronizedStop(L.Callback):
    """Handles Ctrl-C and SIGTERM after the same batch on every rank.

    A rank that stopped alone would leave the others waiting for its gradients. So the handler only
    records the signal. About every half second, after a number of batches that all ranks agree on,
    the ranks share what they recorded. If any has a signal, all call their previous handlers.
    """

    def __init__(self) -> None:
        self._signal = 0  # number of the recorded signal
        self._previous: dict[int, object] = {}
        self._batches_since_poll, self._batches_to_poll, self._last_poll = 0, 1, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Replace the handlers that the other callbacks have set."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._record)
        self._last_poll = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Poll the ranks if it is due, and handle the signal before the later callbacks run."""
        self._batches_since_poll += 1
        if self._batches_since_poll < self._batches_to_poll:
            return
        number, minus_batches = all_reduce_max([self._signal, -self._batches_until_poll()])
        self._batches_since_poll, self._batches_to_poll = 0, -minus_batches
        self._last_poll = time.monotonic()
        if number:
            handler = self._previous[number]
            assert callable(handler)
            handler(number, None)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _batches_until_poll(self) -> int:
        """Return the batches of this rank in half a second, at its speed since the last poll."""
        seconds = max(time.monotonic() - self._last_poll, 1e-6)
        batches = int(self._batches_since_poll * _SECONDS_BETWEEN_POLLS / seconds)
        return max(1, min(_MAX_BATCHES_BETWEEN_POLLS, batches))

    def _record(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signal = number


@dataclass(frozen=True, slots=True)
class FitSummary:
    """Numbers of a fit.

    Attributes:
        steps: optimizer steps up to the last weights.
        chosen_step: optimizer steps up to the chosen weights.
        seconds: wall time, since the last resume.
        steps_per_second: since the last resume.
        objective: mean training objective of the last epoch; NaN before its first step.
        member_steps: optimizer steps of all members of a population.
        rollbacks: number of rollbacks after non-finite steps.
        nonfinite_steps: number of steps that were not taken because they were not finite.
        gradient_norm_max: largest gradient norm before clipping; NaN if unknown.
    """

    steps: int
    chosen_step: int
    seconds: float
    steps_per_second: float
    objective: float
    member_steps: int = 0
    rollbacks: int = 0
    nonfinite_steps: int = 0
    gradient_norm_max: float = math.nan


@dataclass(frozen=True, slots=True)
class MemberResult:
    """Numbers of one member of a population.

    Attributes:
        settings: its seed, learning rate and other settings of its own.
        chosen_step: optimizer steps up to its chosen weights.
        frozen_at: optimizer steps up to its first non-finite one; None without any.
        gradient_norm_max: largest gradient norm before clipping.
    """

    settings: dict[str, Any]
    chosen_step: int
    frozen_at: int | None
    gradient_norm_max: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A net, or the members of a population, with the chosen weights."""

    nets: Nets
    summary: FitSummary
    members: tuple[MemberResult, ...] = ()


@dataclass(frozen=True, slots=True)
class FitPlan:
    """The length of a fit and the folder of its files.

    Attributes:
        folder: the run folder.
        stage: "" for the fit on train, "refit" for the fit on train + val.
        max_steps: optimizer steps; None for the limits of the Trainer's settings.
        resume: continue from the stage's last.ckpt, if there is one.
        member_steps: optimizer steps of each member of a population; 0 leaves a member out.
    """

    folder: Path
    stage: str
    max_steps: int | None
    resume: bool
    member_steps: tuple[int, ...] | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the stage's checkpoints."""
        return self.folder / "checkpoints" / self.stage

    @property
    def resume_path(self) -> Path | None:
        """Checkpoint to continue from, if any."""
        path = self.checkpoints / LAST
        return path if self.resume and path.is_file() else None


def fit(settings: FitSettings, data: BarDataModule, plan: FitPlan) -> Fit:
    """Train a net and return it with the best weights on val, or the last ones without a val span.

    Args:
        settings: settings of the fit.
        data: one fold.
        plan: length of the fit, and the folder of its files.

    Raises:
        NonFiniteError: a step was not finite, and no rollback is left.
    """
    check_precision(settings.trainer.precision, accelerator=settings.trainer.accelerator)
    first = checkpoint_step(plan.resume_path)
    attempt, seconds = run_with_rollbacks(
        lambda resume: _make_attempt(settings, data, replace(plan, resume=resume)),
        resume=plan.resume,
        folder=plan.checkpoints,
        settings=settings.stability,
    )
    module, trainer = attempt.module, attempt.trainer
    chosen_step = _load_best(module, attempt.best) or trainer.global_step
    module.net.float()  # a bundle scores in float32; other precisions are of the training alone
    check_finite_weights(module.net, when="in the chosen weights")
    summary = FitSummary(
        trainer.global_step,
        chosen_step,
        seconds,
        (trainer.global_step - first) / seconds,
        float(module.objective.compute()) if module.objective.update_called else math.nan,
        rollbacks=module.guard.rollbacks,
        nonfinite_steps=module.guard.nonfinite_steps,
        gradient_norm_max=module.guard.largest_norm,
    )
    return Fit(Nets(module.net, module.link, data.to_rank), summary)


def _make_attempt(settings: FitSettings, data: BarDataModule, plan: FitPlan) -> FitAttempt:
    """Build a Trainer and everything it trains with."""
    L.seed_everything(settings.seed, verbose=False)
    module, has_val = make_forecaster(settings, data), data.has_val()
    recorder = StepRecorder(plan.folder, stage=plan.stage, config=settings.config, data=data)
    module.guard = StepGuard(recorder)
    if module.plan is not None:
        data.calls = module.plan
    checkpoint = settings.checkpoint
    last = LastCheckpoint(plan.checkpoints, every_n_steps=checkpoint.every_n_steps)
    best = None
    if has_val:
        best = BestCheckpoint(plan.checkpoints, monitor=checkpoint.monitor, mode=checkpoint.mode)
    callbacks = [
        *distributed_callbacks(),
        TrivialObjective(trivial_objective(settings, [data])),
        *_stability_callbacks(settings, plan),
        *pruning_callbacks(has_val=has_val),
        *([best] if best else []),
        last,  # after the others, whose states it saves
    ]
    trainer = make_trainer(
        settings,
        plan.folder,
        callbacks,
        stage=plan.stage,
        has_val=has_val,
        arguments=_trainer_overrides(settings.trainer, data, plan),
    )
    run = partial(trainer.fit, module, data, ckpt_path=plan.resume_path, weights_only=True)
    return FitAttempt(trainer, module, best, run)


def _stability_callbacks(settings: FitSettings, plan: FitPlan) -> list[L.Callback]:
    """Return the callbacks of conf/stability."""
    stability = settings.stability
    callbacks: list[L.Callback] = [StopOnNonFiniteWeights()]
    if stability.diagnose_every_n_steps is not None:
        every, clip = stability.diagnose_every_n_steps, settings.trainer.clip_norm
        callbacks.append(Diagnostics(every_n_steps=every, clip=clip))
    if stability.on_nonfinite == ROLLBACK:
        every = stability.keep_every_n_steps
        callbacks.append(RollbackCheckpoints(plan.checkpoints, every_n_steps=every))
    return callbacks


def _trainer_overrides(
    trainer: TrainerSettings, data: BarDataModule, plan: FitPlan
) -> dict[str, object]:
    arguments: dict[str, object] = {}
    if plan.max_steps is not None:
        steps = math.ceil(batches_per_epoch(trainer, data) / trainer.accumulate_grad_batches)
        arguments |= step_limit(plan.max_steps, steps_per_epoch=steps)
    if data.calls is not None:
        arguments |= trainer_arguments(trainer, data.calls)
    return arguments


def checkpoint_step(checkpoint: Path | None) -> int:
    """Return the optimizer steps done up to a checkpoint; 0 without one."""
    return 0 if checkpoint is None else int(_load(checkpoint)["global_step"])


def _load_best(module: Forecaster, best: ModelCheckpoint | None) -> int | None:
    """Load the best weights into the module and return their step; None if there are none."""
    if best is None or not best.best_model_path:
        return None
    state = _load(best.best_model_path)
    module.load_state_dict(state["state_dict"])
    return int(state["global_step"])


def _load(checkpoint: Path | str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return state
