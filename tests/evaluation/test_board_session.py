from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams import api_pb2

from robust_fin.errors import Interrupted, NonFiniteError
from robust_fin.evaluation.tensorboard.dashboard import DashboardContent, write_dashboard
from robust_fin.evaluation.tensorboard.session import mark_failure, start_session
from tests.evaluation.boards import Board
from tests.evaluation.run_folders import write_events

SETTINGS = {
    "seed": 1,
    "logger": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"},
    "optimizer": {"lr": 0.003},
}


def begun(run: Path, settings: Mapping[str, object] = SETTINGS, *words: str) -> Path:
    """A run folder as it is before training; where its event files lie."""
    (run / "bundle").mkdir(parents=True)
    (run / "bundle" / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(words)))
    start_session(run, members=False)
    return run / "tensorboard"


def test_a_run_that_begins_has_its_settings_and_no_end(tmp_path: Path) -> None:
    board = Board(begun(tmp_path / "run", SETTINGS, "optimizer.lr=0.003", "seed=1"))
    assert board.settings() == {"seed": 1.0, "optimizer.lr": 0.003}
    assert [one.title for one in board.layout().category][:2] == ["loss", "skill"]
    assert not board.has_ended()


def test_what_training_forgets_when_it_starts_is_not_the_session(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    write_events(folder, {"val/loss": {9: 0.5}}, name="1795460628.host.7.0")
    (curves,) = folder.glob("*.7.0")
    from robust_fin.evaluation.tensorboard.event_files import RecordWriter

    with curves.open("ab") as file:
        start = Event(step=0, session_log=SessionLog(status=SessionLog.START))
        RecordWriter(file).write(start.SerializeToString())
    board = Board(folder)
    assert board.curve("val/loss") == {}  # what the restart forgets
    assert board.settings() == {"seed": 1.0, "optimizer.lr": 0.003}
    assert len(board.layout().category) == 8


@pytest.mark.parametrize("curves", [True, False])
def test_a_failure_is_marked_with_its_reason(tmp_path: Path, curves: bool) -> None:
    folder = begun(tmp_path / "run")
    if curves:
        write_events(folder, {"val/loss": {9: 0.5}}, name="1795460628.host.7.0")
    with (
        pytest.raises(NonFiniteError, match="is nan at step 3"),
        mark_failure(tmp_path / "run"),
    ):
        raise NonFiniteError("the loss is nan at step 3")
    board = Board(folder)
    assert board.end().status == api_pb2.STATUS_FAILURE
    assert board.text("report/failure") == "NonFiniteError: the loss is nan at step 3"
    assert "  lr: 0.003\n" in board.text("report/config")
    assert board.tags["scalars"] == (["val/loss"] if curves else [])
    start_session(tmp_path / "run", members=False)  # it is tried again
    assert not Board(folder).has_ended()
    write_dashboard(folder, DashboardContent())
    assert Board(folder).end().status == api_pb2.STATUS_SUCCESS


def test_a_run_that_was_interrupted_stays_open(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    with pytest.raises(Interrupted), mark_failure(tmp_path / "run"):
        raise Interrupted("stopped")
    assert not Board(folder).has_ended()


def test_without_a_tensorboard_nothing_is_written(tmp_path: Path) -> None:
    other = {**SETTINGS, "logger": {"_target_": "lightning.pytorch.loggers.CSVLogger"}}
    folder = begun(tmp_path / "run", other)
    with pytest.raises(ValueError, match="late"), mark_failure(tmp_path / "run"):
        raise ValueError("late")
    write_dashboard(folder, DashboardContent())
    assert not folder.exists()
