import copy
from functools import partial

import pytest
import torch
from torch import nn

from robust_fin.training.engine.build import NetPasses, compiled_error, run_passes, synthetic_rows
from robust_fin.training.losses import huber
from tests.training.engine.plain_steps import FEATURES, residual

PARTS = {
    "features": FEATURES,
    "loss": partial(huber, delta=0.1),
    "optimizer": partial(torch.optim.AdamW, lr=1e-2, weight_decay=1e-2),
}
CPU = torch.device("cpu")


def net() -> nn.Module:
    torch.manual_seed(3)
    return residual([16, 8])


def run(module: nn.Module, dtype: torch.dtype) -> NetPasses:
    return run_passes(module, device=CPU, dtype=dtype, **PARTS)


def test_float64_matches_a_bare_loop() -> None:
    module = net()
    found = run(module, torch.float64)
    bare = copy.deepcopy(module).double()
    x, target = synthetic_rows(FEATURES)
    torch.testing.assert_close(found.score, bare(x).detach(), rtol=0, atol=0)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2, weight_decay=1e-2)
    for step in range(10):
        optimizer.zero_grad()
        nn.functional.huber_loss(bare(x), target, delta=0.1).backward()
        if step == 0:
            gradient = torch.cat([one.grad.reshape(-1) for one in bare.parameters()])
            torch.testing.assert_close(found.gradient, gradient, rtol=1e-12, atol=0)
        nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
    weights = nn.utils.parameters_to_vector(bare.parameters()).detach()
    torch.testing.assert_close(found.weights, weights, rtol=1e-9, atol=0)


def test_float32_is_close_but_not_equal() -> None:
    module = net()
    errors = run(module, torch.float32).relative_errors(run(module, torch.float64))
    assert set(errors) == {"forward", "backward", "10 steps"}
    assert all(0 < one < 1e-5 for one in errors.values())


def test_bfloat16_has_a_large_error() -> None:
    module = net()
    errors = run(module, torch.bfloat16).relative_errors(run(module, torch.float64))
    assert errors["forward"] > 1e-4


def test_relative_error_is_a_norm_of_the_difference() -> None:
    one, two = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    errors = NetPasses(two, one, one).relative_errors(NetPasses(one, one, one))
    assert errors == {"forward": pytest.approx(0.1), "backward": 0.0, "10 steps": 0.0}


def test_passes_do_not_change_the_net() -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    run(module, torch.float32)
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiled_loop_is_close_to_float64() -> None:
    loop, error = compiled_error(net(), **PARTS)
    assert loop.compile_seconds > 0
    assert 0 < error < 1e-5
