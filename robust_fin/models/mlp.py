"""Row nets: residual and pre-norm multilayer perceptrons; and links, applied to their scores."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def identity(score: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The raw score is the forecast."""
    return score


def sigmoid(score: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The raw score is the logit of the forecast, which then lies in (0, 1)."""
    return torch.sigmoid(score)


class ResidualMLP(nn.Module):
    """One raw score a row.

    Why LayerNorm: it needs no running statistics, so a row's score depends on that row alone.

    Shape:
        in:  (batch, features), each feature scaled on the training fold
        out: (batch,), unbounded; the link decides what it means

    Args:
        features: inputs a row.
        hidden: width of each block.
        residual: add the block's input, fitted to its width without parameters, to its output.
        layer_norm: the LayerNorm of each block.
        input_norm: a LayerNorm over the inputs before the first block.
        dropout: share of activations zeroed in training.
        head_start: None starts the last layer like the others (Kaiming). A number starts it with
            weight 0 and that bias, so that the first forecast is this constant.

    Source: He et al. (2015), arXiv:1502.01852 (initialisation), arXiv:1512.03385 (skips); Ba et al.
    (2016), arXiv:1607.06450 (LayerNorm).
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
        """Build and initialise the layers."""
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(f"model.hidden={list(hidden)} must name at least one width, each >= 1")
        widths = [features, *hidden]
        self.input_norm = nn.LayerNorm(features) if input_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            _block(inner, outer, dropout, layer_norm=layer_norm)
            for inner, outer in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], 1)
        self.residual = residual
        self._initialise(head_start)

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Raw scores."""
        x = self.input_norm(x)
        for block in self.blocks:
            out = block(x)
            x = out + skip(x, out.shape[-1]) if self.residual else out
        return self.head(x).squeeze(-1)

    def _initialise(self, head_start: float | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        if head_start is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, head_start)


def _block(inner: int, outer: int, dropout: float, *, layer_norm: bool) -> nn.Sequential:
    norm = nn.LayerNorm(outer) if layer_norm else nn.Identity()
    return nn.Sequential(nn.Linear(inner, outer), norm, nn.ReLU(), nn.Dropout(dropout))


def skip(x: Float[Tensor, "batch inner"], width: int) -> Float[Tensor, "batch outer"]:
    """`x` fitted to `width` without parameters.

    The identity where widths agree, zeros appended where it widens, adaptive average pooling where
    it narrows.
    """
    inner = x.shape[-1]
    if inner == width:
        return x
    if inner < width:
        return nn.functional.pad(x, (0, width - inner))
    return nn.functional.adaptive_avg_pool1d(x.unsqueeze(1), width).squeeze(1)


ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class PreNormMLP(nn.Module):
    """One raw score a row.

    Every block adds to a stream that runs from the first layer to the head: what is linear in the
    features reaches the head whatever the blocks do, and gradients reach every block undamped.

    Shape:
        in:  (batch, features), each feature scaled on the training fold
        out: (batch,), unbounded; the link decides what it means

    Args:
        features: inputs a row.
        width: of the stream.
        blocks: how many; each is LayerNorm - Linear - activation - Dropout - Linear.
        expansion: width inside a block, in widths of the stream.
        activation: relu, silu or gelu.
        dropout: share of activations zeroed in training.
        head_start: None starts the head like the other layers. A number starts it with weight 0
            and that bias, so that the first forecast is this constant.

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
        """Build and initialise the layers."""
        super().__init__()
        for name, value, least in (
            ("width", width, 1), ("blocks", blocks, 0), ("expansion", expansion, 1)
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"model.{name}={value} must be at least {least}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"model.activation={activation} is none of {', '.join(sorted(ACTIVATIONS))}"
            )
        self.stem = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            _prenorm_mlp_block(width, expansion * width, activation, dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        self._initialise(head_start)

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Raw scores."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x)).squeeze(-1)

    def _initialise(self, head_start: float | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            last = list(block.children())[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)  # a block starts as nothing, and grows where it helps
        if head_start is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, head_start)


def _prenorm_mlp_block(width: int, inner: int, activation: str, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, inner),
        ACTIVATIONS[activation](),
        nn.Dropout(dropout),
        nn.Linear(inner, width),
    )
