"""Diagnostics and histograms in TensorBoard, against closed forms and in both engines."""

import logging
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.optim import SGD, AdamW

from robust_fin.data.datamodule import BarDataModule
from robust_fin.models.mlp import identity, sigmoid
from robust_fin.runs.training import load_first_fold
from robust_fin.training.diagnostics import (
    Diagnostics,
    Histograms,
    activation_statistics,
    adamw_updates,
    histograms_due,
    norm_statistics,
    probe_gradients,
    slope,
    update_ratios,
)
from robust_fin.training.fitting import Fit
from tests.evaluation.boards import Board
from tests.populations import bars_of, train_members
from tests.populations import settings as member_settings
from tests.training.faults import Fault, fit_with, settings
from tests.training.test_module import batches_of, data, forecaster, net, trainer

CASES = [
    Fault("loss", "1e30", "middle", engine, "32-true", 1, "stop")
    for engine in ("plain", "compiled")
]
LAYERS = ["blocks.0.0", "blocks.1.0", "head"]


@pytest.fixture(scope="module")
def bars() -> BarDataModule:
    return load_first_fold(settings(CASES[0]))


def test_norm_statistics_ignore_norms_that_are_not_finite() -> None:
    norms = np.array([0.0, 1.0, 2.0, 3.0, 4.0, np.inf, np.nan])
    assert norm_statistics(norms, clip=2.5) == {
        "stability/gradient_norm_p50": 2.0,
        "stability/gradient_norm_p99": pytest.approx(3.96),
        "stability/gradient_norm_max": 4.0,
        "stability/clipped_share": 0.4,
    }
    assert "stability/clipped_share" not in norm_statistics(norms, clip=None)
    assert norm_statistics(np.array([np.nan]), clip=1.0) == {}


@pytest.mark.parametrize(
    ("function", "at", "expected"),
    [
        (nn.ReLU(), [-1.0, 2.0], [0.0, 1.0]),
        (nn.ReLU(inplace=True), [-1.0, 2.0], [0.0, 1.0]),
        (nn.Tanh(), [0.0, 1.0], [1.0, 1 - np.tanh(1.0) ** 2]),
        (sigmoid, [0.0, 2.0], [0.25, 0.10499]),
        (identity, [5.0, -7.0], [1.0, 1.0]),
    ],
)
def test_slope_is_the_derivative(function: object, at: list[float], expected: object) -> None:
    given = torch.tensor(at)
    assert slope(function, given).tolist() == pytest.approx(expected, rel=1e-4)  # type: ignore[arg-type]
    assert given.tolist() == at


def test_activation_statistics_count_dead_and_saturated_units() -> None:
    layer = nn.Linear(1, 4, bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0], [0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 0.0, -1.0, 1.0]))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    model[1].eval()
    x = torch.tensor([[-1.0], [2.0], [3.0], [-4.0]])
    before = torch.get_rng_state()
    points, forecast = activation_statistics(model, identity, x)
    assert points == {
        "stability/saturated/1": pytest.approx((2 + 2 + 4 + 0) / 16),
        "stability/dead/1": 0.25,
        "stability/saturated/link": 0.0,
    }
    assert torch.equal(forecast, model(x).detach())
    assert [one.training for one in model] == [True, False, True, True]
    assert not any(one._forward_pre_hooks for one in model)
    assert torch.equal(torch.get_rng_state(), before)


def test_activation_statistics_include_the_link() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Flatten(0))
    with torch.no_grad():
        model[0].weight.fill_(100.0)
        model[0].bias.zero_()
    points, _ = activation_statistics(model, sigmoid, torch.tensor([[1.0], [2.0], [0.0], [0.01]]))
    assert points["stability/saturated/link"] == 0.5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("steps", [1, 7])
def test_adamw_updates_match_the_change_of_the_weights(fused: bool, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = AdamW(model.parameters(), lr=0.02, weight_decay=0.3, fused=fused)
    for _ in range(steps):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    updates = adamw_updates(model, optimizer, 0.02)
    for name, p in model.named_parameters():
        torch.testing.assert_close(updates[name], p.detach() - before[name], rtol=1e-3, atol=1e-7)


def test_update_ratio_combines_the_weights_of_a_layer() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for p, value in zip(model.parameters(), (3.0, 4.0, 2.0), strict=True):
            p.fill_(value)
    moved = {"0.weight": torch.tensor([[0.6]]), "0.bias": torch.tensor([0.8]),
             "2.weight": torch.tensor([[-0.5]])}  # fmt: skip
    with torch.no_grad():
        ratios = update_ratios(model, moved)
    assert ratios == {
        "stability/update_ratio/0": pytest.approx(0.2),
        "stability/update_ratio/2": pytest.approx(0.25),
    }


@pytest.fixture(scope="module")
def fits(
    tmp_path_factory: pytest.TempPathFactory, bars: BarDataModule
) -> dict[str, tuple[Fit, Board]]:
    """The same twelve steps in both engines."""
    folder, fits = tmp_path_factory.mktemp("fits"), {}
    words = (
        "callbacks.histograms.every_n_steps=6",
        "stability.diagnose_every_n_steps=6",
        "schedule.warmup=0",
    )
    for case in CASES:
        fit = fit_with(None, folder / case.engine, bars, *words, like=case)
        fits[case.engine] = (fit, Board(folder / case.engine / "tensorboard"))
    return fits


def stability_tags(board: Board) -> set[str]:
    return {tag for tag in board.tags["scalars"] if tag.startswith("stability/")}


def test_both_engines_log_the_same_diagnostics(fits: dict[str, tuple[Fit, Board]]) -> None:
    plain, compiled = (board for _, board in fits.values())
    assert stability_tags(plain) == stability_tags(compiled)
    layers = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in (0, 1)]
    ratios = {f"stability/update_ratio/{layer}" for layer in (*layers, "head")}
    assert ratios <= stability_tags(plain)
    for tag in stability_tags(plain):
        first, second = plain.curve(tag), compiled.curve(tag)
        assert list(first) == list(second) == [5, 11], tag
        assert list(first.values()) == pytest.approx(list(second.values()), rel=0.02, abs=0.01)
    assert 1e-4 < plain.curve("stability/update_ratio/head")[5] < 0.1


def test_diagnostics_can_be_disabled(tmp_path: Path, bars: BarDataModule) -> None:
    fit_with(None, tmp_path, bars, "stability.diagnose_every_n_steps=null", like=CASES[0])
    assert stability_tags(Board(tmp_path / "tensorboard")) == set()


def test_rejected_step_is_logged_at_its_step(tmp_path: Path, bars: BarDataModule) -> None:
    case = Fault("feature", "nan", "middle", "plain", "32-true", 1, "stop")
    with pytest.raises(ValueError, match="at step 6"):
        fit_with(case, tmp_path, bars)
    board = Board(tmp_path / "tensorboard")
    assert board.curve("stability/nonfinite_steps") == {6: 1.0}


@pytest.mark.parametrize("constant", [True, False])
def test_constant_forecasts_give_one_warning(
    constant: bool, caplog: pytest.LogCaptureFixture
) -> None:
    module = forecaster(net(), lr=1e-6)
    if constant:
        with torch.no_grad():
            module.net.head.weight.zero_()
        module.net.head.weight.requires_grad_(False)
    diagnostics = Diagnostics(every_n_steps=10, clip=None)
    with caplog.at_level(logging.WARNING, logger="robust_fin.training.diagnostics"):
        trainer(callbacks=[diagnostics]).fit(module, batches_of(*data()))
    messages = [record.getMessage() for record in caplog.records]
    warnings = [text for text in messages if "forecasts the same value for every row" in text]
    assert len(warnings) == (1 if constant else 0)  # once, not at every diagnosis
    if constant:
        assert "at step 10: over 256 training rows the standard deviation" in warnings[0]


def test_updates_of_another_optimizer_are_measured() -> None:
    module, logged = forecaster(net(), warmup=0), []
    module._optimizer = lambda parameters: SGD(parameters, lr=0.1)

    class LoggedDiagnostics(Diagnostics):
        def _log(self, trainer: L.Trainer, points: dict[str, float], **_: object) -> None:  # noqa: ARG002
            logged.append(points)

    before = {}

    class Before(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 19:
                before["head"] = module.net.head.weight.detach().clone()
                before["bias"] = module.net.head.bias.detach().clone()

    callbacks = [Before(), LoggedDiagnostics(every_n_steps=20, clip=0.05)]
    trainer(callbacks=callbacks, max_steps=20).fit(module, batches_of(*data()))
    head = module.net.head
    moved = torch.cat([(head.weight - before["head"])[0], head.bias - before["bias"]]).norm()
    size = torch.cat([head.weight[0], head.bias]).norm()
    (points,) = logged
    ratio = float((moved / size).detach())
    assert points["stability/update_ratio/head"] == pytest.approx(ratio, rel=1e-5)
    assert points["stability/clipped_share"] > 0.5


def test_histograms_are_due_at_doubling_steps_and_then_evenly() -> None:
    def due(every: int, stop: int) -> list[int]:
        counts = [histograms_due(step, every) for step in range(stop)]
        return [step for step in range(1, stop) if counts[step] > counts[step - 1]]

    assert due(5000, 16_000) == [64, 128, 256, 512, 1024, 2048, 4096, 5000, 10_000, 15_000]
    assert due(64, 200) == [64, 128, 192]
    assert due(6, 20) == [6, 12, 18]
    assert due(1, 5) == [1, 2, 3, 4]


def test_probe_gradients_are_those_of_the_objective_and_change_no_state() -> None:
    module = forecaster(net())
    module.net.blocks[0].append(nn.Dropout(0.5))
    module.net.head.bias.requires_grad_(False)
    module.train()
    x, target = data()
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad():
        gradients = probe_gradients(module, x, target)
    assert all(part.training for part in module.modules())
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.eval()
    nn.functional.huber_loss(module.net(x), target, delta=0.1).backward()
    expected = {name: p.grad for name, p in module.net.named_parameters() if p.requires_grad}
    assert list(gradients) == list(expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name])


def test_every_layer_has_histograms_of_weights_and_gradients(
    fits: dict[str, tuple[Fit, Board]],
) -> None:
    for fit, board in fits.values():
        layers = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in LAYERS}
        assert set(board.tags["histograms"]) == layers | {"val/score"}
        weights = dict(fit.nets.net.named_parameters())
        for name in LAYERS:
            events = board.events.Histograms(f"weights/{name}")
            assert [event.step for event in events] == [5, 11]
            last = events[-1].histogram_value
            values = weights[f"{name}.weight"].detach().double().numpy().ravel()
            assert last.num == values.size
            assert sum(last.bucket) == values.size
            assert (last.min, last.max) == pytest.approx((values.min(), values.max()), rel=1e-6)
            assert last.sum_squares == pytest.approx((values**2).sum(), rel=1e-5)


def test_both_engines_log_the_same_histograms(fits: dict[str, tuple[Fit, Board]]) -> None:
    for name in LAYERS:
        for kind, tolerance in (("weights", 1e-4), ("gradients", 1e-2)):
            both = (board.events.Histograms(f"{kind}/{name}") for _, board in fits.values())
            for plain, compiled in zip(*both, strict=True):
                first, second = plain.histogram_value, compiled.histogram_value
                assert first.num == second.num
                size = max(abs(first.min), abs(first.max))
                assert abs(first.max - second.max) <= tolerance * size
                difference = abs(first.sum_squares - second.sum_squares)
                assert difference <= tolerance * first.sum_squares


def test_val_forecasts_are_logged_at_every_validation(
    fits: dict[str, tuple[Fit, Board]], bars: BarDataModule
) -> None:
    for fit, board in fits.values():
        (event,) = board.events.Histograms("val/score")
        assert event.step == 11
        with torch.no_grad():
            score = fit.nets.net(bars.x("val")).double().numpy()
        histogram = event.histogram_value
        assert histogram.num == score.size == len(bars.target("val"))
        expected = (score.min(), score.max())
        assert (histogram.min, histogram.max) == pytest.approx(expected, rel=1e-5)


def test_members_share_histograms(tmp_path: Path) -> None:
    config = member_settings("compiled", "population.members=3", "trainer.max_epochs=1")
    (fit,) = train_members(tmp_path, config, bars_of(config))
    board = Board(tmp_path / "tensorboard")
    stack = fit.nets.stack
    assert stack is not None
    assert not [tag for tag in board.tags["histograms"] if tag.startswith("gradients/")]
    head = board.events.Histograms("weights/head")[-1].histogram_value
    assert head.num == stack["head.weight"].numel() == 3 * 8
    assert head.sum == pytest.approx(float(stack["head.weight"].sum()), rel=1e-5)
    assert len(board.events.Histograms("val/score")) == 1


def test_histograms_leave_out_values_that_are_not_finite(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = L.Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False)
    histograms, values = Histograms(every_n_steps=1), np.array([np.nan, 1.0, 2.0, np.inf])
    histograms._log(trainer, {"some": values, "none": values[:1]}, step=3)
    logger.save()
    board = Board(tmp_path)
    assert board.tags["histograms"] == ["some"]
    assert board.events.Histograms("some")[0].histogram_value.num == 2
