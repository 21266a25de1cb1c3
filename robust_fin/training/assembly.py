"""The parts of a fit, built from its settings: LightningModule, Trainer, logger, progress."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import ConfigError, SplitError
from robust_fin.runtime.process_state import RankError
from robust_fin.runtime.rank_info import world_size
from robust_fin.runtime.terminal import progress_is_shown
from robust_fin.training.engine.build import call_plan, compiled_calls
from robust_fin.training.lightning_loop import logger_prefix
from robust_fin.training.module import Forecaster, SpanScores
from robust_fin.training.settings import FitSettings, TrainerSettings


class FitProgress(RichProgressBar):
    """Lightning's rich bar with the objective and, where there is a val span, its skill.

    Args:
        refresh_rate: batches between two updates.
    """

    def __init__(self, *, refresh_rate: int) -> None:
        """Leave the finished bars of all epochs out of the scroll."""
        super().__init__(refresh_rate=refresh_rate, console_kwargs={"stderr": True})

    @property
    def is_enabled(self) -> bool:
        """Only where a terminal looks on."""
        return super().is_enabled and progress_is_shown()

    @property
    def is_disabled(self) -> bool:
        """The opposite."""
        return not self.is_enabled

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar; the logger's version is no figure of the run."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class StepTensorBoardLogger(TensorBoardLogger):
    """Lightning's own, which writes what is logged of one step as one event instead of one a curve.

    TensorBoard shows the same. An event costs its writer some 80 microseconds, which is most of
    what logging costs a run of the compiled engine.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Write one event.

        Args:
            metrics: tag -> a number, or a tensor of one.
            step: where its points lie.

        Raises:
            ValueError: a tensor of several numbers, or of none.
        """
        points = [
            Summary.Value(tag=f"{logger_prefix(self)}{tag}", simple_value=float(value))
            for tag, value in metrics.items()
        ]
        if points:
            self.experiment._get_file_writer().add_summary(Summary(value=points), step)


def planned_steps(trainer: TrainerSettings, data: BarDataModule) -> int:
    """Optimizer steps the settings ask for; the schedule's `total`."""
    batches = batches_per_epoch(trainer, data)
    return total_steps(trainer, math.ceil(batches / trainer.accumulate_grad_batches))


def total_steps(trainer: TrainerSettings, an_epoch: int) -> int:
    """Optimizer steps the settings ask for, at so many an epoch.

    Raises:
        ConfigError: neither epochs nor steps are limited.
    """
    if trainer.max_steps > 0:
        return trainer.max_steps
    epochs = trainer.max_epochs
    if epochs is None or epochs < 1:
        raise ConfigError(
            f"trainer.max_epochs={epochs} and trainer.max_steps={trainer.max_steps} set no "
            "end; set one of them"
        )
    return max(1, epochs * an_epoch)


def batches_per_epoch(trainer: TrainerSettings, data: BarDataModule) -> int:
    """Batches of one pass over train, a process, as the Trainer limits them.

    Raises:
        SplitError: train is shorter than a batch of every process.
    """
    world = trainer.processes
    batches = data.steps_per_epoch(world)
    if batches == 0:
        raise SplitError(
            f"train has {data.fitted.fold.train.size} rows, fewer than batch_size="
            f"{data.batch_size} times {world} processes; lower it"
        )
    return limit_batches(trainer, batches)


def limit_batches(trainer: TrainerSettings, batches: int) -> int:
    """So many batches, as trainer.limit_train_batches cuts them."""
    limit = trainer.limit_train_batches
    if isinstance(limit, float):
        return int(batches * limit)
    return batches if limit is None else min(batches, int(limit))


def make_forecaster(settings: FitSettings, data: BarDataModule) -> Forecaster:
    """Build the LightningModule of one net."""
    target = data.fitted.target
    schedule = partial(settings.schedule, total=planned_steps(settings.trainer, data))
    features = len(data.features.names)
    net = settings.net(features=features)
    calls = compiled_calls(settings, net, features=features, schedule=schedule)
    plan = None
    if calls is not None:
        steps = batches_per_epoch(settings.trainer, data)
        plan = call_plan(settings.trainer, steps, steps_per_call=settings.engine.steps_per_call)
    return Forecaster(
        net,
        link=settings.link,
        loss=settings.loss,
        optimizer=settings.optimizer,
        schedule=schedule,
        val=SpanScores(train_median=target.median, train_mean=target.mean, to_rank=data.to_rank),
        calls=calls,
        plan=plan,
    )


def make_trainer(
    settings: FitSettings,
    folder: Path,
    ours: Sequence[L.Callback],
    *,
    stage: str,
    has_val: bool,
    arguments: Mapping[str, object],
) -> L.Trainer:
    """Lightning's Trainer with the callbacks and the logger of the config.

    A LearningRateMonitor is left out: the module draws the learning rate beside the loss.

    Args:
        settings: of the fit.
        folder: of the run.
        ours: callbacks that every fit has; they come last.
        stage: subfolder of the curves.
        has_val: else nothing is validated, and callbacks that watch val are left out.
        arguments: of the Trainer, that stand above the settings.

    Raises:
        RankError: the Trainer counts on other processes than those that are here.
    """
    callbacks = [one for one in settings.callbacks() if not isinstance(one, LearningRateMonitor)]
    if not has_val:
        callbacks = [one for one in callbacks if not _needs_val(one)]
    if not settings.trainer.enable_progress_bar:
        callbacks = [one for one in callbacks if not isinstance(one, ProgressBar)]
    trainer = settings.trainer.build(
        logger=settings.logger(save_dir=folder, name="tensorboard", version=stage),
        callbacks=[*callbacks, *ours],
        default_root_dir=folder,
        **({} if has_val else {"limit_val_batches": 0}),
        **arguments,
    )
    _require_world(trainer.world_size)
    return trainer


def _require_world(counted: int) -> None:
    """Refuse a Trainer that would train on a part of every batch, its rest being nobody's."""
    if counted != world_size():
        raise RankError(
            f"the Trainer counts on {counted} processes, and {world_size()} train together here. "
            "The environment of this process is not that of its run (WORLD_SIZE, LOCAL_RANK); "
            "start it from a shell without them"
        )


def step_limit(steps: int, *, an_epoch: int) -> dict[str, object]:
    """Trainer arguments that end a fit after so many optimizer steps."""
    return {"max_steps": steps, "max_epochs": math.ceil(steps / max(1, an_epoch))}


def _needs_val(callback: L.Callback) -> bool:
    return str(getattr(callback, "monitor", None) or "").startswith("val/")
