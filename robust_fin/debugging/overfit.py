"""Can the net learn one batch by heart? One that cannot will learn nothing else."""

import math
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from omegaconf import DictConfig
from torch import Tensor, nn

from robust_fin.data.batches import Batch
from robust_fin.data.datamodule import BarDataModule
from robust_fin.debugging.check import CheckError, plainly
from robust_fin.errors import ConfigError
from robust_fin.evaluation.console import RESULT, show
from robust_fin.progress import shown_progress
from robust_fin.training.module import Forecaster, Loss
from robust_fin.training.parts import make_forecaster


@dataclass(frozen=True, slots=True)
class OverfitBatch:
    """Trains on one batch, without dropout and at the full learning rate, until it is learnt.

    Attributes:
        rows: of the batch, the first of the run; few enough for a small net.
        share: of the loss of the best constant; below it the batch counts as learnt.
        max_steps: optimizer steps to try.
    """

    rows: int
    share: float
    max_steps: int

    def look(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:  # noqa: ARG002
        """Train, and say whether the net could.

        Raises:
            CheckError: it could not.
        """
        L.seed_everything(config.seed, verbose=False)
        module = make_forecaster(plainly(config), data)
        batch = first_batch(data, rows=self.rows)
        trivial = constant_loss(module.loss, batch.target)
        loss, steps = self._train(module, batch, config.trainer.gradient_clip_val, trivial)
        said = (
            f"after {steps:,} steps on one batch of {len(batch.target)} rows the loss is "
            f"{loss:.3g}, {loss / trivial:.1%} of the best constant's {trivial:.3g}"
        )
        if not loss <= self.share * trivial:
            raise CheckError(
                f"the net cannot learn one batch by heart: {said}. Try another optimizer.lr, a "
                "wider model.hidden, link=identity, or trainer.gradient_clip_val=null"
            )
        show(f"The net can learn one batch by heart: {said}.", loudness=RESULT)

    def _train(
        self, module: Forecaster, batch: Batch, clip: float | None, trivial: float
    ) -> tuple[float, int]:
        """The last loss, and the steps until then."""
        optimizer = module.configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]  # which the schedule has begun to warm up
        module.net.eval()  # dropout would keep the loss up
        loss = math.inf
        with shown_progress("one batch", total=self.max_steps) as advance:
            for step in range(self.max_steps):
                optimizer.zero_grad()
                objective = module.loss(module(batch.x), batch.target)
                loss = float(objective.detach())
                if loss <= self.share * trivial or not math.isfinite(loss):
                    return loss, step
                objective.backward()
                if clip:
                    nn.utils.clip_grad_norm_(module.net.parameters(), clip)
                optimizer.step()
                advance(1)
        return loss, self.max_steps


def first_batch(data: BarDataModule, *, rows: int) -> Batch:
    """The first batch of a run, or its first rows.

    Raises:
        ConfigError: fewer than two are asked for.
    """
    if rows < 2:
        raise ConfigError(f"debug.check.rows={rows} must be at least 2: one row is a constant")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, Batch)
    return Batch(batch.x[:rows], batch.target[:rows])


def constant_loss(loss: Loss, target: Tensor) -> float:
    """The loss of the best constant: the median, or the mean if better.

    Raises:
        ConfigError: the batch has one value alone.
    """
    found = [float(loss(one.expand_as(target), target)) for one in (target.median(), target.mean())]
    if min(found) == 0:
        raise ConfigError("the rows of the batch have one target; take more with debug.check.rows=")
    return min(found)
