"""Measure the optimizer steps per second of each training path, in one run.

python benchmarks/training_speed.py [--batch 16] [--workers 1] [--quick] [--json FILE]

The net is the study's (299 parameters, dropout 0.1, Huber, clip 1.0, AdamW, warmup). `stock` is
Lightning's Trainer with DataLoader(TensorDataset), the way most people start; `bare` is a PyTorch
loop with tensor slices and fused AdamW; `plain` and `compiled` are the engines of this project
inside the Trainer, with callbacks, checkpoints and TensorBoard logger. `population_E` is an epoch
of E members, each with its own row order, in member-steps per second. Ratios are relative to
`stock`. Compile time is in a separate column.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robust_fin.cli.composition import conf_folder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.models.mlp import ResidualMLP
from robust_fin.runs.schema import register_schema
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.runtime.terminal import show
from robust_fin.training.fitting import FitPlan, fit
from robust_fin.training.population.fit import fit_population

MEMBERS = (32, 256, 1024)
LIMIT = 379_000  # steps/s of hand-written C++ of this net at batch 16, quoted from another machine


def net() -> ResidualMLP:
    """Build the study's net."""
    torch.manual_seed(0)
    return ResidualMLP(
        5,
        hidden=[16, 8],
        residual=False,
        layer_norm=True,
        input_norm=True,
        dropout=0.1,
        head_start=None,
    )


def objective(score: Tensor, target: Tensor) -> Tensor:
    """Return the study's loss, after its link."""
    return nn.functional.huber_loss(torch.sigmoid(score), target, delta=0.1)


def settings(batch: int, *words: str) -> DictConfig:
    """Compose the study's config on synthetic bars."""
    register_schema()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("train", overrides=["+experiment=study", f"batch_size={batch}", *words])


class Stock(L.LightningModule):
    """A LightningModule as in Lightning's documentation."""

    def __init__(self) -> None:
        """Build the net."""
        super().__init__()
        self.net = net()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return and log the loss."""
        loss = objective(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW with a warmup per step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4, weight_decay=1e-4)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 1000))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": warmup, "interval": "step"},
        }


def stock(x: Tensor, target: Tensor, batch: int, steps: int) -> float:
    """Return the steps per second of stock Lightning."""
    loader = DataLoader(TensorDataset(x, target), batch_size=batch, shuffle=True, drop_last=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            gradient_clip_val=1.0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=L.pytorch.loggers.CSVLogger(folder),
        )
        began = time.perf_counter()
        trainer.fit(Stock(), loader)
        return steps / (time.perf_counter() - began)


def bare(x: Tensor, target: Tensor, batch: int, steps: int) -> float:
    """Return the steps per second of a PyTorch loop with slices and fused AdamW."""
    model = net().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    an_epoch = len(target) // batch
    began = time.perf_counter()
    for step in range(steps):
        at = step % an_epoch * batch
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * min(1.0, (step + 1) / 1000)
        optimizer.zero_grad()
        objective(model(x[at : at + batch]), target[at : at + batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return steps / (time.perf_counter() - began)


def engine(data: BarDataModule, batch: int, steps: int, name: str) -> tuple[float, float]:
    """Return the steps per second inside the Trainer, and the other seconds of the fit."""
    config = settings(
        batch, f"engine={name}", f"trainer.max_steps={steps}", "trainer.max_epochs=-1",
        "trainer.enable_progress_bar=false",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = fit(
            fit_settings(config),
            data,
            FitPlan(Path(folder), stage="", max_steps=None, resume=False),
        )
        return done.summary.steps_per_second, time.perf_counter() - began - done.summary.seconds


def population(batch: int, members: int, rows: int, workers: int) -> tuple[float, float]:
    """Return the member-steps per second of one epoch inside the Trainer, and the setup seconds."""
    config = settings(
        batch, f"population.members={members}", f"population.workers={workers}",
        "trainer.max_epochs=1", "trainer.enable_progress_bar=false",
        f"source.synthetic.rows={rows}",
    )  # fmt: skip
    data = load_first_fold(config)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        plan = FitPlan(Path(folder), stage="", max_steps=None, resume=False)
        (done,) = fit_population(fit_settings(config), [data], plan)
        seconds = done.summary.seconds
        return done.summary.member_steps / seconds, time.perf_counter() - began - seconds


def measure(batch: int, quick: bool, workers: int) -> list[dict[str, Any]]:
    """Measure all paths, one row each."""
    few, many = (700, 60_000) if quick else (5000, 600_000)
    if batch > 100:
        many //= 50
    data = load_first_fold(
        settings(batch, f"source.synthetic.rows={100_000 if quick else 400_000}")
    )
    x, target = data.x("train"), torch.from_numpy(data.target("train")).float()
    found = [
        ("stock", stock(x, target, batch, few), 0.0),
        ("bare", bare(x, target, batch, few), 0.0),
    ]
    for name, steps in (("plain", few), ("compiled", many)):
        found.append((name, *engine(data, batch, steps, name)))
    rows = 30_000 if quick else 100_000
    for members in MEMBERS if batch <= 100 else MEMBERS[:1]:
        name = f"population_{members}"
        found.append((name, *population(batch, members, rows, workers)))
    return [
        {
            "path": path,
            "batch": batch,
            "steps_per_second": rate,
            "ratio": rate / found[0][1],
            "share_of_limit": rate / LIMIT if batch == 16 else None,
            "setup_seconds": setup,
        }
        for path, rate, setup in found
    ]


def main() -> None:
    """Measure, print the table, and write the file given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 1024])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="threads of a population")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    hide_known_warnings()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    rows = [row for batch in given.batch for row in measure(batch, given.quick, given.workers)]
    table = Table(title="optimizer steps a second", title_justify="left")
    for name in ("batch", "path", "steps/s", "x stock", "of hand-written C++", "set-up, s"):
        table.add_column(name, justify="right")
    for row in rows:
        share = row["share_of_limit"]
        table.add_row(
            str(row["batch"]),
            row["path"],
            f"{row['steps_per_second']:,.0f}",
            f"{row['ratio']:.1f}",
            "" if share is None else f"{share:.1%}",
            f"{row['setup_seconds']:.1f}",
        )
    show(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
