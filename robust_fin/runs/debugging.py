"""Debugging runs that `debug=` chooses: overfit a batch, one step, anomalies, profile."""

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
from robust_fin.runtime.rank_info import world_size
from robust_fin.runtime.terminal import RESULT, progress_bar, show
from robust_fin.training.assembly import make_forecaster
from robust_fin.training.fitting import FitPlan, fit
from robust_fin.training.module import Forecaster, Loss


class CheckError(RobustFinError):
    """A debugging run that found what it looks for."""


class Check(Protocol):
    """A look at a run, in place of the run: it leaves no metrics.json and no trial."""

    def look(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Do it, and say what was seen.

        Args:
            config: as composed.
            data: the first fold.
            folder: of the run.

        Raises:
            CheckError: something is wrong with the net or its settings.
        """
        ...


def plainly(config: DictConfig) -> DictConfig:
    """The same settings for Lightning's own loop and one net.

    Raises:
        ConfigError: several processes were asked for.
    """
    if world_size() > 1:
        raise ConfigError(
            f"a debugging run is for one process, and there are {world_size()}; "
            "leave trainer=ddp out"
        )
    found = config.copy()
    OmegaConf.update(found, "engine.name", "plain")
    return found


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
        show(f"The net can learn one batch by heart: {said}.", level=RESULT)

    def _train(
        self, module: Forecaster, batch: Batch, clip: float | None, trivial: float
    ) -> tuple[float, int]:
        """The last loss, and the steps until then."""
        optimizer = module.configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]  # which the schedule has begun to warm up
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


@dataclass(frozen=True, slots=True)
class OneStepCheck:
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


_NAN = "returned nan values"  # of torch's own message


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Trains as the config says, every backward pass watched; some times slower.

    Attributes:
        max_steps: optimizer steps; None takes as many as the config says.
    """

    max_steps: int | None

    def look(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Train.

        Raises:
            NonFiniteError: a backward pass made NaN; the warning before it has the line that the
                operation was called from.
        """
        watched = plainly(config)
        OmegaConf.update(watched, "trainer.detect_anomaly", True)
        try:
            done = fit(
                watched, data, FitPlan(folder, stage="", max_steps=self.max_steps, resume=False)
            )
        except RuntimeError as error:
            if _NAN not in str(error):
                raise
            raise NonFiniteError(
                f"{error} The warning before this names the line of the forward pass that it "
                "belongs to"
            ) from error
        show(
            f"No backward pass made NaN in {done.summary.steps:,} steps; the largest gradient norm "
            f"was {done.summary.gradient_norm_max:.4g}.",
            level=RESULT,
        )


FOLDER = "profile"
_SORTED_BY = "self_cpu_time_total"


@dataclass(frozen=True, slots=True)
class ProfileCheck:
    """Trains some steps with Lightning's own loop, under two profilers.

    profile/hooks.txt has Lightning's hooks, profile/operations.txt torch's operations, and
    profile/trace.json every one of them in time, for chrome://tracing or Perfetto.

    Attributes:
        max_steps: optimizer steps.
        lines: of the table to print.
    """

    max_steps: int
    lines: int

    def look(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Train, write the tables and the trace, and print the first lines."""
        place = folder / FOLDER
        place.mkdir(exist_ok=True)
        watched = plainly(config)
        hooks = {
            "_target_": "lightning.pytorch.profilers.SimpleProfiler",
            "dirpath": str(place),
            "filename": "hooks",
        }
        OmegaConf.update(watched, "trainer.profiler", hooks, force_add=True)
        plan = FitPlan(folder, stage="", max_steps=self.max_steps, resume=False)
        with profile() as seen:
            done = fit(watched, data, plan)
        (place / "fit-hooks.txt").replace(place / "hooks.txt")
        operations = seen.key_averages()
        whole = operations.table(sort_by=_SORTED_BY, row_limit=-1)
        (place / "operations.txt").write_text(whole, encoding="utf-8")
        seen.export_chrome_trace(str(place / "trace.json"))
        show(operations.table(sort_by=_SORTED_BY, row_limit=self.lines, max_name_column_width=40))
        show(
            f"{done.summary.steps:,} steps, {done.summary.steps_per_second:,.0f} a second under "
            f"profilers: {place / 'operations.txt'}, hooks.txt, trace.json"
        )
