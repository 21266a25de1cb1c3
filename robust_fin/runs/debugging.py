"""The checks of `debug=`: overfit one batch, one step, anomaly detection and profiling."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import profile

from robust_fin.bundle.predictions import SCORE_BLOCK, Nets
from robust_fin.data.batches import Batch, ScoredBatch
from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import ConfigError, NonFiniteError, RobustFinError
from robust_fin.runs.training import fit_settings
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.rank_info import world_size
from robust_fin.runtime.terminal import RESULT, progress_bar, show
from robust_fin.training.assembly import make_forecaster
from robust_fin.training.fitting import FitPlan, fit
from robust_fin.training.module import Forecaster, Loss

PROFILE_FOLDER = "profile"
_SORTED_BY = "self_cpu_time_total"
_NAN = "returned nan values"  # part of torch's message


class CheckError(RobustFinError):
    """A debug check failed."""


class Check(Protocol):
    """A debug check, run in place of a training; it writes no metrics.json and no trial."""

    def run(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Run the check and print what it saw.

        Args:
            config: composed by Hydra.
            data: the first fold.
            folder: the run folder.

        Raises:
            CheckError: the net or its settings are at fault.
        """
        ...


def plain_config(config: DictConfig) -> DictConfig:
    """Return the config with the plain engine.

    Raises:
        ConfigError: there are several ranks.
    """
    if world_size() > 1:
        raise ConfigError(
            f"debug checks need one process, but there are {world_size()}; leave out trainer=ddp"
        )
    plain = config.copy()
    OmegaConf.update(plain, "engine.name", "plain")
    return plain


@dataclass(frozen=True, slots=True)
class OverfitBatch:
    """Trains on one batch, without dropout and at the full learning rate, until it is learned.

    Attributes:
        rows: rows of the batch, the first of the run; few enough for a small net.
        share: share of the best constant's loss below which the batch counts as learned.
        max_steps: optimizer steps to try.
    """

    rows: int
    share: float
    max_steps: int

    def run(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:  # noqa: ARG002
        """Train, and raise CheckError if the net cannot learn the batch."""
        L.seed_everything(config.seed, verbose=False)
        module = make_forecaster(fit_settings(plain_config(config)), data)
        batch = first_batch(data, rows=self.rows)
        trivial = constant_loss(module.loss, batch.target)
        loss, steps = self._train(module, batch, config.trainer.gradient_clip_val, trivial)
        outcome = (
            f"after {steps:,} steps on one batch of {len(batch.target)} rows the loss is "
            f"{loss:.3g}, {loss / trivial:.1%} of the best constant's {trivial:.3g}"
        )
        if not loss <= self.share * trivial:
            raise CheckError(
                f"the net cannot memorise one batch: {outcome}. Try another optimizer.lr, a "
                "wider model.hidden, link=identity, or trainer.gradient_clip_val=null"
            )
        show(f"The net can memorise one batch: {outcome}.", level=RESULT)

    def _train(
        self, module: Forecaster, batch: Batch, clip: float | None, trivial: float
    ) -> tuple[float, int]:
        """Return the last loss, and the number of steps before it."""
        optimizer = module.configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]  # undoes the warmup of the schedule
        module.net.eval()  # dropout would keep the loss up
        loss = math.inf
        with progress_bar("one batch", total=self.max_steps) as advance:
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
    """Return the first rows of the first training batch.

    Raises:
        ConfigError: fewer than two rows are asked for.
    """
    if rows < 2:
        raise ConfigError(f"debug.check.rows={rows} must be at least 2: one row is a constant")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, Batch)
    return Batch(batch.x[:rows], batch.target[:rows])


def constant_loss(loss: Loss, target: Tensor) -> float:
    """Return the loss of the median or of the mean, whichever is lower.

    Raises:
        ConfigError: all targets are equal.
    """
    constants = (target.median(), target.mean())
    lowest = min(float(loss(constant.expand_as(target), target)) for constant in constants)
    if lowest == 0:
        raise ConfigError("all rows of the batch have the same target; raise debug.check.rows")
    return lowest


@dataclass(frozen=True, slots=True)
class OneStepCheck:
    """Takes one optimizer step, and prints the shape and norm of every tensor.

    It shows only the forecasts of the test span, never their score.
    """

    def run(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:  # noqa: ARG002
        """Take a step, validate and score; raise CheckError at a non-finite value."""
        L.seed_everything(config.seed, verbose=False)
        module = make_forecaster(fit_settings(plain_config(config)), data)
        batch = first_batch(data, rows=config.batch_size)
        table = Table(title="one step", title_justify="left")
        for name in ("", "shape", "norm"):
            table.add_column(name, justify="right" if name else "left")
        _add_row(table, "train: features", batch.x)
        _add_row(table, "train: target", batch.target)
        forecast = module(batch.x)
        _add_row(table, "train: forecast", forecast)
        loss = module.loss(forecast, batch.target)
        _add_row(table, "train: loss", loss)
        loss.backward()
        _add_step(module, table)
        _add_val(module, data.val_tensors(), table, rows=config.score_batch_size)
        nets = Nets(module.net.eval(), module.link, data.to_rank)
        block = next(iter(nets.scores(data.x("test")[:SCORE_BLOCK])))
        _add_row(table, "test: forecast, in ranks", torch.from_numpy(block[0]))
        show(table)


def _add_step(module: Forecaster, table: Table) -> None:
    """Add the weight, gradient and update of every parameter."""
    optimizer = module.configure_optimizers()["optimizer"]
    parameters = dict(module.net.named_parameters())
    before = {name: weight.detach().clone() for name, weight in parameters.items()}
    optimizer.step()
    for name, weight in parameters.items():
        _add_row(table, f"{name}: weight", before[name])
        if weight.grad is None:
            raise CheckError(f"{name} has no gradient: nothing in the forecast depends on it")
        _add_row(table, f"{name}: gradient", weight.grad)
        _add_row(table, f"{name}: update", weight.detach() - before[name])


def _add_val(module: Forecaster, val: ScoredBatch, table: Table, *, rows: int) -> None:
    """Add the metrics of the first val rows, if there is a val span."""
    part = ScoredBatch(*(tensor[:rows] for tensor in val))
    if not len(part.target):
        return
    with torch.no_grad():
        forecast = module(part.x)
    _add_row(table, "val: forecast", forecast)
    module.val.update(forecast, part.target, part.outcome)
    for name, value in module.val.compute().items():
        table.add_row(f"val: {name}", "one block", f"{float(value):.6g}")
    module.val.reset()


def _add_row(table: Table, name: str, value: Tensor) -> None:
    """Add the shape and Euclidean norm of a tensor; raise CheckError if it is not finite."""
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise CheckError(f"{name}: {bad} of {value.numel()} values are not finite")
    shape = " x ".join(map(str, value.shape)) or "one number"
    table.add_row(name, shape, f"{float(value.detach().norm()):.6g}")


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Trains with torch's anomaly detection, which is several times slower.

    Attributes:
        max_steps: optimizer steps; None for as many as the config says.
    """

    max_steps: int | None

    def run(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Train.

        Raises:
            NonFiniteError: a backward pass made NaN; the warning before it names the line that
                called the operation.
        """
        watched = plain_config(config)
        OmegaConf.update(watched, "trainer.detect_anomaly", True)
        plan = FitPlan(folder, stage="", max_steps=self.max_steps, resume=False)
        try:
            fitted = fit(fit_settings(watched), data, plan)
        except RuntimeError as error:
            if _NAN not in str(error):
                raise
            raise NonFiniteError(
                f"{error} The warning before this names the line of the forward pass that it "
                "belongs to"
            ) from error
        show(
            f"No backward pass made NaN in {fitted.summary.steps:,} steps; the largest gradient "
            f"norm was {fitted.summary.gradient_norm_max:.4g}.",
            level=RESULT,
        )


@dataclass(frozen=True, slots=True)
class ProfileCheck:
    """Trains some steps of the plain engine under two profilers.

    profile/hooks.txt times Lightning's hooks and profile/operations.txt torch's operations;
    profile/trace.json is a timeline for chrome://tracing or Perfetto.

    Attributes:
        max_steps: optimizer steps.
        lines: lines of the table to print.
    """

    max_steps: int
    lines: int

    def run(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Train, write the tables and the timeline, and print the first lines."""
        out = folder / PROFILE_FOLDER
        out.mkdir(exist_ok=True)
        watched = plain_config(config)
        hooks = {
            "_target_": "lightning.pytorch.profilers.SimpleProfiler",
            "dirpath": str(out),
            "filename": "hooks",
        }
        OmegaConf.update(watched, "trainer.profiler", hooks, force_add=True)
        plan = FitPlan(folder, stage="", max_steps=self.max_steps, resume=False)
        settings = fit_settings(watched)
        with profile() as profiler:
            fitted = fit(settings, data, plan)
        (out / "fit-hooks.txt").replace(out / "hooks.txt")
        operations = profiler.key_averages()
        every = operations.table(sort_by=_SORTED_BY, row_limit=-1)
        write_atomic(out / "operations.txt", every.encode())
        profiler.export_chrome_trace(str(out / "trace.json"))
        show(operations.table(sort_by=_SORTED_BY, row_limit=self.lines, max_name_column_width=40))
        show(
            f"{fitted.summary.steps:,} steps, {fitted.summary.steps_per_second:,.0f} per second "
            f"under profilers: {out / 'operations.txt'}, hooks.txt, trace.json"
        )
