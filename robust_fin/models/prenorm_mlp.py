"""Residual blocks whose LayerNorm stands before the layers, so that the sum itself stays linear."""

from jaxtyping import Float
from torch import Tensor, nn

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
            _block(width, expansion * width, activation, dropout) for _ in range(blocks)
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


def _block(width: int, inner: int, activation: str, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, inner),
        ACTIVATIONS[activation](),
        nn.Dropout(dropout),
        nn.Linear(inner, width),
    )
