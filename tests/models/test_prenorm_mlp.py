import numpy as np
import pytest
import torch

from robust_fin.models.mlp import PreNormMLP
from tests.models.by_hand import layer_norm, linear

SETTINGS = {
    "features": 5, "width": 6, "blocks": 2, "expansion": 2, "activation": "silu", "dropout": 0.1,
    "head_start": None,
}  # fmt: skip


def test_the_forward_pass_layer_by_layer() -> None:
    torch.manual_seed(0)
    net = PreNormMLP(**SETTINGS)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    net = net.double().eval()
    rows = np.random.default_rng(1).normal(size=(7, 5))
    x = linear(rows, net.stem)
    for norm, first, _, _, second in net.blocks:
        inside = linear(layer_norm(x, norm), first)
        x = x + linear(inside / (1 + np.exp(-inside)), second)
    expected = linear(layer_norm(x, net.norm), net.head)[:, 0]
    assert net(torch.from_numpy(rows)).detach().numpy() == pytest.approx(expected, rel=1e-12)


def test_parameters_are_counted_by_hand() -> None:
    block = 2 * 6 + (6 * 12 + 12) + (12 * 6 + 6)
    net = PreNormMLP(**SETTINGS)
    assert sum(p.numel() for p in net.parameters()) == (5 * 6 + 6) + 2 * block + 2 * 6 + (6 + 1)


def test_a_block_starts_as_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 5)
    net = PreNormMLP(**SETTINGS).eval()
    assert torch.equal(net(x), net.head(net.norm(net.stem(x))).squeeze(-1))


def test_the_first_forecast_is_the_constant_asked_for() -> None:
    net = PreNormMLP(**(SETTINGS | {"head_start": 0.5}))
    assert net(torch.randn(4, 5)).tolist() == [0.5] * 4


@pytest.mark.parametrize(("name", "value"), [("width", 0), ("blocks", -1), ("expansion", 0)])
def test_a_size_that_is_none_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"model.{name}={value} must be at least"):
        PreNormMLP(**(SETTINGS | {name: value}))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.activation=tanh is none of gelu, relu, silu"):
        PreNormMLP(**(SETTINGS | {"activation": "tanh"}))
