"""The training objective of a constant, and its curve beside the net's."""

import math
from collections.abc import Sequence

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from robust_fin.data.datamodule import BarDataModule

TAG = "train/objective_trivial"


def trivial_objective(config: DictConfig, folds: Sequence[BarDataModule]) -> float:
    """Training objective of a constant: the median of what is trained on, or its mean if better.

    NaN where members have objectives of their own.

    Args:
        config: as composed.
        folds: whose training rows are averaged over.
    """
    if config.population.delta is not None:
        return math.nan
    loss, found = instantiate(config.loss), []
    for data in folds:
        trained = data.scale.trained(outcome=data.outcome("train"), rank=data.target("train"))
        wanted = torch.from_numpy(trained)
        constants = (wanted.median(), wanted.mean())
        found.append(min(float(loss(one.expand_as(wanted), wanted)) for one in constants))
    return float(np.mean(found)) if found else math.nan


class TrivialObjective(Callback):
    """Draws it where training starts and at the end of every epoch, so that it is a line.

    Args:
        value: of the constant; NaN is not drawn.
    """

    def __init__(self, value: float) -> None:
        """Keep it."""
        self.value = value

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """The first point, which a run that goes on has already."""
        if trainer.global_step == 0:
            self._draw(trainer, at=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """A point where the last step's loss lies, so that a checkpoint after it keeps it."""
        if trainer.global_step:
            self._draw(trainer, at=trainer.global_step - 1)

    def _draw(self, trainer: L.Trainer, *, at: int) -> None:
        if math.isnan(self.value):
            return
        for logger in trainer.loggers:
            logger.log_metrics({TAG: self.value}, step=at)
