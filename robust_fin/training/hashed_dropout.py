"""Dropout whose mask is a function of (seed, step, position) instead of a generator's state.

A generator cannot run inside a compiled loop, and its masks depend on what was drawn before. A
counter-based mask is the same in eager and compiled code, and the same after a resume.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# odd multipliers; those above 2^31 - 1 as the int32 of the same bits
FIRST, SECOND, STRIDE = 0x7FEB352D, 0x846CA68B - 2**32, 0x9E3779B1 - 2**32
SEED_KEY = 0x1234567
BITS = 24  # of the hash that a rate is compared with


def hash32(counter: Int[Tensor, "*shape"], key: Int[Tensor, "*keys"]) -> Int[Tensor, "*out"]:
    """Mix a counter and a key into 32 bits; int32 arithmetic that wraps, broadcast like a sum.

    Source: the multipliers 0x7feb352d and 0x846ca68b are Wellons' (2018), "Prospecting for hash
    functions"; the counter's is 2^32 over the golden ratio.
    """
    bits = counter * STRIDE
    bits = (bits ^ _shift(bits, 16)) * FIRST + key
    bits = (bits ^ _shift(bits, 15)) * SECOND
    return bits ^ _shift(bits, 16)


def _shift(bits: Int[Tensor, "*shape"], places: int) -> Int[Tensor, "*shape"]:
    """Logical shift to the right; the one of int32 copies the sign."""
    return (bits >> places) & ((1 << (32 - places)) - 1)


def step_keys(seed: int, *, first_step: int, steps: int) -> Int[Tensor, " steps"]:
    """One int32 key a step, from which the step's masks follow.

    Args:
        seed: of the run or member; its low 32 bits count.
        first_step: optimizer steps done before.
        steps: how many keys.
    """
    counter = torch.arange(first_step, first_step + steps).to(torch.int32)
    start = torch.tensor(seed & 0xFFFFFFFF).to(torch.int32)
    return hash32(counter, hash32(start, torch.tensor(SEED_KEY, dtype=torch.int32)))


class HashedDropout(TorchFunctionMode):
    """Within it, F.dropout and nn.Dropout take their masks from `hash32(position, key)`.

    Positions count on from one dropout call to the next, so enter it anew for each forward pass.

    Args:
        key: int32, of the step.
        rate: share zeroed, in [0, 1), in place of each layer's own; None keeps theirs.
    """

    def __init__(self, key: Int[Tensor, ""], *, rate: Float[Tensor, ""] | None = None) -> None:
        """Start at position 0."""
        super().__init__()
        self._key, self._rate, self._position = key, rate, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer F.dropout, pass on everything else."""
        target = self._dropout if func is F.dropout else func
        return target(*args, **(kwargs or {}))

    def _dropout(
        self,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,  # noqa: ARG002 (the result is what counts)
    ) -> Tensor:
        if not training or (self._rate is None and p == 0.0):
            return input
        bits = self._draw(input)
        if self._rate is not None:
            kept = bits >= (self._rate * 2.0**BITS).to(torch.int32)
            scaled = input * (1.0 / (1.0 - self._rate))
        else:
            kept = bits >= int(p * 2**BITS)
            scaled = input * (1.0 / (1.0 - p) if p < 1 else 0.0)
        return torch.where(kept, scaled, torch.zeros((), dtype=input.dtype))

    def _draw(self, input: Tensor) -> Tensor:
        first, self._position = self._position, self._position + input.numel()
        at = torch.arange(first, self._position, dtype=torch.int32, device=input.device)
        return hash32(at.view(input.shape), self._key) & (2**BITS - 1)
