"""Live memory, read again after others have come and gone: an allocator must leave it alone.

Some allocators hand out memory that is in use, or unmap it, when blocks above their largest split
size are taken and given back while small ones stay: the pattern of `churn`. The damage is silent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int32
from torch import Tensor

_WORD = 4  # bytes of an int32


@dataclass(frozen=True, slots=True)
class Churn:
    """How much memory comes and goes.

    Attributes:
        live_bytes: of the first block that stays.
        block_bytes: taken and given back in every cycle; above any largest split size in use.
        fence_bytes: taken in every cycle, after the large block; it stays.
        cycles: at most.
    """

    live_bytes: int
    block_bytes: int
    fence_bytes: int
    cycles: int

    @classmethod
    def of(cls, device: torch.device) -> "Churn":
        """Small on the CPU; on a device as much as fills its memory, if none of it came back."""
        if device.type == "cpu":
            return cls(2**22, 2**22, 2**16, cycles=64)
        total = torch.cuda.get_device_properties(device).total_memory
        block = 138 * 2**20
        return cls(2**26, block, 2**16, cycles=min(2_000, int(1.3 * total / block)))


class Canary:
    """Blocks with known content on a device.

    Args:
        device: whose allocator is watched.
    """

    def __init__(self, device: torch.device) -> None:
        """No block yet."""
        self.device = device
        self.blocks: list[Int32[Tensor, " words"]] = []

    def keep(self, size: int) -> None:
        """Take a block of so many bytes, and fill it with numbers of its own."""
        self.blocks.append(self._content(len(self.blocks), size // _WORD).to(self.device))

    def damaged_bytes(self) -> int:
        """Bytes of the live blocks that are no longer what was written, read on the CPU."""
        wrong = 0
        for number, block in enumerate(self.blocks):
            differs = block.cpu() != self._content(number, len(block))
            wrong += _WORD * int(differs.sum())
        return wrong

    @staticmethod
    def _content(number: int, words: int) -> Int32[Tensor, " words"]:
        """Never zero, which is what unmapped memory reads as."""
        return torch.arange(words, dtype=torch.int32) % 65_521 + 1 + number * 65_536


def damage_after_churn(device: torch.device, churn: Churn) -> tuple[int, int]:
    """Damaged bytes, and the cycles done when they were seen or the memory was full."""
    canary = Canary(device)
    canary.keep(churn.live_bytes)
    done = 0
    for done in range(1, churn.cycles + 1):
        try:
            block = torch.full((churn.block_bytes,), 255, dtype=torch.uint8, device=device)
            canary.keep(churn.fence_bytes)
        except torch.OutOfMemoryError:
            break
        del block
        if done % 16 == 0 and (damage := canary.damaged_bytes()):
            return damage, done
    return canary.damaged_bytes(), done
