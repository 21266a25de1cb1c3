"""The guard: the numbers it reads, the steps it leaves to the fp16 scaler or rejects."""

from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.optim import AdamW

from robust_fin.errors import ConfigError, NonFiniteError
from robust_fin.training.losses import squared
from robust_fin.training.recovery.guard import (
    StepGuard,
    StepNumbers,
    check_finite_weights,
    check_precision,
    is_skipped_by_scaler,
    read_step,
)
from tests.training.test_module import batches_of, data, forecaster, net, trainer

FINE = (0.5, 1.5, [1.0, 2.0])


@pytest.mark.parametrize(
    ("numbers", "finite"),
    [
        (FINE, True),
        ((np.nan, 1.5, [1.0, 2.0]), False),
        ((0.5, np.inf, [1.0, 2.0]), False),
        ((0.5, 1.5, [1.0, -np.inf]), False),
        ((0.5, 1.5, [np.nan, 2.0]), False),
    ],
)
def test_step_is_finite_if_all_its_numbers_are(
    numbers: tuple[float, float, list[float]], finite: bool
) -> None:
    assert StepNumbers(*numbers).finite is finite


def test_read_step_returns_loss_gradient_norm_and_weight_norms() -> None:
    weights = [nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([[12.0]]))]
    assert read_step(torch.tensor(0.25), torch.tensor(2.0), weights) == (0.25, 2.0, [5.0, 12.0])


@pytest.mark.parametrize(("value", "finite"), [(1e18, True), (1e20, False), (1e30, False)])
def test_weight_whose_square_overflows_is_not_finite(value: float, finite: bool) -> None:
    weight = nn.Parameter(torch.tensor([1.0, value]))
    assert read_step(torch.tensor(0.0), torch.tensor(0.0), [weight]).finite is finite


@pytest.mark.parametrize(
    ("numbers", "scale", "skipped"),
    [
        ((0.5, np.inf, [1.0]), 65536.0, True),
        ((0.5, np.nan, [1.0]), 2.0, True),
        ((0.5, np.inf, [1.0]), 1.0, False),  # nothing left to scale down
        ((np.nan, np.nan, [1.0]), 65536.0, False),
        ((0.5, np.inf, [np.inf]), 65536.0, False),
        ((0.5, np.inf, [1.0]), None, False),
    ],
)
def test_scaler_skips_only_gradients_that_overflow_by_its_scale(
    numbers: tuple[float, float, list[float]], scale: float | None, skipped: bool
) -> None:
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    assert is_skipped_by_scaler(StepNumbers(*numbers), scaler) is skipped


@pytest.mark.parametrize("fused", [False, True])
def test_scaler_recovers_from_a_gradient_that_overflows(fused: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
    weights, taken, skipped = list(model.parameters()), [], []
    for step in range(150):
        x = torch.randn(8, 4)
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        loss = model(x).square().mean()
        scaler.scale(loss).backward()
        if step in (0, 1, 70):
            assert model.weight.grad is not None
            model.weight.grad[0, 1] = torch.inf
        scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        numbers = read_step(loss.detach(), norm, weights)
        if not numbers.finite:
            assert is_skipped_by_scaler(numbers, scaler)
            skipped.append(step)
        nn.utils.clip_grads_with_norm_(weights, 1.0, norm)
        scaler.step(optimizer)
        scaler.update()
        taken.append(not torch.equal(before, model.weight))
    assert skipped == [0, 1, 70]
    assert [step for step, moved in enumerate(taken) if not moved] == skipped
    assert scaler.get_scale() == 2.0**13
    check_finite_weights(model, when="at the end")


def half_trainer(init_scale: float, **settings: object) -> L.Trainer:
    """Lightning in fp16 on the CPU, which Trainer(precision=...) would turn into bf16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    return trainer(plugins=[plugin], **settings)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("batches", [1, 2])
def test_fp16_trains_like_float32(fused: bool, batches: int) -> None:
    weights = []
    for make in (trainer, partial(half_trainer, 2.0**10)):
        module = forecaster(net())
        module._optimizer = partial(AdamW, lr=0.01, fused=fused)
        run = make(accumulate_grad_batches=batches)
        run.fit(module, batches_of(*data()))
        weights.append(nn.utils.parameters_to_vector(module.net.parameters()).detach())
    assert run.global_step == 60 // batches
    assert module.guard.nonfinite_steps == 0
    assert (weights[0] - weights[1]).norm() / weights[0].norm() < 0.02


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_fp16_halves_its_scale_after_an_overflow() -> None:
    module = forecaster(net())
    run = half_trainer(2.0**26)
    run.fit(module, batches_of(*data()))
    assert module.guard.nonfinite_steps > 0
    assert run.precision_plugin.scaler.get_scale() == 2.0 ** (26 - module.guard.nonfinite_steps)
    check_finite_weights(module.net, when="at the end")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_fp16_stops_at_a_bad_feature(bad: float) -> None:
    x, target = data()
    x[77, 2] = bad
    module = forecaster(nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)))
    with pytest.raises(NonFiniteError, match=r"at step \d+, before the weights were changed"):
        half_trainer(2.0**10).fit(module, batches_of(x, target))
    check_finite_weights(module.net, when="after the stop")


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_bad_row_stops_the_step_that_contains_it(precision: str, batches: int) -> None:
    x, target = data()
    x[77] = np.nan
    loader = batches_of(x, target)
    _, rows = loader.order.begin()
    (place,) = torch.nonzero((rows == 77).any(dim=1))[0].tolist()
    module = forecaster(net())
    with pytest.raises(NonFiniteError, match=rf"at step {place // batches}, before"):
        trainer(precision=precision, accumulate_grad_batches=batches).fit(module, loader)
    check_finite_weights(module.net, when="after the stop")


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
@pytest.mark.parametrize("precision", ["16-mixed", 16, "16"])
def test_fp16_on_a_cpu_is_an_error(accelerator: str, precision: object) -> None:
    if accelerator == "auto" and torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        ConfigError,
        match=r"trainer\.precision=16\S* needs a GPU; on a CPU use trainer\.precision=bf16-mixed",
    ):
        check_precision(precision, accelerator=accelerator)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_other_precisions_are_accepted(precision: str) -> None:
    check_precision(precision, accelerator="cpu")


def test_net_with_a_wrong_output_shape_is_rejected() -> None:
    module = forecaster(nn.Linear(5, 1))  # (batch, 1): against (batch,) it would broadcast
    with pytest.raises((ConfigError, TypeCheckError), match=r"\(16, 1\) and target|f32\[16,1\]"):
        trainer().fit(module, batches_of(*data()))


def test_guard_restores_its_counts() -> None:
    assert StepGuard().rate_factor == 1.0
    assert np.isnan(StepGuard().largest_norm)
    guard = StepGuard()
    state = {"rollbacks": 3, "nonfinite_steps": 4, "largest_norm": 2.5}
    guard.load_state_dict(state)
    assert guard.rate_factor == 0.125
    assert guard.state_dict() == state


def test_guard_keeps_the_last_100_norms() -> None:
    guard = StepGuard()
    guard.add_norms([float(one) for one in range(250)])
    guard.add_norms([np.inf, 3.0, np.nan])
    assert list(guard.norms)[:97] == [float(one) for one in range(153, 250)]
    assert len(guard.window) == 253
    assert guard.largest_norm == 249.0


def test_infinite_target_makes_the_loss_infinite() -> None:
    score, target = torch.zeros(2), torch.tensor([0.0, torch.inf])
    assert squared(score, target).isinf()
