"""A run's place on TensorBoard: its settings when it begins, its reason if it fails."""

import contextlib
from pathlib import Path
from types import TracebackType

import yaml  # type: ignore[import-untyped]

from robust_fin.errors import ResumeError
from robust_fin.evaluation.report.report import config_text
from robust_fin.evaluation.tensorboard.dashboard import (
    FIRST,
    FOLDER,
    DashboardContent,
    forget_end,
    write_dashboard,
)
from robust_fin.evaluation.tensorboard.event_files import OURS
from robust_fin.runtime.rank_info import is_first

_FILE = f"{FIRST}session{OURS}"
# a Trainer that begins tells TensorBoard to forget every point from its first step on
_BEFORE_STEP = -1
_LOGGER = "TensorBoardLogger"
_FINISHED = "metrics.json"


def start_session(run: Path, *, members: bool) -> None:
    """Write the charts' layout and the settings of a run that begins or goes on.

    In a file of its own, so that a run which fails, or is killed, is there with its settings.

    Args:
        run: the run folder, with its config in it.
        members: whether the run is a population.
    """
    config = (run / "bundle" / "config.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(config)
    if not str(settings["logger"]["_target_"]).endswith(_LOGGER):
        return
    # here, because the import takes a time that only a run with curves is to pay
    from robust_fin.evaluation.tensorboard.dashboard import hyperparameters, session_start
    from robust_fin.evaluation.tensorboard.event_files import layout, write_events

    overrides = read_overrides(run)
    start = session_start(hyperparameters(settings, overrides), overrides)
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    forget_end(folder)
    write_events(folder / _FILE, {_BEFORE_STEP: [layout(members=members), *start]})


class mark_failure(contextlib.AbstractContextManager[None]):  # noqa: N801
    """Mark a run that ends early as failed, with its reason and its config.

    A run that was interrupted goes on, and stays open. A resume that was refused changed nothing,
    and changes nothing here.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        """Nothing failed yet."""
        self.run = run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the reason; the error goes its way."""
        if not isinstance(error, Exception) or not is_first():
            return
        if isinstance(error, ResumeError) or (self.run / _FINISHED).is_file():
            return
        config = self.run / "bundle" / "config.yaml"
        texts = {"failure": f"{type(error).__name__}: {error}"}
        if config.is_file():
            texts["config"] = config_text(config.read_text(encoding="utf-8"))
        write_dashboard(self.run / FOLDER, DashboardContent(texts=texts), failed=True)


def read_overrides(run: Path) -> list[str]:
    """Words of the command line that a run was started with; none where it kept none."""
    path = run / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return []
    return [str(word) for word in yaml.safe_load(path.read_text(encoding="utf-8")) or []]
