"""An executor whose jobs train nothing: they leave in their folders what a run would leave."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from robust_fin.errors import ConfigError
from robust_fin.sweeps.job import RECORD, Composed, Composer, SweepRecord
from robust_fin.sweeps.strategy import Grid, Outcome, Strategy, Trial
from robust_fin.sweeps.sweep import Sweep

# what every FakeExecutor of this process started: the run folder's name, and its task
STARTED: list[tuple[str, dict[str, Any]]] = []
HELD: set[int] = set()  # seeds of jobs that run until they are asked to stop


def skill(lr: float, seed: int) -> float:
    """What a pretended run scores: the best rate is 0.01, the better the greater the seed."""
    return 0.01 - 0.001 * abs(math.log10(lr) + 2) + 0.0001 * seed


class FakeJob:
    """Ends when it is first asked; see `FakeExecutor`."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.run = Path(task["run"])
        self.settings = OmegaConf.create(task["config"])
        self.code: int | None = None
        self.asked: list[str] = []

    def poll(self) -> int | None:
        held = self.settings.seed in HELD
        if self.code is None and (not held or self.asked):
            self.code = self._ended()
        return self.code

    def stop(self) -> None:
        self.asked.append("stop")

    def kill(self) -> None:
        self.asked.append("kill")

    def _ended(self) -> int:
        lr, seed = self.settings.optimizer.lr, self.settings.seed
        (self.run / "bundle").mkdir(exist_ok=True)
        (self.run / "bundle/config.yaml").write_text(OmegaConf.to_yaml(self.settings))
        if self.asked:
            (self.run / "checkpoints").mkdir(exist_ok=True)
            (self.run / "checkpoints/last.ckpt").write_bytes(b"")
            return 130
        if seed == 13:
            return -9
        if lr > 1:
            said = {"error": "NonFiniteError", "message": "the loss is nan\nat step 3"}
            (self.run / "failure.json").write_text(json.dumps(said))
            return 1
        figures = {"val/skill": skill(lr, seed), "test/skill": 0.5, "steps": 7, "seed": seed}
        (self.run / "metrics.json").write_text(json.dumps(figures))
        return 0


class FakeComposer(Composer):
    """Composes without Hydra: a rate, a seed, and what a trial says of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def compose(self, trial: Trial) -> Composed:
        if trial.settings.get("model") == "nosuch":
            raise ConfigError("there is no\nmodel=nosuch")
        settings = {"optimizer.lr": "0.01", "seed": "0", **trial.settings}
        subdir = settings.pop("subdir", str(trial.number))
        config = OmegaConf.from_dotlist([f"{key}={value}" for key, value in settings.items()])
        config.name, config.ledger = "pretended", "trials.jsonl"
        return Composed(self.folder / subdir, config, {".hydra/config.yaml": "a: 1\n"}, {}, {})


class FakeExecutor:
    """Starts pretended jobs: a rate above 1 is not finite, seed 13 is killed."""

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
        log.write_text("pretended\n")
        return FakeJob(task)

    def close(self) -> None:
        pass


def run_fake_sweep(
    folder: Path, *words: str, strategy: Strategy | None = None, retry_failed: bool = False
) -> tuple[bool, Sweep, list[Outcome]]:
    """A sweep, or the rest of the one in the folder; whether it went to its end, and what it told.

    Args:
        folder: of the sweep.
        words: of the command line.
        strategy: None takes a grid of one worker.
        retry_failed: try failed jobs again.
    """
    folder.mkdir(exist_ok=True)
    known = (folder / RECORD).exists()
    record = SweepRecord.read(folder) if known else SweepRecord(folder, list(words), str(folder))
    chosen = strategy or Grid(workers=1)
    composer = FakeComposer(folder)
    sweep = Sweep(chosen, FakeExecutor(), composer, record, "a_verb", retry_failed)
    sweep.plan(OverridesParser.create().parse_overrides(list(words)))
    told: list[Outcome] = []
    whole = sweep.run(told.append)
    sweep.write_table(over=whole)
    return whole, sweep, told
