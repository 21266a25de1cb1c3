"""The logger and the Trainer of a fit."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from robust_fin.runs.training import fit_settings
from robust_fin.runtime.process_state import RankError
from robust_fin.training import assembly
from robust_fin.training.assembly import StepTensorBoardLogger, make_trainer
from tests.bars import config
from tests.evaluation.boards import Board

METRICS = [
    (1, {"lr": 0.1, "train/objective": torch.tensor(2.0)}),
    (2, {"lr": 0.05}),
    (2, {"val/skill": float("nan"), "val/loss": float("inf")}),
]


def logged(folder: Path, kind: type[TensorBoardLogger], *, prefix: str = "") -> Path:
    logger = kind(folder, name="", version="", prefix=prefix)
    for step, metrics in METRICS:
        logger.log_metrics(metrics, step=step)
    logger.finalize("success")
    return folder


@pytest.mark.parametrize("prefix", ["", "fold_1"])
def test_logger_draws_the_same_curves_as_lightnings_logger(tmp_path: Path, prefix: str) -> None:
    ours = Board(logged(tmp_path / "ours", StepTensorBoardLogger, prefix=prefix))
    theirs = Board(logged(tmp_path / "theirs", TensorBoardLogger, prefix=prefix))
    assert ours.tags["scalars"] == theirs.tags["scalars"]
    assert len(ours.tags["scalars"]) == 4
    for tag in ours.tags["scalars"]:
        actual, expected = (
            [(point.step, repr(point.value)) for point in board.events.Scalars(tag)]
            for board in (ours, theirs)
        )
        assert actual == expected


def test_logger_writes_one_event_per_step(tmp_path: Path) -> None:
    (file,) = logged(tmp_path, StepTensorBoardLogger).glob("events*")
    sizes = [len(event.summary.value) for event in EventFileLoader(str(file)).Load()]
    assert [size for size in sizes if size] == [2, 1, 2]


def test_logger_rejects_a_tensor_of_several_elements(tmp_path: Path) -> None:
    logger = StepTensorBoardLogger(tmp_path, name="", version="")
    with pytest.raises(ValueError, match="only one element tensors"):
        logger.log_metrics({"lr": torch.ones(2)}, step=0)
    logger.finalize("failed")


@pytest.mark.parametrize(
    ("choice", "ranks", "message"),
    [
        ("trainer=ddp", 1, "the Trainer has a world size of 2, and 1 ranks train together here"),
        ("trainer=default", 2, "the Trainer has a world size of 1, and 2 ranks train together"),
    ],
)
def test_trainer_must_have_the_world_size_of_the_run(
    tmp_path: Path, choice: str, ranks: int, message: str
) -> None:
    words = (choice, "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")
    settings = fit_settings(config(*words))
    with (
        mock.patch.object(assembly, "world_size", return_value=ranks),
        pytest.raises(RankError, match=message),
    ):
        make_trainer(settings, tmp_path, [], stage="", has_val=True, arguments={})
