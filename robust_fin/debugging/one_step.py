"""One optimizer step, one look at val, one score of test: do the parts fit together?"""

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from robust_fin.bundle import SCORE_BLOCK, Nets
from robust_fin.data.batches import ScoredBatch
from robust_fin.data.datamodule import BarDataModule
from robust_fin.debugging.check import CheckError, plainly
from robust_fin.debugging.overfit import first_batch
from robust_fin.evaluation.console import show
from robust_fin.training.module import Forecaster
from robust_fin.training.parts import make_forecaster


@dataclass(frozen=True, slots=True)
class OneStep:
    """Takes one step, and prints what had which shape and size.

    Of test it shows the forecasts alone: whoever debugs is not to see its score.
    """

    def look(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:  # noqa: ARG002
        """Step, validate, score.

        Raises:
            CheckError: something is not finite.
        """
        L.seed_everything(config.seed, verbose=False)
        module = make_forecaster(plainly(config), data)
        batch = first_batch(data, rows=config.batch_size)
        table = Table(title="one step", title_justify="left")
        for name in ("", "shape", "norm"):
            table.add_column(name, justify="right" if name else "left")
        _row(table, "train: features", batch.x)
        _row(table, "train: target", batch.target)
        forecast = module(batch.x)
        _row(table, "train: forecast", forecast)
        loss = module.loss(forecast, batch.target)
        _row(table, "train: loss", loss)
        loss.backward()
        _step(module, table)
        _val(module, data.val_tensors(), table, rows=config.score_batch_size)
        nets = Nets(module.net.eval(), module.link, data.to_rank)
        blocks = list(nets.scores(data.x("test")[:SCORE_BLOCK]))
        _row(table, "test: forecast, in ranks", torch.from_numpy(blocks[0][0]))
        show(table)


def _step(module: Forecaster, table: Table) -> None:
    """Gradient and update of every parameter."""
    optimizer = module.configure_optimizers()["optimizer"]
    named = dict(module.net.named_parameters())
    before = {name: one.detach().clone() for name, one in named.items()}
    optimizer.step()
    for name, one in named.items():
        _row(table, f"{name}: weight", before[name])
        if one.grad is None:
            raise CheckError(f"{name} has no gradient: nothing in the forecast depends on it")
        _row(table, f"{name}: gradient", one.grad)
        _row(table, f"{name}: update", one.detach() - before[name])


def _val(module: Forecaster, val: ScoredBatch, table: Table, *, rows: int) -> None:
    """A block of the val span, where there is one."""
    part = ScoredBatch(*(one[:rows] for one in val))
    if not len(part.target):
        return
    with torch.no_grad():
        forecast = module(part.x)
    _row(table, "val: forecast", forecast)
    module.val.update(forecast, part.target, part.outcome)
    for name, value in module.val.compute().items():
        table.add_row(f"val: {name}", "one block", f"{float(value):.6g}")
    module.val.reset()


def _row(table: Table, name: str, value: Tensor) -> None:
    """Shape and Euclidean norm.

    Raises:
        CheckError: a number is none.
    """
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise CheckError(f"{name}: {bad} of {value.numel()} values are not finite")
    shape = " x ".join(map(str, value.shape)) or "one number"
    table.add_row(name, shape, f"{float(value.detach().norm()):.6g}")
