"""A strategy driven without training: what a sweep does, in this process."""

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


def words(*texts: str) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(texts))


@contextmanager
def conf() -> Iterator[None]:
    """The configs of the project at hand, as inside of a verb."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def ended(
    trial: Trial,
    skill: float | None = None,
    *,
    state: str = FINISHED,
    reason: str | None = None,
    folder: Path = Path("run"),
) -> Outcome:
    metrics = {"val/skill": skill} if state == FINISHED else {}
    return Outcome(trial, folder, state, reason, metrics, 1.0)


def drive(strategy: Strategy, score: Score, *, most: int = 1000) -> list[Outcome]:
    """Ask and tell, one at a time, until there is nothing more."""
    outcomes: list[Outcome] = []
    while len(outcomes) < most and (trial := strategy.ask()) is not None:
        outcomes.append(ended(trial, score(trial.settings)))
        strategy.tell(outcomes[-1])
    return outcomes


def by_number(outcomes: list[Outcome]) -> dict[int, Any]:
    return {one.trial.number: one for one in outcomes}
