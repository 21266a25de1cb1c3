"""Checks of a machine: known bad settings, allocator damage, and all-reduce between ranks."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Int32
from torch import Tensor

from robust_fin.runtime.devices import (
    ALLOCATOR,
    ARCH,
    BUILD,
    CUDA,
    GPU,
    MAKER,
    ROCM,
    VISIBLE,
    Machine,
    is_risky_pair,
)
from robust_fin.runtime.launcher import LAUNCHED, launch, launched_rank_info, read_task
from robust_fin.runtime.process_state import RankError, exit_with_parent, run_and_record_exit
from robust_fin.runtime.rank_info import RankInfo, process_group

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True, slots=True)
class MachineFinding:
    """One line of a report.

    Attributes:
        check: what was looked at.
        status: `ok`; `note`, which a run survives; or `bad`, which spoils runs or their speed.
        found: what is there.
        remedy: what to do; empty where all is well.
    """

    check: str
    status: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Only what is bad or noted has a remedy, and then it has one."""
        assert self.status in (OK, NOTE, BAD)
        assert bool(self.remedy) == (self.status != OK)


TESTED_TORCH = "2.13"
DEVICE_FILES = {ROCM: Path("/dev/kfd"), CUDA: Path("/dev/nvidiactl")}
BLOCKING = ("CUDA_LAUNCH_BLOCKING", "HIP_LAUNCH_BLOCKING", "AMD_SERIALIZE_KERNEL")
NO_CACHE = ("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING")
ROUNDING = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
STRAY = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class MachineState:
    """What the rules look at.

    Attributes:
        environ: of this process.
        machine: as torch sees it.
        threads: of torch, as a run would set them.
        files: device files that are there, by platform, and whether this user may open them.
    """

    environ: Mapping[str, str]
    machine: Machine
    threads: int
    files: Mapping[str, bool]

    def is_set(self, name: str) -> bool:
        """Whether a switch is on."""
        return self.environ.get(name, "0") not in ("", "0")


Rule = Callable[[MachineState], Iterator[MachineFinding]]


def device_files() -> dict[str, bool]:
    """Device files of this machine, and whether this user may open them."""
    found = {name: path for name, path in DEVICE_FILES.items() if path.exists()}
    return {name: os.access(path, os.R_OK | os.W_OK) for name, path in found.items()}


def find_known_problems(scene: MachineState) -> list[MachineFinding]:
    """Every rule that is broken, or one line that says how many hold."""
    broken = [one for rule in RULES for one in rule(scene)]
    return broken or [MachineFinding("known-bad settings", OK, f"none of {len(RULES)} kinds")]


def allocator_pair(scene: MachineState) -> Iterator[MachineFinding]:
    """Together they are reported to make live memory read back as zeros on ROCm."""
    for name in ALLOCATOR:
        if is_risky_pair(scene.environ.get(name, "")):
            yield MachineFinding(
                name,
                BAD,
                f"{scene.environ[name]}: together these are reported to turn live memory into "
                "zeros on some ROCm releases, and to fill the device on others",
                f"keep one of the two: export {name}=max_split_size_mb:128, or unset it and take "
                "hardware=rocm_dual",
            )


def waiting_launches(scene: MachineState) -> Iterator[MachineFinding]:
    """Every kernel is waited for."""
    for name in BLOCKING:
        if scene.is_set(name):
            yield MachineFinding(
                name,
                BAD,
                f"{scene.environ[name]}: the processor waits for every kernel, several times "
                "slower with small nets",
                f"unset {name}; it is for finding the kernel that fails",
            )


def no_caching(scene: MachineState) -> Iterator[MachineFinding]:
    """Every tensor asks the driver."""
    for name in NO_CACHE:
        if scene.is_set(name):
            yield MachineFinding(
                name, BAD, "every tensor asks the driver for memory", f"unset {name}"
            )


def rounded_products(scene: MachineState) -> Iterator[MachineFinding]:
    """Float32 products with ten bits."""
    for name in ROUNDING:
        if scene.is_set(name):
            yield MachineFinding(
                name,
                BAD,
                "float32 products are rounded to 10 bits (TF32), so runs differ from the CPU's",
                f"unset {name}; ask for speed with trainer.precision=bf16-mixed",
            )


def too_many_threads(scene: MachineState) -> Iterator[MachineFinding]:
    """More threads than cores wait for each other."""
    cores, given = scene.machine.cores, {"threads": str(scene.threads)}
    given |= {name: scene.environ[name] for name in THREADS if name in scene.environ}
    for name, value in given.items():
        if value.isdigit() and int(value) > cores:
            remedy = "threads=1" if name == "threads" else f"export {name}=1"
            yield MachineFinding(
                name,
                BAD,
                f"{value}, with {cores} cores for this process: threads wait for each other at "
                "every small kernel",
                f"{remedy}; nets this small are fastest with one thread a process",
            )


def contradicting_visibility(scene: MachineState) -> Iterator[MachineFinding]:
    """ROCm reads both names."""
    values = {name: scene.environ[name] for name in VISIBLE.values() if name in scene.environ}
    if scene.machine.platform != CUDA and len(set(values.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in values.items())
        yield MachineFinding(
            VISIBLE[ROCM],
            BAD,
            f"{said}: ROCm reads both, one after the other",
            f"unset {VISIBLE[CUDA]}",
        )


def missing_devices(scene: MachineState) -> Iterator[MachineFinding]:
    """Fewer devices than the shell names."""
    platform = scene.machine.platform
    if platform is None or not scene.environ.get(VISIBLE[platform], ""):
        return
    named, seen = scene.environ[VISIBLE[platform]].split(","), len(scene.machine.gpus)
    if len(named) != seen:
        yield MachineFinding(
            VISIBLE[platform],
            BAD,
            f"{','.join(named)} names {len(named)} devices, and torch sees {seen}",
            f"unset {VISIBLE[platform]} to see all; numbers count from 0 and end at the first that "
            "is not there",
        )


def other_arch(scene: MachineState) -> Iterator[MachineFinding]:
    """Kernels for other cards than those that are there."""
    gpus = scene.machine.gpus if scene.machine.platform == ROCM else ()
    there = sorted({one.arch for one in gpus})
    asked = [one.strip() for one in scene.environ.get(ARCH, "").split(";") if one.strip()]
    if asked and there and not set(there) <= set(asked):
        yield MachineFinding(
            ARCH,
            BAD,
            f"{';'.join(asked)}, and the devices are {', '.join(there)}: what is built runs on none"
            " or not on all of them",
            f"export {ARCH}='{';'.join(there)}', or hardware.arch={there[0]}",
        )
    if "HSA_OVERRIDE_GFX_VERSION" in scene.environ:
        yield MachineFinding(
            "HSA_OVERRIDE_GFX_VERSION",
            NOTE,
            f"{scene.environ['HSA_OVERRIDE_GFX_VERSION']}: kernels of another card are run",
            "unset it where rocminfo names a card that torch's build knows",
        )


def stray_rank(scene: MachineState) -> Iterator[MachineFinding]:
    """Lightning would take this process for one of several."""
    stray = [name for name in STRAY if name in scene.environ]
    if stray and "TORCHELASTIC_RUN_ID" not in scene.environ:
        yield MachineFinding(
            stray[0],
            BAD,
            f"{', '.join(stray)} set in the shell, and torchrun did not: Lightning takes a run for "
            "one of several processes",
            f"unset {' '.join(stray)}",
        )


def slurm_without_srun(scene: MachineState) -> Iterator[MachineFinding]:
    """The other tasks would be waited for."""
    tasks = scene.environ.get("SLURM_NTASKS", "1")
    if tasks != "1" and "SLURM_STEP_ID" not in scene.environ:
        yield MachineFinding(
            "SLURM_NTASKS",
            BAD,
            f"{tasks} tasks, and this process was started without srun",
            "put srun before python",
        )


def unused_device(scene: MachineState) -> Iterator[MachineFinding]:
    """A card that this build of torch cannot use, or this user may not."""
    for platform, allowed in scene.files.items():
        maker, build = MAKER[platform], BUILD[platform]
        if scene.machine.platform != platform:
            yield MachineFinding(
                str(DEVICE_FILES[platform]),
                NOTE,
                f"there is a driver for {maker} devices, and torch {scene.machine.torch_version} "
                f"is not built for {build}",
                f"to use them, install torch's {build} build, as the README says",
            )
        elif not allowed:
            yield MachineFinding(
                str(DEVICE_FILES[platform]),
                BAD,
                "this user may not open it, so there is no device",
                "sudo usermod -aG render,video $USER, and log in again",
            )


def other_torch(scene: MachineState) -> Iterator[MachineFinding]:
    """The compiled engine reads the code that one version of torch writes."""
    if not scene.machine.torch_version.startswith(f"{TESTED_TORCH}."):
        yield MachineFinding(
            "torch",
            NOTE,
            f"{scene.machine.torch_version}; engine=compiled is tested with {TESTED_TORCH}",
            "pip install -c constraints.txt, or engine=plain",
        )


RULES: tuple[Rule, ...] = (
    allocator_pair,
    waiting_launches,
    no_caching,
    rounded_products,
    too_many_threads,
    contradicting_visibility,
    missing_devices,
    other_arch,
    stray_rank,
    slurm_without_srun,
    unused_device,
    other_torch,
)


_WORD = 4  # bytes of an int32


@dataclass(frozen=True, slots=True)
class AllocatorChurn:
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
    def of(cls, device: torch.device) -> "AllocatorChurn":
        """Small on the CPU; on a device as much as fills its memory, if none of it came back."""
        if device.type == "cpu":
            return cls(2**22, 2**22, 2**16, cycles=64)
        total = torch.cuda.get_device_properties(device).total_memory
        block = 138 * 2**20
        return cls(2**26, block, 2**16, cycles=min(2_000, int(1.3 * total / block)))


class MemoryCanary:
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


def damage_after_churn(device: torch.device, churn: AllocatorChurn) -> tuple[int, int]:
    """Damaged bytes, and the cycles done when they were seen or the memory was full."""
    canary = MemoryCanary(device)
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


_NUMBERS = 100_003  # of a tensor; no multiple of any block size


def check_all_reduce(accelerator: str, *, processes: int) -> float:
    """Add up known numbers over new processes, one a device.

    Args:
        accelerator: `cpu` or `gpu`.
        processes: at least 2.

    Returns:
        Seconds, mostly the start of the processes.

    Raises:
        RankError: a process was lost, or holds a wrong sum.
        RuntimeError: the devices cannot talk.
    """
    began = time.perf_counter()
    launch(
        "robust_fin.runtime.machine_checks",
        {"accelerator": accelerator},
        processes=processes,
        environment={},
        advice="Devices that cannot reach each other train one by one",
    )
    return time.perf_counter() - began


def check_sums(place: RankInfo, accelerator: str) -> None:
    """One rank's part.

    Raises:
        RankError: the sum is wrong.
    """
    device = torch.device("cuda", place.local_rank) if accelerator == GPU else torch.device("cpu")
    with process_group(place, accelerator=accelerator):
        numbers = torch.arange(_NUMBERS, dtype=torch.float32, device=device)
        total = numbers * (place.rank + 1)
        dist.all_reduce(total)
        wrong = int((total != numbers * (place.world * (place.world + 1) // 2)).sum())
        if wrong:
            raise RankError(
                f"{wrong:,} of {_NUMBERS:,} sums over {place.world} processes are wrong on "
                f"{device} of rank {place.rank}"
            )


def main(argv: Sequence[str]) -> int:
    """A rank; returns the exit code."""
    folder = Path(argv[0].removeprefix(f"{LAUNCHED}="))
    exit_with_parent(folder)
    place, accelerator = launched_rank_info(folder, os.environ), read_task(folder)["accelerator"]
    assert place is not None
    return run_and_record_exit(folder, place.rank, lambda: check_sums(place, accelerator))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
