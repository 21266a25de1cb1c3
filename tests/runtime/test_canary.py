import pytest
import torch

from robust_fin.runtime import machine_checks as canary
from robust_fin.runtime.machine_checks import AllocatorChurn, MemoryCanary, damage_after_churn

CPU = torch.device("cpu")


def test_every_word_has_a_number_of_its_own_and_none_is_zero() -> None:
    birds = MemoryCanary(CPU)
    for size in (40, 80):
        birds.keep(size)
    assert birds.blocks[0].tolist() == list(range(1, 11))
    assert birds.blocks[1].tolist() == [65_536 + one for one in range(1, 21)]
    assert birds.damaged_bytes() == 0


def test_memory_that_turns_into_zeros_is_counted_in_bytes() -> None:
    birds = MemoryCanary(CPU)
    birds.keep(4_000)
    birds.keep(4_000)
    birds.blocks[1][10:25] = 0
    assert birds.damaged_bytes() == 60


def test_blocks_that_are_swapped_are_seen() -> None:
    birds = MemoryCanary(CPU)
    birds.keep(400)
    birds.keep(400)
    birds.blocks.reverse()
    assert birds.damaged_bytes() == 800


def test_the_cpu_keeps_its_memory() -> None:
    churn = AllocatorChurn.of(CPU)
    assert damage_after_churn(CPU, churn) == (0, churn.cycles)


def test_damage_in_the_middle_ends_the_churn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(MemoryCanary):
        """Loses its first block as the 20th comes."""

        def keep(self, size: int) -> None:
            super().keep(size)
            if len(self.blocks) == 20:
                self.blocks[0].zero_()

    monkeypatch.setattr(canary, "MemoryCanary", Broken)
    churn = AllocatorChurn(live_bytes=1_024, block_bytes=4_096, fence_bytes=64, cycles=1_000)
    assert damage_after_churn(CPU, churn) == (1_024, 32)


def test_a_full_device_ends_the_churn_without_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(MemoryCanary):
        def keep(self, size: int) -> None:
            if len(self.blocks) == 5:
                raise torch.OutOfMemoryError
            super().keep(size)

    monkeypatch.setattr(canary, "MemoryCanary", Full)
    churn = AllocatorChurn(live_bytes=1_024, block_bytes=4_096, fence_bytes=64, cycles=1_000)
    assert damage_after_churn(CPU, churn) == (0, 5)
