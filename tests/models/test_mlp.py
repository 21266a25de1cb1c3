"""The nets of models/mlp.py against forward passes in NumPy."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from robust_fin.models.mlp import PreNormMLP, ResidualMLP, identity, resize_features, sigmoid
from robust_fin.training.module import parameter_count
from tests.bars import config, instantiate

RESIDUAL = {
    "features": 5,
    "hidden": [16, 8],
    "layer_norm": True,
    "input_norm": True,
    "dropout": 0.1,
}
PRENORM = {
    "features": 5, "width": 6, "blocks": 2, "expansion": 2, "activation": "silu", "dropout": 0.1,
    "head_start": None,
}  # fmt: skip


def layer_norm(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    """Apply a LayerNorm in NumPy."""
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    """Apply a linear layer in NumPy."""
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def with_random_parameters(net: ResidualMLP) -> ResidualMLP:
    """Add noise to every parameter, because weight 1 and bias 0 would hide an unused LayerNorm."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.double().eval()


@pytest.mark.parametrize("residual", [False, True])
def test_residual_mlp_matches_numpy(residual: bool) -> None:
    torch.manual_seed(0)
    net = with_random_parameters(ResidualMLP(**RESIDUAL, residual=residual, head_start=None))
    rows = np.random.default_rng(1).normal(size=(7, 5))
    (first, norm1, _, _), (second, norm2, _, _) = net.blocks
    x = layer_norm(rows, net.input_norm)
    a = np.maximum(layer_norm(linear(x, first), norm1), 0)
    if residual:
        a = a + np.concatenate([x, np.zeros((7, 11))], axis=1)
    b = np.maximum(layer_norm(linear(a, second), norm2), 0)
    if residual:
        b = b + a.reshape(7, 8, 2).mean(axis=2)
    expected = linear(b, net.head)[:, 0]
    np.testing.assert_allclose(net(torch.from_numpy(rows)).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("residual", [False, True])
def test_nets_of_the_study_have_299_parameters(residual: bool) -> None:
    assert parameter_count(ResidualMLP(**RESIDUAL, residual=residual, head_start=None)) == 299


@pytest.mark.parametrize(
    ("hidden", "count"),
    [([32, 16, 8], 987), ([128, 64, 32], 11_595), ([7], 5 * 7 + 7 + 14 + 8 + 10)],
)
def test_hidden_sets_width_and_depth(hidden: list[int], count: int) -> None:
    net = ResidualMLP(**RESIDUAL | {"hidden": hidden}, residual=True, head_start=None)
    assert parameter_count(net) == count
    assert net(torch.zeros(3, 5)).shape == (3,)


@pytest.mark.parametrize("residual", [False, True])
def test_block_without_layer_norm_is_linear_relu_dropout(residual: bool) -> None:
    plain = RESIDUAL | {"layer_norm": False, "input_norm": False}
    net = with_random_parameters(ResidualMLP(**plain, residual=residual, head_start=None))
    assert parameter_count(net) == 5 * 16 + 16 + 16 * 8 + 8 + 8 + 1  # 299 less 10, 32 and 16
    assert not any(isinstance(module, nn.LayerNorm) for module in net.modules())
    x = np.random.default_rng(1).normal(size=(7, 5))
    a = np.maximum(linear(x, net.blocks[0][0]), 0)
    a = a + np.concatenate([x, np.zeros((7, 11))], axis=1) if residual else a
    b = np.maximum(linear(a, net.blocks[1][0]), 0)
    b = b + a.reshape(7, 8, 2).mean(axis=2) if residual else b
    expected = linear(b, net.head)[:, 0]
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)


def test_plain_mlp_has_no_layer_norm_and_no_skip_connections() -> None:
    net = instantiate(config("model=plain_mlp").model, features=5)
    assert (net.residual, parameter_count(net)) == (False, 241)
    default = instantiate(config("model=residual_mlp").model, features=5)
    assert (default.residual, parameter_count(default)) == (True, 289)


def test_residual_changes_the_output_but_not_the_parameters() -> None:
    torch.manual_seed(0)
    plain = ResidualMLP(**RESIDUAL, residual=False, head_start=None).eval()
    with_skips = ResidualMLP(**RESIDUAL, residual=True, head_start=None).eval()
    with_skips.load_state_dict(plain.state_dict())
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(plain(x), with_skips(x))


def test_resize_features_pads_with_zeros_or_averages() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert resize_features(x, 4).tolist() == [[1, 2, 3, 4]]
    assert resize_features(x, 6).tolist() == [[1, 2, 3, 4, 0, 0]]
    assert resize_features(x, 2).tolist() == [[1.5, 3.5]]
    # adaptive pooling with windows 0-1, 1-2 and 2-3
    assert resize_features(x, 3).tolist() == [[1.5, 2.5, 3.5]]


def test_kaiming_initialisation_scales_with_the_number_of_inputs() -> None:
    torch.manual_seed(0)
    wide = {"features": 400, "hidden": [300], "input_norm": False}
    net = ResidualMLP(**RESIDUAL | wide, residual=False, head_start=None)
    first = net.blocks[0][0]
    assert first.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert first.bias.abs().max().item() == 0


def test_head_start_is_the_initial_forecast() -> None:
    net = ResidualMLP(**RESIDUAL, residual=True, head_start=0.5)
    assert net(torch.randn(6, 5)).tolist() == [0.5] * 6


def test_score_of_a_row_does_not_depend_on_other_rows() -> None:
    net = with_random_parameters(ResidualMLP(**RESIDUAL, residual=True, head_start=None))
    x = torch.randn(8, 5, dtype=torch.float64)
    changed = x.clone()
    changed[1:] *= 1e6
    assert net(x)[0] == net(changed)[0]


@pytest.mark.parametrize("hidden", [[], [8, 0]])
def test_invalid_widths_raise(hidden: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"^model\.hidden={re.escape(str(hidden))} must have"):
        ResidualMLP(**RESIDUAL | {"hidden": hidden}, residual=True, head_start=None)


def test_links_return_the_score_or_its_sigmoid() -> None:
    raw = torch.tensor([-2.0, 0.0, 3.0])
    assert identity(raw) is raw
    np.testing.assert_allclose(sigmoid(raw), 1 / (1 + np.exp(-raw.numpy())), rtol=1e-6)


def test_prenorm_mlp_matches_numpy() -> None:
    torch.manual_seed(0)
    net = PreNormMLP(**PRENORM)
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


def test_prenorm_mlp_parameter_count() -> None:
    block = 2 * 6 + (6 * 12 + 12) + (12 * 6 + 6)
    net = PreNormMLP(**PRENORM)
    assert sum(p.numel() for p in net.parameters()) == (5 * 6 + 6) + 2 * block + 2 * 6 + (6 + 1)


def test_prenorm_block_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 5)
    net = PreNormMLP(**PRENORM).eval()
    assert torch.equal(net(x), net.head(net.norm(net.stem(x))).squeeze(-1))


def test_head_start_is_the_initial_forecast_of_prenorm_mlp() -> None:
    net = PreNormMLP(**(PRENORM | {"head_start": 0.5}))
    assert net(torch.randn(4, 5)).tolist() == [0.5] * 4


@pytest.mark.parametrize(("name", "value"), [("width", 0), ("blocks", -1), ("expansion", 0)])
def test_too_small_size_raises(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{name}={value} must be >= {value + 1}$"):
        PreNormMLP(**(PRENORM | {name: value}))


def test_unknown_activation_raises() -> None:
    with pytest.raises(ValueError, match=r"model.activation=tanh must be one of gelu, relu, silu"):
        PreNormMLP(**(PRENORM | {"activation": "tanh"}))
