"""Build the parts of a fit from its settings: LightningModule, Trainer, logger, progress bar."""

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
    """Lightning's rich progress bar, on stderr, shown only in a terminal.

    Args:
        refresh_rate: batches between two updates.
    """

    def __init__(self, *, refresh_rate: int) -> None:
        super().__init__(refresh_rate=refresh_rate, console_kwargs={"stderr": True})

    @property
    def is_enabled(self) -> bool:
        """True if stderr is a terminal and progress is not hidden."""
        return super().is_enabled and progress_is_shown()

    @property
    def is_disabled(self) -> bool:
        """The opposite of `is_enabled`."""
        return not self.is_enabled

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics beside the bar, without the logger's version."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class StepTensorBoardLogger(TensorBoardLogger):
    """TensorBoardLogger that writes all metrics of a step as one event, not one event per curve.

    TensorBoard shows the same curves. An event costs about 80 microseconds, which is most of the
    cost of logging with the compiled engine.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Write one event.

        Args:
            metrics: tag -> number, or tensor of one element.
            step: x value of the points.

        Raises:
            ValueError: a tensor does not have exactly one element.
        """
        points = [
            Summary.Value(tag=f"{logger_prefix(self)}{tag}", simple_value=float(value))
            for tag, value in metrics.items()
        ]
        if points:
            self.experiment._get_file_writer().add_summary(Summary(value=points), step)


def planned_steps(trainer: TrainerSettings, data: BarDataModule) -> int:
    """Return the optimizer steps of the whole fit, the `total` of the schedule."""
    batches = batches_per_epoch(trainer, data)
    return total_steps(trainer, math.ceil(batches / trainer.accumulate_grad_batches))


def total_steps(trainer: TrainerSettings, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the whole fit.

    Raises:
        ConfigError: neither epochs nor steps are limited.
    """
    if trainer.max_steps > 0:
        return trainer.max_steps
    epochs = trainer.max_epochs
    if epochs is None or epochs < 1:
        raise ConfigError(
            f"trainer.max_epochs={epochs} and trainer.max_steps={trainer.max_steps}: the fit would "
            "never end; set one of them"
        )
    return max(1, epochs * steps_per_epoch)


def batches_per_epoch(trainer: TrainerSettings, data: BarDataModule) -> int:
    """Return the batches per epoch and rank, after trainer.limit_train_batches.

    Raises:
        SplitError: the train span has fewer rows than one batch per rank.
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
    """Apply trainer.limit_train_batches to a number of batches."""
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
    callbacks: Sequence[L.Callback],
    *,
    stage: str,
    has_val: bool,
    arguments: Mapping[str, object],
) -> L.Trainer:
    """Build the Trainer with its logger and callbacks.

    A LearningRateMonitor is dropped: the module logs the learning rate itself.

    Args:
        settings: settings of the fit.
        folder: the run folder.
        callbacks: callbacks of every fit, after those of conf/callbacks.
        stage: subfolder of the curves.
        has_val: validate; without a val span, callbacks that monitor val are dropped.
        arguments: arguments of the Trainer that override the settings.

    Raises:
        RankError: the Trainer's world size is not the number of ranks.
    """
    progress_bar = settings.trainer.enable_progress_bar
    configured = [
        callback
        for callback in settings.callbacks()
        if not isinstance(callback, LearningRateMonitor)
        and (has_val or not _monitors_val(callback))
        and (progress_bar or not isinstance(callback, ProgressBar))
    ]
    trainer = settings.trainer.build(
        logger=settings.logger(save_dir=folder, name="tensorboard", version=stage),
        callbacks=[*configured, *callbacks],
        default_root_dir=folder,
        **({} if has_val else {"limit_val_batches": 0}),
        **arguments,
    )
    if trainer.world_size != world_size():  # part of every batch would be trained on by no rank
        raise RankError(
            f"the Trainer has a world size of {trainer.world_size}, and {world_size()} ranks train "
            "together here. The environment of this process is not that of its run (WORLD_SIZE, "
            "LOCAL_RANK); start it from a shell without them"
        )
    return trainer


def step_limit(steps: int, *, steps_per_epoch: int) -> dict[str, object]:
    """Return the Trainer arguments that end a fit after so many optimizer steps."""
    return {"max_steps": steps, "max_epochs": math.ceil(steps / max(1, steps_per_epoch))}


def _monitors_val(callback: L.Callback) -> bool:
    return str(getattr(callback, "monitor", None) or "").startswith("val/")
