import pytest

from robust_fin.runtime.devices import Device, Machine
from robust_fin.runtime.machine_checks import (
    BAD,
    NOTE,
    OK,
    RULES,
    MachineFinding,
    MachineState,
    find_known_problems,
)
from tests.runtime.test_devices import CPU_ONLY, machine

PAIR = "expandable_segments:True,max_split_size_mb:128"


def findings(there: Machine = CPU_ONLY, threads: int = 1, **environ: str) -> list[MachineFinding]:
    return find_known_problems(MachineState(environ, there, threads, {}))


def test_a_clean_shell_breaks_no_rule() -> None:
    assert findings() == [MachineFinding("known-bad settings", OK, f"none of {len(RULES)} kinds")]
    fine = {
        "HIP_VISIBLE_DEVICES": "0,1",
        "PYTORCH_ROCM_ARCH": "gfx1030;gfx1100",
        "PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:128",
        "CUDA_LAUNCH_BLOCKING": "0",
        "OMP_NUM_THREADS": "16",
        "SLURM_NTASKS": "1",
    }
    assert [one.status for one in findings(machine("rocm", 2), 16, **fine)] == [OK]


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
def test_a_bad_setting_of_the_shell_is_named_with_its_remedy(
    environ: dict[str, str], check: str, status: str, remedy: str
) -> None:
    (found,) = findings(**environ)
    assert (found.check, found.status) == (check, status)
    assert remedy in found.remedy


def test_more_threads_than_cores() -> None:
    (found,) = findings(threads=3)
    assert found.status == BAD
    assert found.found.startswith("3, with 2 cores for this process")
    assert found.remedy.startswith("threads=1")


def test_kernels_for_another_card() -> None:
    (found,) = findings(machine("rocm", 2), PYTORCH_ROCM_ARCH="gfx1030")
    assert found.found.startswith("gfx1030, and the devices are gfx1100")
    assert "hardware.arch=gfx1100" in found.remedy
    assert findings(machine("cuda", 2), PYTORCH_ROCM_ARCH="gfx1030")[0].status == OK


def test_two_kinds_of_cards_need_both_names() -> None:
    cards = (Device("cuda:0", "a", 20.0, "gfx1100"), Device("cuda:1", "b", 16.0, "gfx1030"))
    there = Machine("2.13.0+rocm7.2", "rocm", cards, 16)
    (found,) = findings(there, PYTORCH_ROCM_ARCH="gfx1100")
    assert "export PYTORCH_ROCM_ARCH='gfx1030;gfx1100'" in found.remedy
    assert findings(there, PYTORCH_ROCM_ARCH="gfx1100;gfx1030")[0].status == OK


def test_fewer_devices_than_the_shell_names() -> None:
    (found,) = findings(machine("rocm", 1), HIP_VISIBLE_DEVICES="0,1")
    assert found.found == "0,1 names 2 devices, and torch sees 1"


@pytest.mark.parametrize(
    ("there", "files", "status", "remedy"),
    [
        (CPU_ONLY, {"rocm": True}, NOTE, "install torch's ROCm build"),
        (CPU_ONLY, {"cuda": True}, NOTE, "install torch's CUDA build"),
        (machine("rocm", 0), {"rocm": False}, BAD, "usermod -aG render,video"),
        (machine("cuda", 1), {"rocm": True}, NOTE, "install torch's ROCm build"),
    ],
)
def test_a_card_that_is_not_used(
    there: Machine, files: dict[str, bool], status: str, remedy: str
) -> None:
    (found,) = find_known_problems(MachineState({}, there, 1, files))
    assert found.status == status
    assert remedy in found.remedy


def test_another_version_of_torch_is_noted() -> None:
    (found,) = findings(Machine("2.14.1+cpu", None, (), 2))
    assert (found.check, found.status) == ("torch", NOTE)
    assert found.found.startswith("2.14.1+cpu; engine=compiled is tested with 2.13")


def test_everything_that_is_broken_is_said() -> None:
    found = findings(threads=8, CUDA_LAUNCH_BLOCKING="1", PYTORCH_ALLOC_CONF=PAIR)
    assert [one.check for one in found] == ["PYTORCH_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING", "threads"]
