"""What TensorBoard shows of a net in trouble, by closed forms and in both engines alike."""

import logging
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim import SGD, AdamW

from robust_fin.data.datamodule import BarDataModule
from robust_fin.models.links import identity, sigmoid
from robust_fin.runs.training import load_data
from robust_fin.training.diagnostics import (
    Diagnostics,
    activation_statistics,
    adamw_updates,
    norm_statistics,
    slope,
    update_ratios,
)
from tests.training.faults import Fault, fit_with, settings
from tests.training.test_lightning_loop import curve
from tests.training.test_module import batches_of, data, forecaster, net, trainer

PLAIN = Fault("loss", "1e30", "middle", "plain", "32-true", 1, "stop")
COMPILED = Fault("loss", "1e30", "middle", "compiled", "32-true", 1, "stop")


@pytest.fixture(scope="module")
def bars() -> BarDataModule:
    return load_data(settings(PLAIN))


def test_quantiles_and_the_clipped_share_are_of_the_norms_that_are_finite() -> None:
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
    ("function", "at", "wanted"),
    [
        (nn.ReLU(), [-1.0, 2.0], [0.0, 1.0]),
        (nn.ReLU(inplace=True), [-1.0, 2.0], [0.0, 1.0]),
        (nn.Tanh(), [0.0, 1.0], [1.0, 1 - np.tanh(1.0) ** 2]),
        (sigmoid, [0.0, 2.0], [0.25, 0.10499]),
        (identity, [5.0, -7.0], [1.0, 1.0]),
    ],
)
def test_the_slope_is_the_derivative(function: object, at: list[float], wanted: object) -> None:
    given = torch.tensor(at)
    assert slope(function, given).tolist() == pytest.approx(wanted, rel=1e-4)  # type: ignore[arg-type]
    assert given.tolist() == at


def test_dead_units_and_saturated_outputs_are_counted() -> None:
    layer = nn.Linear(1, 4, bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0], [0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 0.0, -1.0, 1.0]))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    model[1].eval()
    x = torch.tensor([[-1.0], [2.0], [3.0], [-4.0]])
    before = torch.get_rng_state()
    found, forecast = activation_statistics(model, identity, x)
    assert found == {
        "stability/saturated/1": pytest.approx((2 + 2 + 4 + 0) / 16),
        "stability/dead/1": 0.25,
        "stability/saturated/link": 0.0,
    }
    assert torch.equal(forecast, model(x).detach())
    assert [one.training for one in model] == [True, False, True, True]
    assert not any(one._forward_pre_hooks for one in model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_link_that_is_saturated_shows() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Flatten(0))
    with torch.no_grad():
        model[0].weight.fill_(100.0)
        model[0].bias.zero_()
    found, _ = activation_statistics(model, sigmoid, torch.tensor([[1.0], [2.0], [0.0], [0.01]]))
    assert found["stability/saturated/link"] == 0.5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_moments_tell_the_last_step_of_adamw(fused: bool, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = AdamW(model.parameters(), lr=0.02, weight_decay=0.3, fused=fused)
    for _ in range(steps):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    found = adamw_updates(model, optimizer, 0.02)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.detach() - before[name], rtol=1e-3, atol=1e-7)


def test_a_ratio_is_of_a_layers_weights_together() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for p, value in zip(model.parameters(), (3.0, 4.0, 2.0), strict=True):
            p.fill_(value)
    moved = {"0.weight": torch.tensor([[0.6]]), "0.bias": torch.tensor([0.8]),
             "2.weight": torch.tensor([[-0.5]])}  # fmt: skip
    with torch.no_grad():
        found = update_ratios(model, moved)
    assert found == {
        "stability/update_ratio/0": pytest.approx(0.2),
        "stability/update_ratio/2": pytest.approx(0.25),
    }


def tags(folder: Path) -> set[str]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag for tag in events.Tags()["scalars"] if tag.startswith("stability/")}


def test_both_engines_show_the_same_at_the_same_steps(tmp_path: Path, bars: BarDataModule) -> None:
    word = "stability.diagnose_every_n_steps=6"
    for case in (PLAIN, COMPILED):
        fit_with(None, tmp_path / case.engine, bars, word, "schedule.warmup=0", like=case)
    assert tags(tmp_path / "plain") == tags(tmp_path / "compiled")
    layers = [f"blocks.{block}.{place}" for block in (0, 1) for place in (0, 1)]
    assert {f"stability/update_ratio/{one}" for one in (*layers, "head")} <= tags(
        tmp_path / "plain"
    )
    for tag in tags(tmp_path / "plain"):
        plain, compiled = (curve(tmp_path / name, tag) for name in ("plain", "compiled"))
        assert list(plain) == list(compiled) == [5, 11], tag
        assert list(plain.values()) == pytest.approx(list(compiled.values()), rel=0.02, abs=0.01)
    assert 1e-4 < curve(tmp_path / "plain", "stability/update_ratio/head")[5] < 0.1


def test_without_it_nothing_is_drawn(tmp_path: Path, bars: BarDataModule) -> None:
    fit_with(None, tmp_path, bars, "stability.diagnose_every_n_steps=null", like=PLAIN)
    assert tags(tmp_path) == set()


def test_a_refused_step_is_drawn_where_it_happened(tmp_path: Path, bars: BarDataModule) -> None:
    case = Fault("feature", "nan", "middle", "plain", "32-true", 1, "stop")
    with pytest.raises(ValueError, match="at step 6"):
        fit_with(case, tmp_path, bars)
    assert curve(tmp_path, "stability/nonfinite_steps") == {6: 1.0}


@pytest.mark.parametrize("constant", [True, False])
def test_a_net_that_forecasts_one_number_is_reported_in_words(
    constant: bool, caplog: pytest.LogCaptureFixture
) -> None:
    module = forecaster(net(), lr=1e-6)
    if constant:
        with torch.no_grad():
            module.net.head.weight.zero_()
        module.net.head.weight.requires_grad_(False)
    watch = Diagnostics(every_n_steps=10, clip=None)
    with caplog.at_level(logging.WARNING, logger="robust_fin.training.diagnostics"):
        trainer(callbacks=[watch]).fit(module, batches_of(*data()))
    said = [one.getMessage() for one in caplog.records if "forecasts the same" in one.getMessage()]
    assert len(said) == (1 if constant else 0)  # once, not at every diagnosis
    if constant:
        assert "over 256 training rows its forecasts spread by" in said[0]
        assert "at step 10. It learns nothing" in said[0]


def test_the_last_step_of_another_optimizer_is_measured() -> None:
    module, drawn = forecaster(net(), warmup=0), []
    module._optimizer = lambda parameters: SGD(parameters, lr=0.1)

    class Drawn(Diagnostics):
        def _draw(
            self,
            trainer: L.Trainer,  # noqa: ARG002
            points: dict[str, float],
            *,
            at: int | None = None,  # noqa: ARG002
        ) -> None:
            drawn.append(points)

    before = {}

    class Before(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 19:
                before["head"] = module.net.head.weight.detach().clone()
                before["bias"] = module.net.head.bias.detach().clone()

    watch = [Before(), Drawn(every_n_steps=20, clip=0.05)]
    trainer(callbacks=watch, max_steps=20).fit(module, batches_of(*data()))
    head = module.net.head
    moved = torch.cat([(head.weight - before["head"])[0], head.bias - before["bias"]]).norm()
    size = torch.cat([head.weight[0], head.bias]).norm()
    (found,) = drawn
    ratio = float((moved / size).detach())
    assert found["stability/update_ratio/head"] == pytest.approx(ratio, rel=1e-5)
    assert found["stability/clipped_share"] > 0.5
