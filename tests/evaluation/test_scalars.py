import math
from pathlib import Path

import numpy as np
import pytest

from robust_fin.evaluation.tensorboard.event_files import event_files, read_curves
from tests.evaluation.run_folders import write_events


def test_curves_are_read_by_stage_and_a_resumed_run_counts_once(tmp_path: Path) -> None:
    write_events(tmp_path, {"val/loss": {9: 0.5, 19: 0.4}}, name="1.a")
    write_events(tmp_path, {"val/loss": {19: 0.25, 29: 0.125}, "lr": {0: 1.0}}, name="2.a")
    write_events(tmp_path / "refit", {"lr": {4: math.inf}}, name="3.a")
    found = read_curves(tmp_path)
    assert list(found) == ["", "refit"]
    assert sorted(found[""]) == ["lr", "val/loss"]
    assert found[""]["val/loss"].steps.tolist() == [9, 19, 29]
    assert found[""]["val/loss"].values.tolist() == [0.5, 0.25, 0.125]
    assert np.isnan(found["refit"]["lr"].values).tolist() == [True]


def test_a_run_without_event_files_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "tensorboard") == {}


def test_the_reports_own_event_file_is_none_of_training(tmp_path: Path) -> None:
    write_events(tmp_path, {"lr": {1: 0.5}}, name="1.a")
    write_events(tmp_path, {"lr": {1: 0.75}}, name="1.a.report")
    assert [path.name for path in event_files(tmp_path)] == ["events.out.tfevents.1.a"]
    assert read_curves(tmp_path)[""]["lr"].values.tolist() == pytest.approx([0.5])
