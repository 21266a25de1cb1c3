"""Drive a strategy in this process, without a sweep or training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from robust_fin.cli.composition import conf_folder
from robust_fin.sweeps.strategy import FINISHED, Outcome, Strategy, Trial

Score = Callable[[Mapping[str, str]], float | None]


def parse(*texts: str) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(texts))


@contextmanager
def project_configs() -> Iterator[None]:
    """Let Hydra compose the project's configs, as within a command."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def outcome(
    trial: Trial,
    skill: float | None = None,
    *,
    state: str = FINISHED,
    reason: str | None = None,
    folder: Path = Path("run"),
) -> Outcome:
    metrics = {"val/skill": skill} if state == FINISHED else {}
    return Outcome(trial, folder, state, reason, metrics, 1.0)


def ask_all(strategy: Strategy) -> list[Trial]:
    trials = []
    while (trial := strategy.ask()) is not None:
        trials.append(trial)
    return trials


def drive(strategy: Strategy, score: Score, *, most: int = 1000) -> list[Outcome]:
    """Ask and tell, one trial at a time, until the strategy has no more."""
    outcomes: list[Outcome] = []
    while len(outcomes) < most and (trial := strategy.ask()) is not None:
        outcomes.append(outcome(trial, score(trial.settings)))
        strategy.tell(outcomes[-1])
    return outcomes


def by_number(outcomes: list[Outcome]) -> dict[int, Any]:
    return {one.trial.number: one for one in outcomes}
