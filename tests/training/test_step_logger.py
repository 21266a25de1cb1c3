"""One event a step, and the same curves as Lightning's own logger draws."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from robust_fin.training.assembly import StepTensorBoardLogger
from tests.evaluation.boards import Board

POINTS = [
    (1, {"lr": 0.1, "train/objective": torch.tensor(2.0)}),
    (2, {"lr": 0.05}),
    (2, {"val/skill": float("nan"), "val/loss": float("inf")}),
]


def drawn(folder: Path, kind: type[TensorBoardLogger], *, prefix: str = "") -> Path:
    logger = kind(folder, name="", version="", prefix=prefix)
    for step, points in POINTS:
        logger.log_metrics(points, step=step)
    logger.finalize("success")
    return folder


@pytest.mark.parametrize("prefix", ["", "fold_1"])
def test_it_draws_what_lightnings_own_draws(tmp_path: Path, prefix: str) -> None:
    ours = Board(drawn(tmp_path / "ours", StepTensorBoardLogger, prefix=prefix))
    theirs = Board(drawn(tmp_path / "theirs", TensorBoardLogger, prefix=prefix))
    assert ours.tags["scalars"] == theirs.tags["scalars"]
    assert len(ours.tags["scalars"]) == 4
    for tag in ours.tags["scalars"]:
        found, wanted = ([(one.step, repr(one.value)) for one in board.events.Scalars(tag)]
                         for board in (ours, theirs))  # fmt: skip
        assert found == wanted


def test_a_step_is_one_event(tmp_path: Path) -> None:
    (file,) = drawn(tmp_path, StepTensorBoardLogger).glob("events*")
    events = [len(one.summary.value) for one in EventFileLoader(str(file)).Load()]
    assert [count for count in events if count] == [2, 1, 2]


def test_several_numbers_are_no_point(tmp_path: Path) -> None:
    logger = StepTensorBoardLogger(tmp_path, name="", version="")
    with pytest.raises(ValueError, match="only one element tensors"):
        logger.log_metrics({"lr": torch.ones(2)}, step=0)
    logger.finalize("failed")
