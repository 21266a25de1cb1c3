"""One fit: a Trainer run from the settings to the chosen weights."""

import hashlib
import logging
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
from robust_fin.runtime.process_state import RankError
from robust_fin.runtime.rank_info import (
    all_reduce_max,
    is_distributed,
    require_equal_on_ranks,
    world_size,
)
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
from robust_fin.training.settings import ROLLBACK, FitSettings

log = logging.getLogger(__name__)

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


def distributed_callbacks() -> list[L.Callback]:
    """Those of a fit that other processes take part in; none where it is alone."""
    return [WeightAgreement(), SynchronizedStop()] if is_distributed() else []


class WeightAgreement(L.Callback):
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
        require_equal_on_ranks(
            weights_hash(pl_module.state_dict()),
            what=f"the weights at the end of epoch {trainer.current_epoch} (step "
            f"{trainer.global_step})",
        )


class SynchronizedStop(L.Callback):
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
        asked, minus_next = all_reduce_max([self._asked, -self._batches_ahead()])
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


@dataclass(frozen=True, slots=True)
class FitSummary:
    """What a fit did.

    Attributes:
        steps: optimizer steps up to the last weights.
        chosen_step: optimizer steps up to the weights that count.
        seconds: wall time, of the last session where a fit was resumed.
        steps_per_second: of that session.
        objective: mean of the training objective over the last epoch; NaN before its first step.
        member_steps: of a population, optimizer steps of all members together.
        rollbacks: to a good state, after a step that was not finite.
        nonfinite_steps: optimizer steps that were not taken for that reason.
        gradient_norm_max: largest of the steps taken, before clipping; NaN where nobody kept it.
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

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MemberResult:
    """What became of one member.

    Attributes:
        settings: seed, learning rate and whatever else was its own.
        chosen_step: its optimizer steps up to the weights that count.
        frozen_at: its optimizer steps up to the one that was not finite; None where none was.
        gradient_norm_max: largest of its steps, before clipping.
    """

    settings: dict[str, Any]
    chosen_step: int
    frozen_at: int | None
    gradient_norm_max: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A net, or the members of a population, with the weights that count."""

    nets: Nets
    summary: FitSummary
    members: tuple[MemberResult, ...] = ()


@dataclass(frozen=True, slots=True)
class FitPlan:
    """How long a fit goes on, and where its files go.

    Attributes:
        folder: of the run.
        stage: "" for the fit that choices are made on, "refit" for the one on train + val.
        max_steps: stop after so many optimizer steps; None leaves it to the Trainer's settings.
        resume: go on from the stage's last.ckpt where there is one.
        member_steps: of a population, optimizer steps after which each member stops; 0 leaves it
            out.
    """

    folder: Path
    stage: str
    max_steps: int | None
    resume: bool
    member_steps: tuple[int, ...] | None = None

    @property
    def checkpoints(self) -> Path:
        """Where the stage's checkpoints lie."""
        return self.folder / "checkpoints" / self.stage

    @property
    def resume_path(self) -> Path | None:
        """The checkpoint to go on from."""
        path = self.checkpoints / LAST
        return path if self.resume and path.is_file() else None


def fit(settings: FitSettings, data: BarDataModule, plan: FitPlan) -> Fit:
    """Train once, and hand on the best weights on val, or the last ones where there is no val.

    Args:
        settings: of the fit; its parts are built here.
        data: one fold.
        plan: how long, and where.

    Raises:
        NonFiniteError: a gradient or weight stopped being a number, and no rollback is left.
    """
    check_precision(settings.trainer.precision, accelerator=settings.trainer.accelerator)
    first = checkpoint_step(plan.resume_path)
    done, seconds = run_with_rollbacks(
        lambda resume: _attempt(settings, data, replace(plan, resume=resume)),
        resume=plan.resume,
        folder=plan.checkpoints,
        settings=settings.stability,
    )
    module, trainer = done.module, done.trainer
    chosen_step = _load_best(module, done.best) or trainer.global_step
    check_finite_weights(module.net, when="in the weights that were chosen")
    summary = FitSummary(
        trainer.global_step,
        chosen_step,
        seconds,
        (trainer.global_step - first) / seconds,
        float(module.objective.compute()) if module.objective.update_called else float("nan"),
        rollbacks=module.guard.rollbacks,
        nonfinite_steps=module.guard.nonfinite_steps,
        gradient_norm_max=module.guard.largest_norm,
    )
    return Fit(Nets(module.net, module.link, data.to_rank), summary)


def _attempt(settings: FitSettings, data: BarDataModule, plan: FitPlan) -> FitAttempt:
    """The Trainer and all its parts, made anew."""
    L.seed_everything(settings.seed, verbose=False)
    module = make_forecaster(settings, data)
    recorder = StepRecorder(plan.folder, stage=plan.stage, config=settings.config, data=data)
    module.guard = StepGuard(recorder)
    if module.plan is not None:
        data.calls = module.plan
    last = LastCheckpoint(plan.checkpoints, every_n_steps=settings.checkpoint.every_n_steps)
    best = None
    if data.has_val():
        best = BestCheckpoint(
            plan.checkpoints, monitor=settings.checkpoint.monitor, mode=settings.checkpoint.mode
        )
    # last.ckpt comes last: it holds what the callbacks before it know of the epoch
    trivial = TrivialObjective(trivial_objective(settings, [data]))
    watching = [trivial, *_watching(settings, plan), *pruning_callbacks(has_val=data.has_val())]
    ours = [*distributed_callbacks(), *watching, *([best] if best else []), last]
    trainer = make_trainer(
        settings,
        plan.folder,
        ours,
        stage=plan.stage,
        has_val=data.has_val(),
        arguments=_limits(settings, data, plan),
    )
    run = partial(trainer.fit, module, data, ckpt_path=plan.resume_path, weights_only=True)
    return FitAttempt(trainer, module, best, run)


def _watching(settings: FitSettings, plan: FitPlan) -> list[L.Callback]:
    """What looks after numbers that are not finite, by conf/stability."""
    asked = settings.stability
    found: list[L.Callback] = [StopOnNonFiniteWeights()]
    if asked.diagnose_every_n_steps is not None:
        clip = settings.trainer.clip_norm
        found.append(Diagnostics(every_n_steps=asked.diagnose_every_n_steps, clip=clip))
    if asked.on_nonfinite == ROLLBACK:
        found.append(RollbackCheckpoints(plan.checkpoints, every_n_steps=asked.keep_every_n_steps))
    return found


def _limits(settings: FitSettings, data: BarDataModule, plan: FitPlan) -> dict[str, object]:
    arguments: dict[str, object] = {}
    trainer = settings.trainer
    if plan.max_steps is not None:
        steps = math.ceil(batches_per_epoch(trainer, data) / trainer.accumulate_grad_batches)
        arguments |= step_limit(plan.max_steps, an_epoch=steps)
    if data.calls is not None:
        arguments |= trainer_arguments(trainer, data.calls)
    return arguments


def checkpoint_step(checkpoint: Path | None) -> int:
    """Optimizer steps done up to a checkpoint."""
    if checkpoint is None:
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])


def _load_best(module: Forecaster, best: ModelCheckpoint | None) -> int | None:
    """Put the best weights into the module; the step they are from, None where there are none."""
    if best is None or not best.best_model_path:
        return None
    kept = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(kept["state_dict"])
    return int(kept["global_step"])
