import numpy as np
import pytest
import torch
from torch import nn

from robust_fin.models.mlp import ResidualMLP, identity, sigmoid, skip
from robust_fin.training.module import parameter_count
from tests.bars import config, instantiate
from tests.models.by_hand import layer_norm, linear

SETTINGS = {
    "features": 5,
    "hidden": [16, 8],
    "layer_norm": True,
    "input_norm": True,
    "dropout": 0.1,
}


def jittered(net: ResidualMLP) -> ResidualMLP:
    """LayerNorm starts at 1 and 0, where a forgotten weight or bias would not show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.double().eval()


@pytest.mark.parametrize("residual", [False, True])
def test_the_forward_pass_layer_by_layer(residual: bool) -> None:
    torch.manual_seed(0)
    net = jittered(ResidualMLP(**SETTINGS, residual=residual, head_start=None))
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
def test_both_forms_of_the_study_count_299_parameters(residual: bool) -> None:
    assert parameter_count(ResidualMLP(**SETTINGS, residual=residual, head_start=None)) == 299


@pytest.mark.parametrize(
    ("hidden", "count"),
    [([32, 16, 8], 987), ([128, 64, 32], 11_595), ([7], 5 * 7 + 7 + 14 + 8 + 10)],
)
def test_width_and_depth_are_free(hidden: list[int], count: int) -> None:
    net = ResidualMLP(**SETTINGS | {"hidden": hidden}, residual=True, head_start=None)
    assert parameter_count(net) == count
    assert net(torch.zeros(3, 5)).shape == (3,)


@pytest.mark.parametrize("residual", [False, True])
def test_without_layer_norm_a_block_is_linear_relu_dropout(residual: bool) -> None:
    plain = SETTINGS | {"layer_norm": False, "input_norm": False}
    net = jittered(ResidualMLP(**plain, residual=residual, head_start=None))
    assert parameter_count(net) == 5 * 16 + 16 + 16 * 8 + 8 + 8 + 1  # 299 less 10, 32 and 16
    assert not [one for one in net.modules() if isinstance(one, nn.LayerNorm)]
    x = np.random.default_rng(1).normal(size=(7, 5))
    a = np.maximum(linear(x, net.blocks[0][0]), 0)
    a = a + np.concatenate([x, np.zeros((7, 11))], axis=1) if residual else a
    b = np.maximum(linear(a, net.blocks[1][0]), 0)
    b = b + a.reshape(7, 8, 2).mean(axis=2) if residual else b
    expected = linear(b, net.head)[:, 0]
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)


def test_plain_mlp_is_the_net_without_both() -> None:
    net = instantiate(config("model=plain_mlp").model, features=5)
    assert (net.residual, parameter_count(net)) == (False, 241)
    usual = instantiate(config("model=residual_mlp").model, features=5)
    assert (usual.residual, parameter_count(usual)) == (True, 289)


def test_residual_changes_the_output_and_nothing_else() -> None:
    torch.manual_seed(0)
    plain = ResidualMLP(**SETTINGS, residual=False, head_start=None).eval()
    skipping = ResidualMLP(**SETTINGS, residual=True, head_start=None).eval()
    skipping.load_state_dict(plain.state_dict())
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(plain(x), skipping(x))


def test_the_skip_widens_with_zeros_and_narrows_by_averaging() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert skip(x, 4).tolist() == [[1, 2, 3, 4]]
    assert skip(x, 6).tolist() == [[1, 2, 3, 4, 0, 0]]
    assert skip(x, 2).tolist() == [[1.5, 3.5]]
    assert skip(x, 3).tolist() == [[1.5, 2.5, 3.5]]  # adaptive: windows 0-1, 1-2, 2-3


def test_kaiming_initialisation_scales_with_the_inputs() -> None:
    torch.manual_seed(0)
    wide = {"features": 400, "hidden": [300], "input_norm": False}
    net = ResidualMLP(**SETTINGS | wide, residual=False, head_start=None)
    first = net.blocks[0][0]
    assert first.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert first.bias.abs().max().item() == 0


def test_head_start_makes_the_first_forecast_that_constant() -> None:
    net = ResidualMLP(**SETTINGS, residual=True, head_start=0.5)
    assert net(torch.randn(6, 5)).tolist() == [0.5] * 6


def test_a_row_scores_the_same_whatever_its_neighbours() -> None:
    net = jittered(ResidualMLP(**SETTINGS, residual=True, head_start=None))
    x = torch.randn(8, 5, dtype=torch.float64)
    shocked = x.clone()
    shocked[1:] *= 1e6
    assert net(x)[0] == net(shocked)[0]


@pytest.mark.parametrize("hidden", [[], [8, 0]])
def test_impossible_widths_are_refused(hidden: list[int]) -> None:
    with pytest.raises(ValueError, match=r"model.hidden=\[.*\] must name at least one width"):
        ResidualMLP(**SETTINGS | {"hidden": hidden}, residual=True, head_start=None)


def test_links() -> None:
    raw = torch.tensor([-2.0, 0.0, 3.0])
    assert identity(raw) is raw
    np.testing.assert_allclose(sigmoid(raw), 1 / (1 + np.exp(-raw.numpy())), rtol=1e-6)
