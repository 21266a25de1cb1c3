"""One fit: the Trainer run from the config's parts to the weights that count."""

import logging
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from robust_fin.bundle import Nets
from robust_fin.data.datamodule import BarDataModule
from robust_fin.training.agreement import shared_callbacks
from robust_fin.training.checkpoints import LAST, LastCheckpoint, best_checkpoint
from robust_fin.training.diagnostics import Diagnostics
from robust_fin.training.engine import trainer_settings
from robust_fin.training.module import Forecaster
from robust_fin.training.parts import (
    batches_an_epoch,
    make_forecaster,
    make_trainer,
    step_limit,
)
from robust_fin.training.pruning import pruning_callbacks
from robust_fin.training.record import Recorder
from robust_fin.training.rollback import ROLLBACK, Attempt, KeptStates, run_attempts
from robust_fin.training.stability import (
    StepGuard,
    StopOnNonFiniteWeights,
    check_precision,
    require_finite_weights,
)
from robust_fin.training.trivial import TrivialObjective, trivial_objective

log = logging.getLogger(__name__)


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
class MemberFate:
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
    members: tuple[MemberFate, ...] = ()


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


def fit(config: DictConfig, data: BarDataModule, plan: FitPlan) -> Fit:
    """Train once, and hand on the best weights on val, or the last ones where there is no val.

    Args:
        config: as composed; its parts are built here.
        data: one fold.
        plan: how long, and where.

    Raises:
        NonFiniteError: a gradient or weight stopped being a number, and no rollback is left.
    """
    check_precision(config.trainer)
    first = steps_in(plan.resume_path)
    done, seconds = run_attempts(
        lambda resume: _attempt(config, data, replace(plan, resume=resume)),
        resume=plan.resume,
        folder=plan.checkpoints,
        settings=config.stability,
    )
    module, trainer = done.module, done.trainer
    chosen_step = _load_best(module, done.best) or trainer.global_step
    require_finite_weights(module.net, when="in the weights that were chosen")
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


def _attempt(config: DictConfig, data: BarDataModule, plan: FitPlan) -> Attempt:
    """The Trainer and all its parts, made anew."""
    L.seed_everything(config.seed, verbose=False)
    module = make_forecaster(config, data)
    recorder = Recorder(plan.folder, stage=plan.stage, config=config, data=data)
    module.guard = StepGuard(recorder)
    if module.plan is not None:
        data.calls = module.plan
    last = LastCheckpoint(plan.checkpoints, every_n_steps=config.checkpoint.every_n_steps)
    best = None
    if data.has_val():
        best = best_checkpoint(
            plan.checkpoints, monitor=config.checkpoint.monitor, mode=config.checkpoint.mode
        )
    # last.ckpt comes last: it holds what the callbacks before it know of the epoch
    trivial = TrivialObjective(trivial_objective(config, [data]))
    watching = [trivial, *_watching(config, plan), *pruning_callbacks(has_val=data.has_val())]
    ours = [*shared_callbacks(), *watching, *([best] if best else []), last]
    trainer = make_trainer(
        config,
        plan.folder,
        ours,
        stage=plan.stage,
        has_val=data.has_val(),
        settings=_limits(config, data, plan),
    )
    run = partial(trainer.fit, module, data, ckpt_path=plan.resume_path, weights_only=True)
    return Attempt(trainer, module, best, run)


def _watching(config: DictConfig, plan: FitPlan) -> list[L.Callback]:
    """What looks after numbers that are not finite, by conf/stability."""
    asked, trainer = config.stability, config.trainer
    found: list[L.Callback] = [StopOnNonFiniteWeights()]
    if asked.diagnose_every_n_steps is not None:
        clip = None if trainer.gradient_clip_algorithm == "value" else trainer.gradient_clip_val
        found.append(Diagnostics(every_n_steps=asked.diagnose_every_n_steps, clip=clip))
    if asked.on_nonfinite == ROLLBACK:
        found.append(KeptStates(plan.checkpoints, every_n_steps=asked.keep_every_n_steps))
    return found


def _limits(config: DictConfig, data: BarDataModule, plan: FitPlan) -> dict[str, object]:
    settings: dict[str, object] = {}
    if plan.max_steps is not None:
        steps = math.ceil(batches_an_epoch(config, data) / config.trainer.accumulate_grad_batches)
        settings |= step_limit(plan.max_steps, an_epoch=steps)
    if data.calls is not None:
        settings |= trainer_settings(config, data.calls)
    return settings


def steps_in(checkpoint: Path | None) -> int:
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
