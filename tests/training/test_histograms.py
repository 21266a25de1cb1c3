"""Histograms of weights, gradients and forecasts, by closed forms and in every engine."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from robust_fin.data.datamodule import BarDataModule
from robust_fin.runs.training import load_first_fold
from robust_fin.training.diagnostics import Histograms, histograms_due, probe_gradients
from robust_fin.training.fitting import Fit
from tests.evaluation.boards import Board
from tests.populations import bars_of, train_members
from tests.populations import settings as member_settings
from tests.training.faults import Fault, fit_with, settings
from tests.training.test_module import data, forecaster, net

CASES = {
    engine: Fault("loss", "1e30", "middle", engine, "32-true", 1, "stop")
    for engine in ("plain", "compiled")
}
LAYERS = ["blocks.0.0", "blocks.1.0", "head"]


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Fit, Board]]:
    """The same twelve steps in both engines."""
    folder, found = tmp_path_factory.mktemp("fits"), {}
    bars = load_first_fold(settings(CASES["plain"]))
    for engine, case in CASES.items():
        words = ("callbacks.histograms.every_n_steps=6", "schedule.warmup=0")
        done = fit_with(None, folder / engine, bars, *words, like=case)
        found[engine] = (done, Board(folder / engine / "tensorboard"))
    return found


def test_they_are_taken_where_the_steps_double_and_then_evenly() -> None:
    def due(every: int, upto: int) -> list[int]:
        steps = range(1, upto)
        return [one for one in steps if histograms_due(one, every) > histograms_due(one - 1, every)]

    assert due(5000, 16_000) == [64, 128, 256, 512, 1024, 2048, 4096, 5000, 10_000, 15_000]
    assert due(64, 200) == [64, 128, 192]
    assert due(6, 20) == [6, 12, 18]
    assert due(1, 5) == [1, 2, 3, 4]


def test_the_gradient_is_that_of_the_objective_and_touches_nothing() -> None:
    module = forecaster(net())
    module.net.blocks[0].append(nn.Dropout(0.5))
    module.net.head.bias.requires_grad_(False)
    module.train()
    x, target = data()
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad():
        found = probe_gradients(module, x, target)
    assert all(one.training for one in module.modules())
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.eval()
    nn.functional.huber_loss(module.net(x), target, delta=0.1).backward()
    wanted = {name: p.grad for name, p in module.net.named_parameters() if p.requires_grad}
    assert list(found) == list(wanted)
    for name, one in found.items():
        torch.testing.assert_close(one, wanted[name])


@pytest.mark.parametrize("engine", CASES)
def test_every_layer_has_its_weights_and_gradients(
    engine: str, fits: dict[str, tuple[Fit, Board]]
) -> None:
    done, board = fits[engine]
    drawn = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in LAYERS}
    assert set(board.tags["histograms"]) == drawn | {"val/score"}
    weights = dict(done.nets.net.named_parameters())
    for name in LAYERS:
        events = board.events.Histograms(f"weights/{name}")
        assert [one.step for one in events] == [5, 11]
        last, values = (
            events[-1].histogram_value,
            weights[f"{name}.weight"].detach().double().numpy().ravel(),
        )
        assert last.num == values.size
        assert sum(last.bucket) == values.size
        assert (last.min, last.max) == pytest.approx((values.min(), values.max()), rel=1e-6)
        assert last.sum_squares == pytest.approx((values**2).sum(), rel=1e-5)


def test_both_engines_draw_the_same(fits: dict[str, tuple[Fit, Board]]) -> None:
    plain, compiled = (fits[engine][1].events for engine in CASES)
    for name in LAYERS:
        for kind, close in (("weights", 1e-4), ("gradients", 1e-2)):
            ours, theirs = (
                [one.histogram_value for one in events.Histograms(f"{kind}/{name}")]
                for events in (plain, compiled)
            )
            for one, other in zip(ours, theirs, strict=True):
                assert one.num == other.num
                size = max(abs(one.min), abs(one.max))
                assert abs(one.max - other.max) <= close * size
                assert abs(one.sum_squares - other.sum_squares) <= close * one.sum_squares


def test_the_forecasts_of_val_are_drawn_at_every_validation(
    fits: dict[str, tuple[Fit, Board]],
) -> None:
    bars: BarDataModule = load_first_fold(settings(CASES["plain"]))
    for done, board in fits.values():
        (event,) = board.events.Histograms("val/score")
        assert event.step == 11
        with torch.no_grad():
            score = done.nets.net(bars.x("val")).double().numpy()
        found = event.histogram_value
        assert found.num == score.size == len(bars.target("val"))
        assert (found.min, found.max) == pytest.approx((score.min(), score.max()), rel=1e-5)


def test_members_are_drawn_together(tmp_path: Path) -> None:
    config = member_settings("compiled", "population.members=3", "trainer.max_epochs=1")
    (found,) = train_members(tmp_path, config, bars_of(config))
    board = Board(tmp_path / "tensorboard")
    stack = found.nets.stack
    assert stack is not None
    assert not [tag for tag in board.tags["histograms"] if tag.startswith("gradients/")]
    head = board.events.Histograms("weights/head")[-1].histogram_value
    assert head.num == stack["head.weight"].numel() == 3 * 8
    assert head.sum == pytest.approx(float(stack["head.weight"].sum()), rel=1e-5)
    assert len(board.events.Histograms("val/score")) == 1


def test_weights_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = L.Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False)
    watch, values = Histograms(every_n_steps=1), np.array([np.nan, 1.0, 2.0, np.inf])
    watch._draw(trainer, {"some": values, "none": values[:1]}, at=3)
    logger.save()
    board = Board(tmp_path)
    assert board.tags["histograms"] == ["some"]
    assert board.events.Histograms("some")[0].histogram_value.num == 2
