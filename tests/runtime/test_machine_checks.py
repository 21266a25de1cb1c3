import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from robust_fin.runtime import machine_checks
from robust_fin.runtime.devices import Device, Machine
from robust_fin.runtime.machine_checks import (
    BAD,
    NOTE,
    OK,
    RULES,
    AllocatorChurn,
    MachineFinding,
    MachineState,
    MemoryCanary,
    check_all_reduce,
    check_sums,
    damage_after_churn,
    find_known_problems,
)
from robust_fin.runtime.rank_info import RankInfo
from tests.runtime.test_devices import CPU_ONLY, PAIR, machine

CPU = torch.device("cpu")


def findings(
    available: Machine = CPU_ONLY, threads: int = 1, **environ: str
) -> list[MachineFinding]:
    return find_known_problems(MachineState(environ, available, threads, {}))


def test_clean_environment_violates_no_rule() -> None:
    assert findings() == [MachineFinding("known-bad settings", OK, f"none of {len(RULES)} kinds")]
    harmless = {
        "HIP_VISIBLE_DEVICES": "0,1",
        "PYTORCH_ROCM_ARCH": "gfx1030;gfx1100",
        "PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:128",
        "CUDA_LAUNCH_BLOCKING": "0",
        "OMP_NUM_THREADS": "16",
        "SLURM_NTASKS": "1",
    }
    assert [one.status for one in findings(machine("rocm", 2), 16, **harmless)] == [OK]


@pytest.mark.parametrize(
    ("environ", "check", "status", "remedy"),
    [
        ({"PYTORCH_HIP_ALLOC_CONF": PAIR}, "PYTORCH_HIP_ALLOC_CONF", BAD, "keep one of the two"),
        ({"PYTORCH_ALLOC_CONF": PAIR}, "PYTORCH_ALLOC_CONF", BAD, "max_split_size_mb:128"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING", BAD, "unset CUDA_LAUNCH_BLOCKING"),
        ({"AMD_SERIALIZE_KERNEL": "3"}, "AMD_SERIALIZE_KERNEL", BAD, "unset AMD_SERIALIZE_KERNEL"),
        ({"PYTORCH_NO_HIP_MEMORY_CACHING": "1"}, "PYTORCH_NO_HIP_MEMORY_CACHING", BAD, "unset"),
        ({"NVIDIA_TF32_OVERRIDE": "1"}, "NVIDIA_TF32_OVERRIDE", BAD, "bf16-mixed"),
        ({"OMP_NUM_THREADS": "3"}, "OMP_NUM_THREADS", BAD, "export OMP_NUM_THREADS=1"),
        ({"MKL_NUM_THREADS": "64"}, "MKL_NUM_THREADS", BAD, "export MKL_NUM_THREADS=1"),
        (
            {"HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "1"},
            "HIP_VISIBLE_DEVICES",
            BAD,
            "unset CUDA_VISIBLE_DEVICES",
        ),
        ({"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}, "HSA_OVERRIDE_GFX_VERSION", NOTE, "rocminfo"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK", BAD, "unset LOCAL_RANK WORLD_SIZE"),
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS", BAD, "put srun before python"),
    ],
)
def test_bad_environment_variable_is_named_with_its_remedy(
    environ: dict[str, str], check: str, status: str, remedy: str
) -> None:
    (finding,) = findings(**environ)
    assert (finding.check, finding.status) == (check, status)
    assert remedy in finding.remedy


def test_more_threads_than_cores_are_bad() -> None:
    (finding,) = findings(threads=3)
    assert finding.status == BAD
    assert finding.found.startswith("3, with 2 cores for this process")
    assert finding.remedy.startswith("threads=1")


def test_kernels_for_another_gpu_are_bad() -> None:
    (finding,) = findings(machine("rocm", 2), PYTORCH_ROCM_ARCH="gfx1030")
    assert finding.found.startswith("gfx1030, and the devices are gfx1100")
    assert "hardware.arch=gfx1100" in finding.remedy
    assert findings(machine("cuda", 2), PYTORCH_ROCM_ARCH="gfx1030")[0].status == OK


def test_two_gpu_models_need_both_architectures() -> None:
    cards = (Device("cuda:0", "a", 20.0, "gfx1100"), Device("cuda:1", "b", 16.0, "gfx1030"))
    available = Machine("2.13.0+rocm7.2", "rocm", cards, 16)
    (finding,) = findings(available, PYTORCH_ROCM_ARCH="gfx1100")
    assert "export PYTORCH_ROCM_ARCH='gfx1030;gfx1100'" in finding.remedy
    assert findings(available, PYTORCH_ROCM_ARCH="gfx1100;gfx1030")[0].status == OK


def test_fewer_devices_than_visible_devices_names() -> None:
    (finding,) = findings(machine("rocm", 1), HIP_VISIBLE_DEVICES="0,1")
    assert finding.found == "0,1 names 2 devices, but torch sees 1"


@pytest.mark.parametrize(
    ("available", "files", "status", "remedy"),
    [
        (CPU_ONLY, {"rocm": True}, NOTE, "install torch's ROCm build"),
        (CPU_ONLY, {"cuda": True}, NOTE, "install torch's CUDA build"),
        (machine("rocm", 0), {"rocm": False}, BAD, "usermod -aG render,video"),
        (machine("cuda", 1), {"rocm": True}, NOTE, "install torch's ROCm build"),
    ],
)
def test_unused_gpu_is_reported(
    available: Machine, files: dict[str, bool], status: str, remedy: str
) -> None:
    (finding,) = find_known_problems(MachineState({}, available, 1, files))
    assert finding.status == status
    assert remedy in finding.remedy


def test_untested_torch_version_is_noted() -> None:
    (finding,) = findings(Machine("2.14.1+cpu", None, (), 2))
    assert (finding.check, finding.status) == ("torch", NOTE)
    assert finding.found.startswith("2.14.1+cpu; engine=compiled is tested with 2.13")


def test_every_violated_rule_is_reported() -> None:
    reported = findings(threads=8, CUDA_LAUNCH_BLOCKING="1", PYTORCH_ALLOC_CONF=PAIR)
    assert [one.check for one in reported] == [
        "PYTORCH_ALLOC_CONF",
        "CUDA_LAUNCH_BLOCKING",
        "threads",
    ]


def test_every_word_has_a_unique_nonzero_number() -> None:
    canary = MemoryCanary(CPU)
    for size in (40, 80):
        canary.keep(size)
    assert canary.blocks[0].tolist() == list(range(1, 11))
    assert canary.blocks[1].tolist() == [65_536 + word for word in range(1, 21)]
    assert canary.damaged_bytes() == 0


def test_zeroed_memory_is_counted_in_bytes() -> None:
    canary = MemoryCanary(CPU)
    canary.keep(4_000)
    canary.keep(4_000)
    canary.blocks[1][10:25] = 0
    assert canary.damaged_bytes() == 60


def test_swapped_blocks_are_detected() -> None:
    canary = MemoryCanary(CPU)
    canary.keep(400)
    canary.keep(400)
    canary.blocks.reverse()
    assert canary.damaged_bytes() == 800


def test_cpu_memory_is_not_damaged() -> None:
    churn = AllocatorChurn.of(CPU)
    assert damage_after_churn(CPU, churn) == (0, churn.cycles)


def test_damage_ends_the_churn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(MemoryCanary):
        """Zeroes its first block when the 20th is added."""

        def keep(self, size: int) -> None:
            super().keep(size)
            if len(self.blocks) == 20:
                self.blocks[0].zero_()

    monkeypatch.setattr(machine_checks, "MemoryCanary", Broken)
    churn = AllocatorChurn(live_bytes=1_024, block_bytes=4_096, fence_bytes=64, cycles=1_000)
    assert damage_after_churn(CPU, churn) == (1_024, 32)


def test_out_of_memory_ends_the_churn_without_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(MemoryCanary):
        def keep(self, size: int) -> None:
            if len(self.blocks) == 5:
                raise torch.OutOfMemoryError
            super().keep(size)

    monkeypatch.setattr(machine_checks, "MemoryCanary", Full)
    churn = AllocatorChurn(live_bytes=1_024, block_bytes=4_096, fence_bytes=64, cycles=1_000)
    assert damage_after_churn(CPU, churn) == (0, 5)


def exit_codes(count: int, folder: Path) -> list[int]:
    """Run `check_sums` in forked ranks; return the exit codes, 1 after a traceback."""
    context = multiprocessing.get_context("fork")
    infos = [RankInfo(k, count, k, f"file://{folder / 'store'}", "a test") for k in range(count)]
    ranks = [context.Process(target=check_sums, args=(info, "cpu")) for info in infos]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(60)
    return [int(one.exitcode or 0) for one in ranks]


def test_correct_sums_exit_with_0(tmp_path: Path) -> None:
    assert exit_codes(3, tmp_path) == [0, 0, 0]


def test_one_wrong_sum_fails_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def wrong_all_reduce(total: torch.Tensor) -> None:
        dist.all_gather([torch.empty_like(total) for _ in range(2)], total)
        total.mul_(3 / (dist.get_rank() + 1))[4711] += 1

    class WrongDist:
        all_reduce = staticmethod(wrong_all_reduce)

    monkeypatch.setattr(machine_checks, "dist", WrongDist)
    assert exit_codes(2, tmp_path) == [1, 1]
    assert "1 of 100,003 sums over 2 processes are wrong on cpu of rank 1" in capfd.readouterr().err


@pytest.mark.slow
def test_all_reduce_works_in_spawned_processes() -> None:
    assert check_all_reduce("cpu", processes=2) > 0
