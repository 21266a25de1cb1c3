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
    """Result of one check.

    Attributes:
        check: name of the check.
        status: `ok`; `note`, harmless; or `bad`, which damages results or speed.
        found: the observation.
        remedy: what to do; empty where the status is ok.
    """

    check: str
    status: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.status in (OK, NOTE, BAD)
        assert bool(self.remedy) == (self.status != OK)


TESTED_TORCH = "2.13"
DEVICE_FILES = {ROCM: Path("/dev/kfd"), CUDA: Path("/dev/nvidiactl")}
# variables, what they do, and what follows `unset NAME` in the remedy
SWITCHES = (
    (
        ("CUDA_LAUNCH_BLOCKING", "HIP_LAUNCH_BLOCKING", "AMD_SERIALIZE_KERNEL"),
        "the CPU waits for every kernel, which is several times slower with small nets",
        "; it is for debugging a failing kernel",
    ),
    (
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING"),
        "every tensor allocates from the driver",
        "",
    ),
    (
        ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
        "float32 products are rounded to 10 bits (TF32), so results differ from the CPU",
        "; for speed use trainer.precision=bf16-mixed",
    ),
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
STRAY = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class MachineState:
    """Input of the rules.

    Attributes:
        environ: environment variables.
        machine: devices and cores as torch sees them.
        threads: of torch, as a run would set them.
        files: existing device files by platform, and whether this user may open them.
    """

    environ: Mapping[str, str]
    machine: Machine
    threads: int
    files: Mapping[str, bool]

    def is_set(self, name: str) -> bool:
        """Return whether a switch variable is on."""
        return self.environ.get(name, "0") not in ("", "0")


Rule = Callable[[MachineState], Iterator[MachineFinding]]


def device_files() -> dict[str, bool]:
    """Return the device files of this machine, and whether this user may open them."""
    existing = {name: path for name, path in DEVICE_FILES.items() if path.exists()}
    return {name: os.access(path, os.R_OK | os.W_OK) for name, path in existing.items()}


def find_known_problems(state: MachineState) -> list[MachineFinding]:
    """Return a finding for each violated rule, or one that says how many rules hold."""
    broken = [finding for rule in RULES for finding in rule(state)]
    return broken or [MachineFinding("known-bad settings", OK, f"none of {len(RULES)} kinds")]


def allocator_pair(state: MachineState) -> Iterator[MachineFinding]:
    """Find an allocator setting that is reported to zero live memory on ROCm."""
    for name in ALLOCATOR:
        if is_risky_pair(state.environ.get(name, "")):
            yield MachineFinding(
                name,
                BAD,
                f"{state.environ[name]}: together these are reported to turn live memory into "
                "zeros on some ROCm releases, and to fill the device on others",
                f"keep one of the two: export {name}=max_split_size_mb:128, or unset it and take "
                "hardware=rocm_dual",
            )


def harmful_switches(state: MachineState) -> Iterator[MachineFinding]:
    """Find switches that slow every kernel down, or round float32 products to ten bits."""
    for names, observation, remedy in SWITCHES:
        for name in filter(state.is_set, names):
            yield MachineFinding(name, BAD, observation, f"unset {name}{remedy}")


def too_many_threads(state: MachineState) -> Iterator[MachineFinding]:
    """Find thread counts above the number of cores."""
    cores, given = state.machine.cores, {"threads": str(state.threads)}
    given |= {name: state.environ[name] for name in THREADS if name in state.environ}
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


def contradicting_visibility(state: MachineState) -> Iterator[MachineFinding]:
    """Find visibility variables that contradict each other; ROCm reads both."""
    values = {name: state.environ[name] for name in VISIBLE.values() if name in state.environ}
    if state.machine.platform != CUDA and len(set(values.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in values.items())
        yield MachineFinding(
            VISIBLE[ROCM],
            BAD,
            f"{said}: ROCm reads both, one after the other",
            f"unset {VISIBLE[CUDA]}",
        )


def missing_devices(state: MachineState) -> Iterator[MachineFinding]:
    """Find visibility variables that name more devices than torch sees."""
    platform = state.machine.platform
    if platform is None or not state.environ.get(VISIBLE[platform], ""):
        return
    named, seen = state.environ[VISIBLE[platform]].split(","), len(state.machine.gpus)
    if len(named) != seen:
        yield MachineFinding(
            VISIBLE[platform],
            BAD,
            f"{','.join(named)} names {len(named)} devices, but torch sees {seen}",
            f"unset {VISIBLE[platform]} to see all; numbers count from 0 and end at the first that "
            "is not there",
        )


def other_arch(state: MachineState) -> Iterator[MachineFinding]:
    """Find an architecture setting that does not match the devices."""
    gpus = state.machine.gpus if state.machine.platform == ROCM else ()
    there = sorted({one.arch for one in gpus})
    asked = [one.strip() for one in state.environ.get(ARCH, "").split(";") if one.strip()]
    if asked and there and not set(there) <= set(asked):
        yield MachineFinding(
            ARCH,
            BAD,
            f"{';'.join(asked)}, and the devices are {', '.join(there)}: kernels run on none "
            "or not on all of them",
            f"export {ARCH}='{';'.join(there)}', or hardware.arch={there[0]}",
        )
    if "HSA_OVERRIDE_GFX_VERSION" in state.environ:
        yield MachineFinding(
            "HSA_OVERRIDE_GFX_VERSION",
            NOTE,
            f"{state.environ['HSA_OVERRIDE_GFX_VERSION']}: kernels of another architecture are run",
            "unset it where rocminfo names an architecture that torch's build supports",
        )


def stray_rank(state: MachineState) -> Iterator[MachineFinding]:
    """Find rank variables left in the shell, which Lightning would believe."""
    stray = [name for name in STRAY if name in state.environ]
    if stray and "TORCHELASTIC_RUN_ID" not in state.environ:
        yield MachineFinding(
            stray[0],
            BAD,
            f"{', '.join(stray)} set in the shell, but not by torchrun: Lightning takes a run for "
            "one of several ranks",
            f"unset {' '.join(stray)}",
        )


def slurm_without_srun(state: MachineState) -> Iterator[MachineFinding]:
    """Find a SLURM job of several tasks that was started without srun."""
    tasks = state.environ.get("SLURM_NTASKS", "1")
    if tasks != "1" and "SLURM_STEP_ID" not in state.environ:
        yield MachineFinding(
            "SLURM_NTASKS",
            BAD,
            f"{tasks} tasks, but this process was started without srun",
            "put srun before python",
        )


def unused_device(state: MachineState) -> Iterator[MachineFinding]:
    """Find devices that this build of torch, or this user, cannot use."""
    for platform, allowed in state.files.items():
        maker, build = MAKER[platform], BUILD[platform]
        if state.machine.platform != platform:
            yield MachineFinding(
                str(DEVICE_FILES[platform]),
                NOTE,
                f"there is a driver for {maker} devices, but torch {state.machine.torch_version} "
                f"is not built for {build}",
                f"to use them, install torch's {build} build, as docs/hardware.md says",
            )
        elif not allowed:
            yield MachineFinding(
                str(DEVICE_FILES[platform]),
                BAD,
                "this user may not open it, so torch sees no device",
                "sudo usermod -aG render,video $USER, and log in again",
            )


def other_torch(state: MachineState) -> Iterator[MachineFinding]:
    """The compiled engine reads the code that one version of torch writes."""
    if not state.machine.torch_version.startswith(f"{TESTED_TORCH}."):
        yield MachineFinding(
            "torch",
            NOTE,
            f"{state.machine.torch_version}; engine=compiled is tested with {TESTED_TORCH}",
            "pip install -c constraints.txt, or engine=plain",
        )


RULES: tuple[Rule, ...] = (
    allocator_pair,
    harmful_switches,
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
    """Sizes of an allocator stress test.

    Attributes:
        live_bytes: size of the first live block.
        block_bytes: allocated and freed in every cycle; larger than any max_split_size in use.
        fence_bytes: allocated in every cycle after the block, and kept.
        cycles: maximum number of cycles.
    """

    live_bytes: int
    block_bytes: int
    fence_bytes: int
    cycles: int

    @classmethod
    def of(cls, device: torch.device) -> "AllocatorChurn":
        """Return small sizes for the CPU, and sizes that would fill a device if never freed."""
        if device.type == "cpu":
            return cls(2**22, 2**22, 2**16, cycles=64)
        total = torch.cuda.get_device_properties(device).total_memory
        block = 138 * 2**20
        return cls(2**26, block, 2**16, cycles=min(2_000, int(1.3 * total / block)))


class MemoryCanary:
    """Live blocks with known content on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.blocks: list[Int32[Tensor, " words"]] = []

    def keep(self, size: int) -> None:
        """Allocate a block of `size` bytes and fill it with its own numbers."""
        self.blocks.append(self._content(len(self.blocks), size // _WORD).to(self.device))

    def damaged_bytes(self) -> int:
        """Return how many bytes of the live blocks have changed, compared on the CPU."""
        wrong = 0
        for number, block in enumerate(self.blocks):
            differs = block.cpu() != self._content(number, len(block))
            wrong += _WORD * int(differs.sum())
        return wrong

    @staticmethod
    def _content(number: int, words: int) -> Int32[Tensor, " words"]:
        """Return non-zero numbers, because unmapped memory reads as zero."""
        return torch.arange(words, dtype=torch.int32) % 65_521 + 1 + number * 65_536


def damage_after_churn(device: torch.device, churn: AllocatorChurn) -> tuple[int, int]:
    """Return damaged bytes, and the cycle in which they were noticed or memory ran out."""
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


_NUMBERS = 100_003  # elements; not a multiple of any block size


def check_all_reduce(accelerator: str, *, processes: int) -> float:
    """All-reduce known numbers over new processes, one per device.

    Args:
        accelerator: `cpu` or `gpu`.
        processes: at least 2.

    Returns:
        Seconds, mostly the start of the processes.

    Raises:
        RankError: a rank was lost, or holds a wrong sum.
        RuntimeError: the devices cannot communicate.
    """
    start = time.perf_counter()
    launch(
        "robust_fin.runtime.machine_checks",
        {"accelerator": accelerator},
        processes=processes,
        environment={},
        advice="Train on one device where devices cannot reach each other",
    )
    return time.perf_counter() - start


def check_sums(info: RankInfo, accelerator: str) -> None:
    """All-reduce on one rank; raise RankError where a sum is wrong."""
    device = torch.device("cuda", info.local_rank) if accelerator == GPU else torch.device("cpu")
    with process_group(info, accelerator=accelerator):
        numbers = torch.arange(_NUMBERS, dtype=torch.float32, device=device)
        total = numbers * (info.rank + 1)
        dist.all_reduce(total)
        wrong = int((total != numbers * (info.world * (info.world + 1) // 2)).sum())
        if wrong:
            raise RankError(
                f"{wrong:,} of {_NUMBERS:,} sums over {info.world} processes are wrong on "
                f"{device} of rank {info.rank}"
            )


def main(argv: Sequence[str]) -> int:
    """Run a rank and return its exit code."""
    folder = Path(argv[0].removeprefix(f"{LAUNCHED}="))
    exit_with_parent(folder)
    info, accelerator = launched_rank_info(folder, os.environ), read_task(folder)["accelerator"]
    assert info is not None
    return run_and_record_exit(folder, info.rank, lambda: check_sums(info, accelerator))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
