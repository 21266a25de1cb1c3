"""What logging costs: fits with every curve, diagnosis and histogram against fits with none.

python benchmarks/logging_cost.py [--engines compiled plain] [--rounds 12] [--rows 1000000]
                                  [--epochs 12] [--json FILE]

Both fits are `+experiment=top5` on synthetic bars at batch 1,024: once as configured, once with no
logger, no learning rates, no diagnoses and no histograms. They take turns, round by round, and
swap who goes first; a round's ratio is of its own two fits, and the figure is the median of the
rounds with its 95 % interval, that of order statistics. Twelve epochs are the experiment's own: of
fewer the histograms of the first steps, where they are drawn most often, are the greater part.
Seconds are the processor's, of all
threads, from the Trainer's start to its end: what other processes take of it is not in them, nor is
compiling. What is written once a run, at its beginning, stands below.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from rich.table import Table
from scipy.stats import quantile_test

from robust_fin.bundle import write_config
from robust_fin.command import conf_folder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.evaluation.board_session import open_session
from robust_fin.evaluation.console import show
from robust_fin.settings import register_schema
from robust_fin.train import load_data, quiet
from robust_fin.training.fitting import FitPlan, fit

ENGINES = ("compiled", "plain")
LIMIT = 1.05


class Clock(L.Callback):
    """Processor seconds of a fit, from its first hook to its last."""

    seconds = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Start."""
        self._start = time.process_time()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Stop, when the last points are on the disk."""
        for logger in trainer.loggers:
            logger.finalize("success")
        Clock.seconds = time.process_time() - self._start


def no_logger(save_dir: Path, name: str, version: str) -> bool:  # noqa: ARG001
    """What the Trainer takes for none."""
    return False


def config_of(engine: str, *, rows: int, epochs: int, logged: bool) -> DictConfig:
    """The config of a fit."""
    words = [
        "+experiment=top5", f"engine={engine}", "split.refit=false", "cache.folder=null",
        f"source.synthetic.rows={rows}", "trainer.enable_progress_bar=false",
        f"trainer.max_epochs={epochs}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("train", overrides=words)
    with open_dict(config):
        config.callbacks = {"clock": {"_target_": f"{__name__}.Clock"}, **config.callbacks}
        if not logged:
            config.logger = {"_target_": f"{__name__}.no_logger"}
            config.stability.diagnose_every_n_steps = None
            for name in ("lr", "histograms"):
                del config.callbacks[name]
    return config


def seconds_of(config: DictConfig, data: BarDataModule) -> float:
    """Processor seconds of the training of one fit, in a folder of its own."""
    data.calls = None
    with tempfile.TemporaryDirectory() as folder:
        plan = FitPlan(Path(folder), "", max_steps=None, resume=False)
        fit(config, data, plan)
    return Clock.seconds


def rounds_of(engine: str, *, rows: int, epochs: int, rounds: int) -> list[dict[str, float]]:
    """Seconds with and without logging, round by round, after one that does not count."""
    configs = {
        logged: config_of(engine, rows=rows, epochs=epochs, logged=logged)
        for logged in (True, False)
    }
    data = load_data(configs[True])
    found = []
    for number in range(rounds + 1):
        order = (True, False) if number % 2 else (False, True)
        seconds = {logged: seconds_of(configs[logged], data) for logged in order}
        found.append({"logged": seconds[True], "bare": seconds[False]})
    return found[1:]


def once_a_run() -> float:
    """Seconds to write layout and settings when a run begins."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), config_of("plain", rows=1, epochs=1, logged=True))
        open_session(Path(folder), members=False)  # pays the imports
        start = time.perf_counter()
        open_session(Path(folder), members=False)
        return time.perf_counter() - start


def summary(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians, and that of the rounds' ratios with its 95 % interval."""
    ratios = [one["logged"] / one["bare"] for one in found]
    within = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(0.95)
    medians = {name: statistics.median(one[name] for one in found) for name in ("logged", "bare")}
    ends = {"low": float(within.low), "high": float(within.high)}
    return {**medians, "ratio": statistics.median(ratios), **ends}


def main() -> None:
    """Measure, and print the table."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    asked.add_argument("--rounds", type=int, default=12)
    asked.add_argument("--rows", type=int, default=1_000_000)
    asked.add_argument("--epochs", type=int, default=12)
    asked.add_argument("--json", type=Path)
    given = asked.parse_args()
    register_schema()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    quiet()
    table = Table("engine", "logged, s", "bare, s", "ratio", "95 %", title="cost of logging")
    found: dict[str, Any] = {}
    for engine in given.engines:
        seconds = rounds_of(engine, rows=given.rows, epochs=given.epochs, rounds=given.rounds)
        one = found[engine] = summary(seconds)
        spread = f"{one['low']:.3f} to {one['high']:.3f}"
        cells = (f"{one['logged']:.3f}", f"{one['bare']:.3f}", f"{one['ratio']:.3f}", spread)
        table.add_row(engine, *cells)
    found["session_seconds"] = once_a_run()
    show(table, f"once a run, at its beginning: {1000 * found['session_seconds']:.0f} ms")
    worst = max(found[engine]["ratio"] for engine in given.engines)
    show(f"the ratio is to be {LIMIT} at most: {'it is' if worst <= LIMIT else 'it is not'}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
