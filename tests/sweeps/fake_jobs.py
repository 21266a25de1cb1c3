"""An executor whose jobs do not train: they write the files of a run into their folders."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from robust_fin.errors import ConfigError
from robust_fin.sweeps.job import RECORD, ComposedJob, Composer, SweepRecord
from robust_fin.sweeps.strategy import Grid, Outcome, Strategy, Trial
from robust_fin.sweeps.sweep import Sweep
from tests.sweeps.driven import parse

# run folder name and task of every job that a FakeExecutor of this process started
STARTED: list[tuple[str, dict[str, Any]]] = []
HELD: set[int] = set()  # seeds of jobs that run until they are asked to stop


def fake_skill(lr: float, seed: int) -> float:
    """Return the val/skill of a fake run: the best rate is 0.01, larger seeds are better."""
    return 0.01 - 0.001 * abs(math.log10(lr) + 2) + 0.0001 * seed


class FakeJob:
    """Ends at the first poll; see `FakeExecutor`."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.run = Path(task["run"])
        self.settings = OmegaConf.create(task["config"])
        self.code: int | None = None
        self.requests: list[str] = []

    def poll(self) -> int | None:
        held = self.settings.seed in HELD
        if self.code is None and (not held or self.requests):
            self.code = self._end()
        return self.code

    def stop(self) -> None:
        self.requests.append("stop")

    def kill(self) -> None:
        self.requests.append("kill")

    def _end(self) -> int:
        lr, seed = self.settings.optimizer.lr, self.settings.seed
        (self.run / "bundle").mkdir(exist_ok=True)
        (self.run / "bundle/config.yaml").write_text(OmegaConf.to_yaml(self.settings))
        if self.requests:
            (self.run / "checkpoints").mkdir(exist_ok=True)
            (self.run / "checkpoints/last.ckpt").write_bytes(b"")
            return 130
        if seed == 13:
            return -9
        if lr > 1:
            failure = {"error": "NonFiniteError", "message": "the loss is nan\nat step 3"}
            (self.run / "failure.json").write_text(json.dumps(failure))
            return 1
        metrics = {"val/skill": fake_skill(lr, seed), "test/skill": 0.5, "steps": 7, "seed": seed}
        (self.run / "metrics.json").write_text(json.dumps(metrics))
        return 0


class FakeComposer(Composer):
    """Composes without Hydra: a rate, a seed, and the overrides of the trial."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def compose(self, trial: Trial) -> ComposedJob:
        if trial.settings.get("model") == "nosuch":
            raise ConfigError("there is no\nmodel=nosuch")
        settings = {"optimizer.lr": "0.01", "seed": "0", **trial.settings}
        subdir = settings.pop("subdir", str(trial.number))
        config = OmegaConf.from_dotlist([f"{key}={value}" for key, value in settings.items()])
        config.name, config.ledger = "fake", "trials.jsonl"
        return ComposedJob(self.folder / subdir, config, {".hydra/config.yaml": "a: 1\n"}, {}, {})


class FakeExecutor:
    """Starts fake jobs: one with a rate above 1 fails, one with seed 13 is killed."""

    def start(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        name: str,  # noqa: ARG002
    ) -> FakeJob:
        folder = Path(words[2].partition("=")[2])
        task = json.loads((folder / "task.json").read_text())
        STARTED.append((folder.parent.name, {**task, "environment": dict(environment)}))
        log.write_text("fake\n")
        return FakeJob(task)

    def close(self) -> None:
        pass


def run_fake_sweep(
    folder: Path, *words: str, strategy: Strategy | None = None, retry_failed: bool = False
) -> tuple[bool, Sweep, list[Outcome]]:
    """Run a sweep, or resume that of the folder; return completeness, sweep and new outcomes.

    Args:
        folder: of the sweep.
        words: of the command line.
        strategy: a grid with one worker by default.
        retry_failed: retry failed jobs.
    """
    folder.mkdir(exist_ok=True)
    resume = (folder / RECORD).exists()
    record = SweepRecord.read(folder) if resume else SweepRecord(folder, list(words), str(folder))
    strategy = strategy or Grid(workers=1)
    composer = FakeComposer(folder)
    sweep = Sweep(strategy, FakeExecutor(), composer, record, "a_verb", retry_failed)
    sweep.plan(parse(*words))
    outcomes: list[Outcome] = []
    complete = sweep.run(outcomes.append)
    sweep.write_table(complete=complete)
    return complete, sweep, outcomes
