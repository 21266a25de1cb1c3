"""The trained net, or the members of a population, and their forecasts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

SCORE_BLOCK = 4096  # a row's score depends, in the last bit, on the size of the batch it is in
MEMBER_BLOCK = 16  # members scored together, for the same reason always as many
Link = Callable[[Tensor], Tensor]
Scores = Float[np.ndarray, "*rows"]
ToRank = Callable[[Scores], Scores]


def score_rows(
    net: nn.Module, link: Link, x: Float[Tensor, "rows features"]
) -> Float[np.ndarray, " rows"]:
    """Forecasts as they leave the link, row by row the same whatever else is in `x`, to the bit.

    Args:
        net: put in evaluation mode here.
        link: raw score -> forecast.
        x: transformed features, float32, on the CPU.
    """
    net = net.eval().cpu()
    return _in_blocks(lambda block: link(net(block)).unsqueeze(0), x, members=1)[0]


@dataclass(frozen=True, slots=True)
class Nets:
    """One net, or the members of a population of its architecture.

    Attributes:
        net: with its weights; of a population, only the architecture counts.
        link: raw score -> forecast.
        to_rank: forecast -> rank units, which every figure and table is in.
        stack: of a population, every entry of the state dict with a leading axis of members.
    """

    net: nn.Module
    link: Link
    to_rank: ToRank
    stack: Mapping[str, Float[Tensor, "members ..."]] | None = None

    @property
    def members(self) -> int:
        """How many."""
        return 1 if self.stack is None else len(next(iter(self.stack.values())))

    def scores(
        self, x: Float[Tensor, "rows features"]
    ) -> Iterator[Float[np.ndarray, "members rows"]]:
        """Forecasts in rank units, a few members at a time: memory does not grow with their number.

        Args:
            x: transformed features, float32, on the CPU.
        """
        if self.stack is None:
            yield self.to_rank(score_rows(self.net, self.link, x)[None])
            return
        for first in range(0, self.members, MEMBER_BLOCK):
            yield self.to_rank(self._block_scores(first, x))

    def _block_scores(
        self, first: int, x: Float[Tensor, "rows features"]
    ) -> Float[np.ndarray, "members rows"]:
        assert self.stack is not None
        net = self.net.eval().cpu()
        taken = {
            name: _filled(one[first : first + MEMBER_BLOCK]) for name, one in self.stack.items()
        }
        count = min(MEMBER_BLOCK, self.members - first)

        def one(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
            return self.link(functional_call(net, weights, (rows,)))

        both = vmap(one, in_dims=(0, None))
        return _in_blocks(lambda rows: both(taken, rows), x, members=MEMBER_BLOCK)[:count]


def _filled(part: Float[Tensor, "members ..."]) -> Float[Tensor, "block ..."]:
    """As many members as a block has, the last one repeated."""
    missing = MEMBER_BLOCK - len(part)
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part


def _in_blocks(
    score: Callable[[Tensor], Tensor], x: Float[Tensor, "rows features"], *, members: int
) -> Float[np.ndarray, "members rows"]:
    """Scores in blocks of one size, the last one padded."""
    out = torch.empty(members, len(x), dtype=torch.float32)
    with torch.inference_mode():
        for start in range(0, len(x), SCORE_BLOCK):
            rows = x[start : start + SCORE_BLOCK]
            block = torch.zeros(SCORE_BLOCK, x.shape[1])
            block[: len(rows)] = rows
            out[:, start : start + len(rows)] = score(block)[:, : len(rows)]
    return out.numpy()
