"""Measure the cost of logging: fits with all curves, diagnostics and histograms, and with none.

python benchmarks/logging_cost.py [--engines compiled plain] [--rounds 12] [--rows 1000000]
                                  [--epochs 12] [--json FILE]

Both fits are `+experiment=top5` on synthetic bars at batch size 1,024: one as configured, and a
bare one without logger, curves, learning rates, diagnostics and histograms. They run side by side
in turns of 50 ms, or of one call of the compiled engine, so that other load slows both equally.
Seconds are CPU time of all threads from the first hook to the last, without compiling. The bare fit
is charged the time of its turns, minus that of the thread that writes the event files of the logged
fit; the logged fit is charged the rest. A round runs both fits to the end, and the fit that starts
alternates between rounds. The result is the median ratio over the rounds, with its 95 % interval
from order statistics. The time to write the layout and settings once per run is printed below.
"""

import argparse
import json
import logging
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from rich.table import Table
from scipy.stats import quantile_test
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from robust_fin.bundle.folder import write_config
from robust_fin.cli.composition import conf_folder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.evaluation.tensorboard.dashboard import start_session
from robust_fin.runs.schema import register_schema
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.runtime.terminal import show
from robust_fin.training.fitting import FitPlan, fit

ENGINES = ("compiled", "plain")
LIMIT = 1.05
SECONDS_TURN = 0.05  # minimum length of a turn
PATIENCE = 60.0  # seconds after which a waiting fit fails


class Turns:
    """Lets two fits in two threads run one at a time.

    Args:
        first: True if the logged fit starts.

    Attributes:
        bare: CPU seconds of the turns of the bare fit.
        whole: CPU seconds of the process while both fits run.
    """

    def __init__(self, *, first: bool) -> None:
        """Start with no fit running."""
        self.bare = self.whole = 0.0
        self._whose, self._fits = first, {True, False}
        self._changed, self._building = threading.Condition(), threading.Lock()
        self._began = 0.0
        self._start = threading.Barrier(2, self._add(-1), timeout=PATIENCE)
        self._end = threading.Barrier(2, self._add(1), timeout=PATIENCE)

    def build(self) -> None:
        """Build one fit at a time; tracing a step is not thread-safe."""
        if not self._building.acquire(timeout=PATIENCE):
            raise RuntimeError("the other fit is not built; it may have failed")

    def begin(self, *, logged: bool) -> None:
        """Wait until the other fit is built and it is this fit's turn."""
        self._building.release()
        self._start.wait()
        self._take(logged)

    def hand_over(self, *, logged: bool) -> None:
        """Hand over to the other fit once the turn is long enough, and wait for the next."""
        if without_writer() - self._began >= SECONDS_TURN:
            self._leave(logged)
            self._take(logged)

    def end(self, *, logged: bool) -> None:
        """Leave the remaining turns to the other fit, and wait for its end."""
        self._fits.discard(logged)
        self._leave(logged)
        self._end.wait()

    def _take(self, logged: bool) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._whose is logged, timeout=PATIENCE):
                raise RuntimeError("the other fit does not hand over; it may have failed")
        self._began = without_writer()

    def _leave(self, logged: bool) -> None:
        with self._changed:
            self.bare += 0.0 if logged else without_writer() - self._began
            if (not logged) in self._fits:
                self._whose = not logged
            self._changed.notify_all()

    def _add(self, sign: int) -> Callable[[], None]:
        def add() -> None:
            self.whole += sign * time.process_time()

        return add


def without_writer() -> float:
    """Return the CPU seconds of the process without the threads that write event files."""
    writers = (one for one in threading.enumerate() if isinstance(one, _AsyncWriterThread))
    clocks = [time.pthread_getcpuclockid(one.ident) for one in writers if one.ident is not None]
    return time.process_time() - sum(time.clock_gettime(clock) for clock in clocks)


class Turn(L.Callback):
    """Callback that makes a fit take turns.

    Args:
        logged: True for the logged fit.
    """

    turns = Turns(first=True)

    def __init__(self, *, logged: bool) -> None:
        self.logged = logged

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Wait for the first turn."""
        Turn.turns.begin(logged=self.logged)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """End the turn if it has lasted long enough."""
        Turn.turns.hand_over(logged=self.logged)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Write the last points, then end."""
        for logger in trainer.loggers:
            logger.finalize("success")
        Turn.turns.end(logged=self.logged)


def no_logger(save_dir: Path, name: str, version: str) -> bool:  # noqa: ARG001
    """Return False, with which the Trainer uses no logger."""
    return False


def config_of(engine: str, *, rows: int, epochs: int, logged: bool) -> DictConfig:
    """Compose the config of a fit."""
    words = [
        "+experiment=top5", f"engine={engine}", "split.refit=false", "cache.folder=null",
        f"source.synthetic.rows={rows}", "trainer.enable_progress_bar=false",
        f"trainer.max_epochs={epochs}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("train", overrides=words)
    with open_dict(config):
        turn = {"_target_": f"{__name__}.Turn", "logged": logged}
        config.callbacks = {"turn": turn, **config.callbacks}
        if not logged:
            config.logger = {"_target_": f"{__name__}.no_logger"}
            config.stability.diagnose_every_n_steps = None
            config.trainer.log_every_n_steps = 0
            del config.callbacks["histograms"]
    return config


def train(config: DictConfig, data: BarDataModule) -> None:
    """Run one fit in a temporary folder."""
    torch.set_num_threads(1)  # the setting is per thread
    data.calls = None
    with tempfile.TemporaryDirectory() as folder:
        plan = FitPlan(Path(folder), "", max_steps=None, resume=False)
        Turn.turns.build()
        fit(fit_settings(config), data, plan)


def rounds_of(engine: str, *, rows: int, epochs: int, rounds: int) -> list[dict[str, float]]:
    """Return the seconds with and without logging of each round, after a warm-up round."""
    configs = {
        logged: config_of(engine, rows=rows, epochs=epochs, logged=logged)
        for logged in (True, False)
    }
    data = {logged: load_first_fold(config) for logged, config in configs.items()}
    found = []
    for number in range(rounds + 1):
        turns = Turn.turns = Turns(first=bool(number % 2))
        with ThreadPoolExecutor(2) as pool:
            fits = [pool.submit(train, configs[logged], data[logged]) for logged in (True, False)]
            for one in as_completed(fits):
                one.result()
        found.append({"logged": turns.whole - turns.bare, "bare": turns.bare})
    return found[1:]


def once_a_run() -> float:
    """Return the seconds to write the layout and settings at the start of a run."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), config_of("plain", rows=1, epochs=1, logged=True))
        start_session(Path(folder), members=False)  # the first call includes imports
        start = time.perf_counter()
        start_session(Path(folder), members=False)
        return time.perf_counter() - start


def summary(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the medians, and the median ratio with its 95 % interval."""
    ratios = [one["logged"] / one["bare"] for one in found]
    within = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(0.95)
    medians = {name: statistics.median(one[name] for one in found) for name in ("logged", "bare")}
    ends = {"low": float(within.low), "high": float(within.high)}
    return {**medians, "ratio": statistics.median(ratios), **ends}


def main() -> None:
    """Measure and print the table."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    asked.add_argument("--rounds", type=int, default=12)
    asked.add_argument("--rows", type=int, default=1_000_000)
    asked.add_argument("--epochs", type=int, default=12)
    asked.add_argument("--json", type=Path)
    given = asked.parse_args()
    register_schema()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    hide_known_warnings()
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
