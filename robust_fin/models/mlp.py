"""Row nets, the residual and the pre-norm multilayer perceptron, and the links for their scores."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def identity(score: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return the raw score as the forecast."""
    return score


def sigmoid(score: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return the forecast whose logit is the raw score; it lies in (0, 1)."""
    return torch.sigmoid(score)


class ResidualMLP(nn.Module):
    """Multilayer perceptron whose blocks are Linear, LayerNorm, ReLU and Dropout.

    LayerNorm needs no running statistics, so the score of a row depends on that row alone.

    Shape:
        in:  (batch, features), each feature scaled on the training fold
        out: (batch,), raw scores, unbounded; the link converts them to forecasts

    Args:
        features: number of inputs per row.
        hidden: width of each block, >= 1.
        residual: add the input of each block to its output; `resize_features` matches the widths.
        layer_norm: use a LayerNorm in each block.
        input_norm: use a LayerNorm before the first block.
        dropout: probability of zeroing an activation in training, in [0, 1).
        head_start: initial forecast: the output layer starts with weight 0 and this bias. None
            initialises the output layer like the other layers.

    Raises:
        ValueError: `hidden` is empty or contains a width below 1.

    Source: He et al. (2015), arXiv:1502.01852 (initialisation), arXiv:1512.03385 (residual
    connections); Ba et al. (2016), arXiv:1607.06450 (LayerNorm).
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: Sequence[int],
        residual: bool,
        layer_norm: bool,
        input_norm: bool,
        dropout: float,
        head_start: float | None,
    ) -> None:
        """Create and initialise the layers."""
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(
                f"model.hidden={list(hidden)} must have at least one width, and each must be >= 1"
            )
        widths = [features, *hidden]
        self.input_norm = nn.LayerNorm(features) if input_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            _residual_block(inner, outer, dropout, layer_norm=layer_norm)
            for inner, outer in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], 1)
        self.residual = residual
        _initialise_linear(self)
        _start_at(self.head, head_start)

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Return one raw score per row."""
        x = self.input_norm(x)
        for block in self.blocks:
            out = block(x)
            x = out + resize_features(x, out.shape[-1]) if self.residual else out
        return self.head(x).squeeze(-1)


class PreNormMLP(nn.Module):
    """Multilayer perceptron with pre-norm residual blocks of constant width.

    Each block is LayerNorm, Linear, activation, Dropout and Linear, and is added to its input. The
    last Linear of a block starts at 0, so that the untrained net is linear in the features up to
    the final LayerNorm, and gradients reach every block undamped.

    Shape:
        in:  (batch, features), each feature scaled on the training fold
        out: (batch,), raw scores, unbounded; the link converts them to forecasts

    Args:
        features: number of inputs per row.
        width: width between the blocks, >= 1.
        blocks: number of blocks, >= 0.
        expansion: hidden width of a block as a multiple of `width`, >= 1.
        activation: relu, silu or gelu.
        dropout: probability of zeroing an activation in training, in [0, 1).
        head_start: initial forecast: the output layer starts with weight 0 and this bias. None
            initialises the output layer like the other layers.

    Raises:
        ValueError: a size is too small, or the activation is unknown.

    Source: Xiong et al. (2020), arXiv:2002.04745 (LayerNorm before the layers); He et al. (2015),
    arXiv:1502.01852 (initialisation).
    """

    def __init__(
        self,
        features: int,
        *,
        width: int,
        blocks: int,
        expansion: int,
        activation: str,
        dropout: float,
        head_start: float | None,
    ) -> None:
        """Create and initialise the layers."""
        super().__init__()
        for name, value, least in (
            ("width", width, 1), ("blocks", blocks, 0), ("expansion", expansion, 1)
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"model.{name}={value} must be >= {least}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"model.activation={activation} must be one of {', '.join(sorted(ACTIVATIONS))}"
            )
        self.stem = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            _prenorm_block(width, expansion * width, activation, dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        _initialise_linear(self)
        for block in self.blocks:
            last = list(block.children())[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)  # each block starts as the identity
        _start_at(self.head, head_start)

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Return one raw score per row."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x)).squeeze(-1)


def resize_features(x: Float[Tensor, "batch inner"], width: int) -> Float[Tensor, "batch outer"]:
    """Resize the last dimension of `x` to `width` without parameters.

    Appends zeros to widen and applies adaptive average pooling to narrow. Returns `x` itself if it
    already has that width.
    """
    inner = x.shape[-1]
    if inner == width:
        return x
    if inner < width:
        return nn.functional.pad(x, (0, width - inner))
    return nn.functional.adaptive_avg_pool1d(x.unsqueeze(1), width).squeeze(1)


def _initialise_linear(net: nn.Module) -> None:
    """Initialise every linear layer: Kaiming normal weights, zero biases."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)


def _start_at(head: nn.Linear, forecast: float | None) -> None:
    """Make the output layer return `forecast` for every input; None leaves it unchanged."""
    if forecast is not None:
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, forecast)


def _residual_block(inner: int, outer: int, dropout: float, *, layer_norm: bool) -> nn.Sequential:
    norm = nn.LayerNorm(outer) if layer_norm else nn.Identity()
    return nn.Sequential(nn.Linear(inner, outer), norm, nn.ReLU(), nn.Dropout(dropout))


def _prenorm_block(width: int, inner: int, activation: str, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, inner),
        ACTIVATIONS[activation](),
        nn.Dropout(dropout),
        nn.Linear(inner, width),
    )
