"""Decompositions match their operators, and a net that cannot be compiled raises."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robust_fin.models.mlp import sigmoid
from robust_fin.training.engine.inductor import trace_step
from robust_fin.training.engine.steps import StepLoop
from robust_fin.training.engine.trace import (
    LoopInputs,
    UnsupportedStepError,
    decompositions,
    pool_backward,
)
from tests.training.engine.plain_steps import F64, SETTINGS, compiled, loss, residual


@pytest.mark.parametrize("inner", [5, 16])
@pytest.mark.parametrize("outer", [1, 2, 3, 5])
def test_pooling_gradient_matches_autograd(inner: int, outer: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, inner, generator=draw, dtype=F64, requires_grad=True)
    grad = torch.randn(4, 2, outer, generator=draw, dtype=F64)
    (wanted,) = torch.autograd.grad(nn.functional.adaptive_avg_pool1d(x, outer), x, grad)
    torch.testing.assert_close(pool_backward(grad, x.detach()), wanted, atol=1e-14, rtol=0)


def test_pooling_gradient_over_rows_matches_autograd() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 6, generator=draw, dtype=F64, requires_grad=True)
    grad = torch.randn(3, 3, 4, generator=draw, dtype=F64)
    (wanted,) = torch.autograd.grad(nn.functional.adaptive_avg_pool2d(x, (3, 4)), x, grad)
    torch.testing.assert_close(pool_backward(grad, x.detach()), wanted, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("operator", "shapes"),
    [
        ("mm", [(3, 4), (4, 5)]),
        ("bmm", [(2, 3, 4), (2, 4, 5)]),
        ("addmm", [(5,), (3, 4), (4, 5)]),
        ("baddbmm", [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
        ("mv", [(3, 4), (4,)]),
        ("dot", [(4,), (4,)]),
    ],
)
def test_decomposed_products_match_the_operators(
    operator: str, shapes: list[tuple[int, ...]]
) -> None:
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=draw, dtype=F64) for shape in shapes]
    written = decompositions("rows")[getattr(torch.ops.aten, operator).default]
    torch.testing.assert_close(
        written(*given), getattr(torch, operator)(*given), atol=1e-14, rtol=0
    )


def test_extern_keeps_matrix_products() -> None:
    assert set(decompositions("extern")) == {torch.ops.aten._adaptive_avg_pool2d_backward.default}


class Ties(nn.Module):
    """Does something to `x` before a linear layer."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.linear, self.spare = change, nn.Linear(5, 1), None

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.change(x)).squeeze(-1)


class RunningMean(nn.Module):
    """Assigns its buffer anew, which leaves the old tensor as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return x - self.mean


class InstanceNorm(nn.Module):
    """Keeps running statistics, and does not count the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(1, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unsqueeze(1)).squeeze(1)


class Spare(nn.Linear):
    """Holds a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__(5, 1)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), *modules, nn.Linear(5, 1), nn.Flatten(0))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            chain(nn.BatchNorm1d(5)),
            r"1 \(BatchNorm1d\) changes its buffers running_mean, running_var",
        ),
        (chain(InstanceNorm()), r"1.norm \(InstanceNorm1d\) changes its buffers running_mean"),
        (chain(RunningMean()), r"1 \(RunningMean\) changes its buffers mean"),
        (chain(nn.RReLU()), r"1 \(RReLU\) draws random numbers"),
        (chain(nn.AlphaDropout(0.1)), r"1 \(AlphaDropout\) draws random numbers"),
        (Ties(lambda x: x + torch.randn_like(x)), r"the net \(Ties\) draws random numbers"),
        (Ties(lambda x: x * 2 if x.sum() > 0 else x), "it cannot be traced .*DataDependent"),
        (Ties(lambda x: x * torch.tensor([1.0] * 5)), "made from numbers inside the step"),
        (
            Ties(lambda x: torch.linalg.svd(x)[0][:, :5] + x),
            r"no generated kernel \(torch.ops.aten._linalg_svd",
        ),
        (Spare(), "the loss does not depend on unused"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else None,
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_net_that_cannot_be_compiled_raises_and_names_the_module(
    net: nn.Module, message: str
) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UnsupportedStepError, match=rf"{message}.*Use engine=plain") as raised:
        compiled(net)
    assert raised.type is UnsupportedStepError  # not a change of torch
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_loss_that_draws_random_numbers_raises() -> None:
    def noisy(forecast: Tensor, target: Tensor) -> Tensor:
        return loss(forecast, target + torch.randn_like(target))

    with pytest.raises(UnsupportedStepError, match=r"the step draws random numbers \(aten.randn"):
        StepLoop(
            residual([8]), link=sigmoid, loss=noisy, batch_size=16, features=5, settings=SETTINGS
        )


def test_parameters_of_two_dtypes_raise() -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1).double())
    with pytest.raises(
        UnsupportedStepError, match=r"several dtypes .*torch.float32.*torch.float64"
    ):
        compiled(net)


def doubled(by: float) -> Callable[[LoopInputs], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    return lambda inputs: ((inputs.carry[0] * by,), (inputs.carry[0].sum(),))


def test_text_of_a_step_changes_only_with_its_numbers_shapes_and_roles() -> None:
    def text(by: float, length: int, *, moving: bool = False) -> str:
        spare = (torch.zeros(2),)
        inputs = LoopInputs(
            (torch.zeros(length),), spare if moving else (), (), () if moving else spare
        )
        return trace_step(doubled(by), inputs, (torch.zeros(()),), matmul="rows").text()

    assert text(2.0, 3) == text(2.0, 3)
    assert len({text(2.0, 3), text(2.5, 3), text(2.0, 4), text(2.0, 3, moving=True)}) == 4
