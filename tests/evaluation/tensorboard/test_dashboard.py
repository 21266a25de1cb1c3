import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams import api_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from robust_fin.errors import Interrupted, NonFiniteError
from robust_fin.evaluation.tensorboard.dashboard import (
    event_files,
    mark_failure,
    read_curves,
    start_session,
    write_results,
)
from tests.evaluation.boards import Board
from tests.evaluation.run_folders import write_events

SETTINGS = {
    "seed": 1,
    "logger": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"},
    "optimizer": {"lr": 0.003},
}


def begun(run: Path, settings: Mapping[str, object] = SETTINGS, *words: str) -> Path:
    """Write a run folder as it is before training; return its TensorBoard folder."""
    (run / "bundle").mkdir(parents=True)
    (run / "bundle" / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(words)))
    start_session(run, members=False)
    return run / "tensorboard"


def test_session_start_records_settings_and_no_end(tmp_path: Path) -> None:
    board = Board(begun(tmp_path / "run", SETTINGS, "optimizer.lr=0.003", "seed=1"))
    assert board.settings() == {"seed": 1.0, "optimizer.lr": 0.003}
    assert [one.title for one in board.layout().category][:2] == ["loss", "skill"]
    assert not board.has_ended()


def test_session_survives_the_purge_when_training_starts(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    write_events(folder, {"val/loss": {9: 0.5}}, name="1795460628.host.7.0")
    (curves,) = folder.glob("*.7.0")

    with curves.open("ab") as file:
        start = Event(step=0, session_log=SessionLog(status=SessionLog.START))
        RecordWriter(file).write(start.SerializeToString())
    board = Board(folder)
    assert board.curve("val/loss") == {}  # what the restart forgets
    assert board.settings() == {"seed": 1.0, "optimizer.lr": 0.003}
    assert len(board.layout().category) == 8


@pytest.mark.parametrize("curves", [True, False])
def test_failure_is_recorded_with_its_reason(tmp_path: Path, curves: bool) -> None:
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
    write_results(folder)
    assert Board(folder).end().status == api_pb2.STATUS_SUCCESS


def test_interrupted_run_stays_open(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    with pytest.raises(Interrupted), mark_failure(tmp_path / "run"):
        raise Interrupted("stopped")
    assert not Board(folder).has_ended()


def test_nothing_is_written_without_tensorboard_logger(tmp_path: Path) -> None:
    other = {**SETTINGS, "logger": {"_target_": "lightning.pytorch.loggers.CSVLogger"}}
    folder = begun(tmp_path / "run", other)
    with pytest.raises(ValueError, match="late"), mark_failure(tmp_path / "run"):
        raise ValueError("late")
    write_results(folder)
    assert not folder.exists()


def test_read_curves_by_stage_keeps_the_later_value_of_a_resumed_run(tmp_path: Path) -> None:
    write_events(tmp_path, {"val/loss": {9: 0.5, 19: 0.4}}, name="1.a")
    write_events(tmp_path, {"val/loss": {19: 0.25, 29: 0.125}, "lr": {0: 1.0}}, name="2.a")
    write_events(tmp_path / "refit", {"lr": {4: math.inf}}, name="3.a")
    result = read_curves(tmp_path)
    assert list(result) == ["", "refit"]
    assert sorted(result[""]) == ["lr", "val/loss"]
    assert result[""]["val/loss"].steps.tolist() == [9, 19, 29]
    assert result[""]["val/loss"].values.tolist() == [0.5, 0.25, 0.125]
    assert np.isnan(result["refit"]["lr"].values).tolist() == [True]


def test_read_curves_is_empty_without_event_files(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "tensorboard") == {}


def test_report_events_are_not_training_events(tmp_path: Path) -> None:
    write_events(tmp_path, {"lr": {1: 0.5}}, name="1.a")
    write_events(tmp_path, {"lr": {1: 0.75}}, name="1.a.report")
    assert [path.name for path in event_files(tmp_path)] == ["events.out.tfevents.1.a"]
    assert read_curves(tmp_path)[""]["lr"].values.tolist() == pytest.approx([0.5])
