"""Compiled steps match a plain loop of autograd, clip_grad_norm_ and AdamW."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_fin.errors import ConfigError
from robust_fin.models.mlp import sigmoid
from robust_fin.training.engine.step_state import StepState
from robust_fin.training.engine.steps import StepLoop, StepSettings
from tests.training.engine.plain_steps import (
    BATCH,
    CLIP,
    F32,
    F64,
    FEATURES,
    SETTINGS,
    adamw,
    compiled,
    data,
    foreign,
    furthest,
    loss,
    plain,
    relative,
    residual,
    row_numbers,
    start,
    warmup,
)

# importing Inductor, on the first compilation, meets torch's own deprecation
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")

SIZES = ([16, 8], [64, 32], [128, 64, 32])
MakeNet = Callable[[], nn.Module]


def twins(make: MakeNet, dtype: torch.dtype, seed: int = 1) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    net = make().to(dtype)
    return net, copy.deepcopy(net)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Two threads of the plain loop wait for each other at every tiny product."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loop() -> StepLoop:
    """Of [16, 8] in float64, which most tests share: one compilation, many uses."""
    return compiled(residual([16, 8]).double())


def agree(
    loop: StepLoop, make: MakeNet, dtype: torch.dtype, *, steps: int, batch: int = BATCH
) -> tuple[float, float, float]:
    """Largest and relative difference of the parameters, and of the losses and norms.

    Two calls of different length, with a warmup across both and clipping in most steps.
    """
    net, twin = twins(make, dtype)
    x, target = data(dtype=dtype)
    rows, lr = row_numbers(steps, batch=batch), warmup(steps)
    wanted = plain(twin, adamw(twin), x=x, target=target, rows=rows, lr=lr)
    assert 0.1 < (wanted.gradient_norm > CLIP).double().mean() < 1.0
    state, cut = StepState(net), steps * 37 // 100
    got = [
        loop.run(state, x=x, target=target, rows=r, lr=h, weight_decay=1e-2, seed=0)
        for r, h in ((rows[:cut], lr[:cut]), (rows[cut:], lr[cut:]))
    ]
    state.store(net)
    curves = [
        float((torch.cat([one[place] for one in got]) - wanted[place]).abs().max())
        for place in (0, 1)
    ]
    assert [one.first_bad for one in got] == [None, None]
    assert state.count == steps
    return furthest(net, twin), relative(net, twin), max(curves)


def test_thousand_steps_match_the_plain_loop(loop: StepLoop) -> None:
    furthest_off, _, curves = agree(loop, partial(residual, [16, 8]), F64, steps=1000)
    assert furthest_off <= 1e-10
    assert curves <= 1e-10


def test_thousand_steps_of_a_foreign_net_match_the_plain_loop() -> None:
    loop = compiled(foreign().double())
    furthest_off, _, curves = agree(loop, foreign, F64, steps=1000)
    assert furthest_off <= 1e-10
    assert curves <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("hidden", SIZES[1:], ids=str)
def test_larger_nets_match_the_plain_loop(hidden: list[int]) -> None:
    make = partial(residual, hidden)
    assert agree(compiled(make().double()), make, F64, steps=1000)[0] <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("make", [*(partial(residual, one) for one in SIZES), foreign])
def test_float32_matches_the_plain_loop_up_to_rounding(make: MakeNet) -> None:
    assert agree(compiled(make()), make, F32, steps=1000)[1] <= 1e-5


def test_large_batch_with_library_products_and_uneven_pool_windows_matches() -> None:
    make = partial(residual, [16, 3])  # 16 -> 3: windows of 6
    assert SETTINGS.products(batch_size=1024, parameters=299) == "extern"
    assert SETTINGS.products(batch_size=16, parameters=299) == "rows"
    loop = compiled(make().double(), batch=1024, matmul="extern")
    # LayerNorm over 3 units: from step 100 on, rounding grows tenfold every ten steps
    assert agree(loop, make, F64, steps=60, batch=1024)[0] <= 1e-10


def test_dropout_matches_an_eager_loop_with_the_same_masks() -> None:
    net, twin = twins(partial(residual, [16, 8], dropout=0.1), F32)
    x, target = data(dtype=F32)
    rows, lr = row_numbers(400), warmup(400)
    loop, state = compiled(net), StepState(net)
    got = loop.run(state, x=x, target=target, rows=rows, lr=lr, weight_decay=1e-2, seed=5)
    state.store(net)
    wanted = plain(twin, adamw(twin), x=x, target=target, rows=rows, lr=lr, seed=5)
    assert relative(net, twin) <= 1e-5
    assert float((got.loss - wanted.loss).abs().max()) <= 1e-5


def test_dropout_rate_and_delta_are_arguments_of_run() -> None:
    def huber(forecast: torch.Tensor, target: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        off = (forecast - target).abs()
        return torch.where(off <= delta, 0.5 * off * off, delta * (off - 0.5 * delta)).mean()

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.Flatten(0)
        )

    loop = StepLoop(
        make().double(),
        link=sigmoid,
        loss=huber,
        batch_size=BATCH,
        features=FEATURES,
        settings=SETTINGS,
        loss_takes_setting=True,
        own_dropout=True,
    )
    x, target = data(dtype=F64)
    for rate, delta in ((0.0, 0.1), (0.3, 0.02)):
        net, twin = twins(make, F64)
        state, knobs = StepState(net), torch.tensor([delta, rate], dtype=F64)
        common = {"x": x, "target": target, "rows": row_numbers(200), "lr": warmup(200), "seed": 3}
        loop.run(state, **common, weight_decay=1e-2, loss_setting=knobs[0], dropout=knobs[1])
        state.store(net)
        plain(twin, adamw(twin), **common, rate=knobs[1], delta=delta)
        assert furthest(net, twin) <= 1e-10
    with pytest.raises(ValueError, match="this StepLoop needs dropout, got None"):
        loop.run(state, **common, weight_decay=1e-2, loss_setting=knobs[0])


def test_one_loop_serves_other_data_rates_and_weight_decay(loop: StepLoop) -> None:
    for member, (rows, lr, decay) in enumerate(((500, 1e-3, 0.0), (2000, 4e-3, 0.1))):
        net, twin = twins(partial(residual, [16, 8]), F64, seed=member)
        x, target = data(rows, dtype=F64, seed=member)
        order, rates = row_numbers(150, rows=rows, seed=member), warmup(150, lr=lr)
        state = StepState(net)
        loop.run(state, x=x, target=target, rows=order, lr=rates, weight_decay=decay, seed=member)
        state.store(net)
        plain(twin, adamw(twin, weight_decay=decay), x=x, target=target, rows=order, lr=rates)
        assert furthest(net, twin) <= 1e-10


def test_switching_between_plain_and_compiled_keeps_the_numbers(loop: StepLoop) -> None:
    net, twin = twins(partial(residual, [16, 8]), F64)
    x, target = data(dtype=F64)
    rows, lr = row_numbers(300), warmup(300)
    ours, theirs = adamw(net), adamw(twin)
    plain(twin, theirs, x=x, target=target, rows=rows, lr=lr)
    plain(net, ours, x=x, target=target, rows=rows[:90], lr=lr[:90])
    state = start(net, ours)
    assert state.count == 90
    loop.run(state, x=x, target=target, rows=rows[90:170], lr=lr[90:170], weight_decay=1e-2, seed=0)
    state.store(net, ours)
    plain(net, ours, x=x, target=target, rows=rows[170:], lr=lr[170:])
    assert furthest(net, twin) <= 1e-10
    for one, other in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert one["step"] == other["step"] == 300
        torch.testing.assert_close(one["exp_avg"], other["exp_avg"], atol=1e-12, rtol=0)
        torch.testing.assert_close(one["exp_avg_sq"], other["exp_avg_sq"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("bad", [0, 7, 39])
def test_nonfinite_step_is_reported_and_freezes_the_state(loop: StepLoop, bad: int) -> None:
    net, twin = twins(partial(residual, [16, 8]), F64)
    x, target = data(dtype=F64)
    rows, lr = row_numbers(40) % 2999, warmup(40)
    x[2999, 2] = float("nan")
    rows[bad, 5] = 2999
    state, before = StepState(net), StepState(twin)
    run = partial(loop.run, x=x, target=target, lr=lr, weight_decay=1e-2, seed=0)
    got = run(state, rows=rows)
    run(before, rows=rows[:bad], lr=lr[:bad])
    assert got.first_bad == bad
    assert state.count == before.count == bad
    assert got.loss[:bad].isfinite().all()
    assert got.loss[bad].isnan()
    for one, other in zip(state.vectors[:3], before.vectors[:3], strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    again = run(state, rows=row_numbers(40) % 2999)
    assert (again.first_bad, state.count) == (0, bad)
    torch.testing.assert_close(state.parameters, before.parameters, atol=0, rtol=0)


def test_infinite_loss_with_finite_gradient_is_reported(loop: StepLoop) -> None:
    net, _ = twins(partial(residual, [16, 8]), F64)
    x, target = data(dtype=F64)
    target[0] = float("inf")
    rows = row_numbers(5).clamp(min=1)
    rows[3, 0] = 0
    got = loop.run(
        StepState(net), x=x, target=target, rows=rows, lr=warmup(5), weight_decay=0.0, seed=0
    )
    assert got.first_bad == 3
    assert got.loss[3].isinf()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(20, 4, dtype=F64)}, ValueError, r"shape \(20, 4\).*compiled for"),
        ({"x": torch.zeros(20, 5)}, ValueError, r"torch.float32, compiled for"),
        ({"rows": torch.full((3, 16), 20)}, IndexError, "20 to 20 are outside the 20 rows"),
        ({"rows": torch.full((3, 16), -1)}, IndexError, "-1 to -1 are outside the 20 rows"),
        ({"rows": torch.zeros(3, 8, dtype=torch.int64)}, ValueError, r"shape \(3, 8\)"),
        ({"loss_setting": torch.tensor(0.1)}, ValueError, "compiled without loss_setting"),
    ],
)
def test_run_raises_on_arguments_it_was_not_compiled_for(
    loop: StepLoop, change: dict[str, torch.Tensor], error: type[Exception], message: str
) -> None:
    given = {
        "x": torch.zeros(20, 5, dtype=F64),
        "target": torch.zeros(20, dtype=F64),
        "rows": torch.zeros(3, 16, dtype=torch.int64),
        "lr": torch.ones(3, dtype=F64),
        "loss_setting": None,
    }
    state = StepState(residual([16, 8]).double())
    before = state.parameters.clone()
    with pytest.raises(error, match=message):
        loop.run(state, **{**given, **change}, weight_decay=0.0, seed=0)
    assert torch.equal(state.parameters, before)


def test_compiling_does_not_change_the_net_or_the_random_state(loop: StepLoop) -> None:  # noqa: ARG001
    net, twin = twins(partial(residual, [16, 8]), F64)
    before = torch.get_rng_state()
    assert compiled(net).cached
    assert torch.equal(torch.get_rng_state(), before)
    assert furthest(net, twin) == 0
    assert all(one.grad is None for one in net.parameters())


def test_unknown_matmul_raises() -> None:
    with pytest.raises(ConfigError, match="matmul='fast' must be one of auto, rows, extern"):
        StepSettings(clip=None, betas=(0.9, 0.999), eps=1e-8, matmul="fast")


def test_reference_loss_is_huber() -> None:
    score, target = torch.tensor([0.2, 0.9]), torch.tensor([0.25, 0.1])
    wanted = (0.5 * 0.05**2 + 0.1 * (0.8 - 0.05)) / 2
    assert float(loss(score, target)) == pytest.approx(wanted)
    assert float(F.huber_loss(score, target, delta=0.1)) == pytest.approx(wanted)
