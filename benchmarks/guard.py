"""Measure the cost of the guard and the diagnostics, in one run.

python benchmarks/guard.py [--batch 16 1024] [--engine compiled plain] [--quick] [--json FILE]

The net is the study's. `bare` is the engine without guard and diagnostics: the compiled step does
not check for non-finite values, and the plain module only clips. `guard` checks every step,
`default` adds the diagnostics of conf/stability, and `rollback` also keeps states to return to. The
variants take turns, so that other load on the machine affects all of them. Seconds are CPU time of
this process. `ratio` is the minimum over the turns, relative to the minimum of `bare`, because
other load can only add time; `median` is the median over the turns of the ratio within a turn.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.optim import Optimizer

from robust_fin.cli.composition import conf_folder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.runs.schema import register_schema
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.runtime.terminal import show
from robust_fin.training.engine import steps
from robust_fin.training.engine.step_state import adamw
from robust_fin.training.engine.trace import LoopInputs
from robust_fin.training.fitting import FitPlan, fit
from robust_fin.training.module import Forecaster
from robust_fin.training.recovery import rollback

NO_DIAGNOSES = "stability.diagnose_every_n_steps=null"
VARIANTS = {
    "bare": (NO_DIAGNOSES,),
    "guard": (NO_DIAGNOSES,),
    "default": (),
    "rollback": ("stability.on_nonfinite=rollback",),
}


class BareStep(steps.TrainingStep):
    """A step that does not check for non-finite values."""

    def __call__(self, inputs: LoopInputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the state after the step, the loss and the gradient norm."""
        parameters, exp_avg, exp_avg_sq, alive = inputs.carry
        parts, loss = grad_and_value(lambda leaves: self._objective(leaves, inputs))(
            self.layout.unflatten(parameters)
        )
        gradient = torch.cat([one.reshape(-1) for one in parts])
        norm = gradient.square().sum().sqrt()
        if self.settings.clip:
            gradient = gradient * (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
        old = (parameters, exp_avg, exp_avg_sq)
        new = adamw(
            *old, gradient, inputs.moving[0], betas=self.settings.betas, eps=self.settings.eps
        )
        return (*new, alive), (loss, norm)


def clip_only(
    self: Forecaster,
    optimizer: Optimizer,  # noqa: ARG001
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,  # noqa: ARG001
) -> None:
    """Clip the gradients, as the plain engine does without a guard."""
    parameters = [p for p in self.parameters() if p.grad is not None]
    assert gradient_clip_val is not None
    self.gradient_norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
    self._begin_step()


@contextmanager
def unguarded() -> Iterator[None]:
    """Remove the guard from both engines."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(steps, "TrainingStep", BareStep))
        stack.enter_context(mock.patch.object(Forecaster, "configure_gradient_clipping", clip_only))
        yield


def settings(batch: int, *words: str) -> DictConfig:
    """Compose the study's config on synthetic bars."""
    register_schema()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("train", overrides=["+experiment=study", f"batch_size={batch}", *words])


def seconds(data: BarDataModule, batch: int, words: tuple[str, ...]) -> float:
    """Return the CPU seconds of one fit without compiling."""
    config = settings(batch, "trainer.enable_progress_bar=false", "trainer.max_epochs=-1", *words)
    data.calls = None
    clock = mock.patch.object(rollback, "time", SimpleNamespace(perf_counter=time.process_time))
    with clock, tempfile.TemporaryDirectory() as folder:
        done = fit(
            fit_settings(config),
            data,
            FitPlan(Path(folder), stage="", max_steps=None, resume=False),
        )
        return done.summary.seconds


def measure(engine: str, batch: int, *, turns: int, quick: bool) -> list[dict[str, Any]]:
    """Measure all variants, one row each."""
    count = (40_000 if quick else 200_000) if engine == "compiled" else (800 if quick else 3000)
    count = count // 10 if batch > 100 and engine == "compiled" else count
    data = load_first_fold(
        settings(batch, f"source.synthetic.rows={100_000 if quick else 400_000}")
    )
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(turns):
        for name, words in VARIANTS.items():
            with ExitStack() as stack:
                if name == "bare":
                    stack.enter_context(unguarded())
                given = (f"engine={engine}", f"trainer.max_steps={count}", *words)
                found[name].append(seconds(data, batch, given))
    rows = []
    for name, taken in found.items():
        ratios = [one / bare for one, bare in zip(taken, found["bare"], strict=True)]
        rows.append(
            {
                "engine": engine,
                "batch": batch,
                "variant": name,
                "steps_per_second": count / min(taken),
                "ratio": min(taken) / min(found["bare"]),
                "median": statistics.median(ratios),
            }
        )
    return rows


def main() -> None:
    """Measure, print the table, and write the file given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 1024])
    parser.add_argument("--engine", nargs="+", default=["compiled", "plain"])
    parser.add_argument("--turns", type=int, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    hide_known_warnings()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    turns = given.turns or (5 if given.quick else 15)
    rows = [
        row
        for engine in given.engine
        for batch in given.batch
        for row in measure(engine, batch, turns=turns, quick=given.quick)
    ]
    title = f"seconds over those of the bare engine, {turns} turns"
    table = Table(title=title, title_justify="left")
    for name in ("engine", "batch", "variant", "steps/s", "ratio", "median"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = (f"{row[name]:.3f}" for name in ("ratio", "median"))
        rate = f"{row['steps_per_second']:,.0f}"
        table.add_row(row["engine"], str(row["batch"]), row["variant"], rate, *figures)
    show(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
