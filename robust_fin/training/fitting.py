"""One fit: the Trainer run from the config's parts to the weights that count."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from omegaconf import DictConfig
from torch import nn

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import ConfigError
from robust_fin.training.checkpoints import LAST, LastCheckpoint, best_checkpoint
from robust_fin.training.engine import call_plan, compiled_calls, trainer_settings
from robust_fin.training.module import Forecaster, Link
from robust_fin.training.schedules import check_warmup
from robust_fin.training.span_scores import SpanScores
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
    """

    steps: int
    chosen_step: int
    seconds: float
    steps_per_second: float
    objective: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fit:
    """A net with the weights that count."""

    net: nn.Module
    link: Link
    summary: FitSummary


@dataclass(frozen=True, slots=True)
class FitPlan:
    """How long a fit goes on, and where its files go.

    Attributes:
        folder: of the run.
        stage: "" for the fit that choices are made on, "refit" for the one on train + val.
        max_steps: stop after so many optimizer steps; None leaves it to the Trainer's settings.
        resume: go on from the stage's last.ckpt where there is one.
    """

    folder: Path
    stage: str
    max_steps: int | None
    resume: bool

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
    module = _forecaster(config, data)
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
    trainer = _trainer(config, data, plan, ours)
    began, first = time.perf_counter(), _steps_in(plan.resume_path)
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
    return Fit(module.net, module.link, summary)


def planned_steps(config: DictConfig, data: BarDataModule) -> int:
    """Optimizer steps the settings ask for; the schedule's `total`."""
    if config.trainer.max_steps > 0:
        return int(config.trainer.max_steps)
    epochs = config.trainer.max_epochs
    if epochs is None or epochs < 1:
        raise ConfigError(
            f"trainer.max_epochs={epochs} and trainer.max_steps={config.trainer.max_steps} set no "
            "end; set one of them"
        )
    batches = batches_an_epoch(config, data)
    return max(1, int(epochs) * math.ceil(batches / config.trainer.accumulate_grad_batches))


def batches_an_epoch(config: DictConfig, data: BarDataModule) -> int:
    """Batches of one pass over train, a process, as the Trainer limits them."""
    batches, limit = data.steps_an_epoch(_world(config)), config.trainer.limit_train_batches
    if isinstance(limit, float):
        return int(batches * limit)
    return batches if limit is None else min(batches, int(limit))


def _forecaster(config: DictConfig, data: BarDataModule) -> Forecaster:
    target = data.fitted.target
    check_warmup(config.schedule.warmup)
    schedule = partial(function_of(config.schedule), total=planned_steps(config, data))
    features = len(data.features.names)
    net = instantiate(config.model, features=features)
    link, loss = function_of(config.link), function_of(config.loss)
    calls = compiled_calls(config, net, features=features, link=link, loss=loss, schedule=schedule)
    return Forecaster(
        net,
        link=link,
        loss=loss,
        optimizer=instantiate(config.optimizer),
        schedule=schedule,
        val=SpanScores(train_median=target.median, train_mean=target.mean),
        calls=calls,
        plan=call_plan(config, batches_an_epoch(config, data)) if calls else None,
    )


def function_of(settings: DictConfig) -> Callable[..., Any]:
    """What a YAML with `_partial_: true` names, as a plain partial.

    Hydra's own partial checks its policy at every call, which costs a tenth of a millisecond: as
    much as the step of a small net. The target has passed that check when it was built.
    """
    part = instantiate(settings)
    if not isinstance(part, partial):
        raise ConfigError(f"{settings.get('_target_')} needs _partial_: true; it is called by step")
    return partial(part.func, *part.args, **part.keywords)


def _trainer(
    config: DictConfig, data: BarDataModule, plan: FitPlan, ours: list[L.Callback]
) -> L.Trainer:
    settings: dict[str, object] = {} if data.has_val() else {"limit_val_batches": 0}
    if plan.max_steps is not None:
        batches = plan.max_steps * config.trainer.accumulate_grad_batches
        epochs = math.ceil(batches / max(1, batches_an_epoch(config, data)))
        settings |= {"max_steps": plan.max_steps, "max_epochs": epochs}
    if data.calls is not None:
        settings |= trainer_settings(config, data.calls)
    callbacks = [instantiate(one) for one in config.callbacks.values()]
    if not data.has_val():
        callbacks = [one for one in callbacks if not _needs_val(one)]
    if data.calls is not None:  # which draws the learning rate itself, step by step
        callbacks = [one for one in callbacks if not isinstance(one, LearningRateMonitor)]
    if not config.trainer.enable_progress_bar:
        callbacks = [one for one in callbacks if not isinstance(one, ProgressBar)]
    logger = instantiate(
        config.logger, save_dir=plan.folder, name="tensorboard", version=plan.stage
    )
    return instantiate(
        config.trainer,
        logger=logger,
        callbacks=[*callbacks, *ours],
        default_root_dir=plan.folder,
        **settings,
    )


def _needs_val(callback: L.Callback) -> bool:
    return str(getattr(callback, "monitor", None) or "").startswith("val/")


def _world(config: DictConfig) -> int:
    devices = config.trainer.devices
    return int(devices) * config.trainer.num_nodes if isinstance(devices, int) else 1


def _steps_in(checkpoint: Path | None) -> int:
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
