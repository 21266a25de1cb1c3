"""One fit: the Trainer run from the config's parts to the weights that count."""

import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from robust_fin.bundle import Nets
from robust_fin.data.datamodule import BarDataModule
from robust_fin.training.checkpoints import LAST, LastCheckpoint, best_checkpoint
from robust_fin.training.engine import trainer_settings
from robust_fin.training.module import Forecaster
from robust_fin.training.parts import (
    batches_an_epoch,
    make_forecaster,
    make_trainer,
    step_limit,
)
from robust_fin.training.stability import StopOnNonFiniteWeights, require_finite_weights

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
    """

    steps: int
    chosen_step: int
    seconds: float
    steps_per_second: float
    objective: float
    member_steps: int = 0

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
    """

    settings: dict[str, Any]
    chosen_step: int
    frozen_at: int | None


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
        member_steps: of a population, optimizer steps after which each member stops.
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
        NonFiniteError: a gradient or weight stopped being a number.
    """
    L.seed_everything(config.seed, verbose=False)
    module = make_forecaster(config, data)
    if module.plan is not None:
        data.calls = module.plan
    last = LastCheckpoint(plan.checkpoints, every_n_steps=config.checkpoint.every_n_steps)
    best = None
    if data.has_val():
        best = best_checkpoint(
            plan.checkpoints, monitor=config.checkpoint.monitor, mode=config.checkpoint.mode
        )
    # last.ckpt comes last: it holds what the callbacks before it know of the epoch
    ours = [StopOnNonFiniteWeights(), *([best] if best else []), last]
    trainer = make_trainer(
        config,
        plan.folder,
        ours,
        stage=plan.stage,
        has_val=data.has_val(),
        compiled=data.calls is not None,
        settings=_limits(config, data, plan),
    )
    began, first = time.perf_counter(), steps_in(plan.resume_path)
    trainer.fit(module, data, ckpt_path=plan.resume_path, weights_only=True)
    seconds = time.perf_counter() - began
    chosen_step = _load_best(module, best) or trainer.global_step
    require_finite_weights(module.net, when="in the weights that were chosen")
    summary = FitSummary(
        trainer.global_step,
        chosen_step,
        seconds,
        (trainer.global_step - first) / seconds,
        float(module.objective.compute()) if module.objective.update_called else float("nan"),
    )
    return Fit(Nets(module.net, module.link), summary)


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
