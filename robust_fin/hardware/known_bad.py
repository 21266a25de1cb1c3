"""Settings of the shell and the machine that are known to spoil runs or their speed."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from robust_fin.hardware.devices import BUILD, MAKER, Machine
from robust_fin.hardware.environment import (
    ALLOCATOR,
    ARCH,
    CUDA,
    ROCM,
    VISIBLE,
    is_risky_pair,
)
from robust_fin.hardware.finding import BAD, NOTE, OK, Finding

TESTED_TORCH = "2.13"
DEVICE_FILES = {ROCM: Path("/dev/kfd"), CUDA: Path("/dev/nvidiactl")}
BLOCKING = ("CUDA_LAUNCH_BLOCKING", "HIP_LAUNCH_BLOCKING", "AMD_SERIALIZE_KERNEL")
NO_CACHE = ("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING")
ROUNDING = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
STRAY = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class Scene:
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


Rule = Callable[[Scene], Iterator[Finding]]


def device_files() -> dict[str, bool]:
    """Device files of this machine, and whether this user may open them."""
    found = {name: path for name, path in DEVICE_FILES.items() if path.exists()}
    return {name: os.access(path, os.R_OK | os.W_OK) for name, path in found.items()}


def known_bad(scene: Scene) -> list[Finding]:
    """Every rule that is broken, or one line that says how many hold."""
    broken = [one for rule in RULES for one in rule(scene)]
    return broken or [Finding("known-bad settings", OK, f"none of {len(RULES)} kinds")]


def allocator_pair(scene: Scene) -> Iterator[Finding]:
    """Together they are reported to make live memory read back as zeros on ROCm."""
    for name in ALLOCATOR:
        if is_risky_pair(scene.environ.get(name, "")):
            yield Finding(
                name,
                BAD,
                f"{scene.environ[name]}: together these are reported to turn live memory into "
                "zeros on some ROCm releases, and to fill the device on others",
                f"keep one of the two: export {name}=max_split_size_mb:128, or unset it and take "
                "hardware=rocm_dual",
            )


def waiting_launches(scene: Scene) -> Iterator[Finding]:
    """Every kernel is waited for."""
    for name in BLOCKING:
        if scene.is_set(name):
            yield Finding(
                name,
                BAD,
                f"{scene.environ[name]}: the processor waits for every kernel, several times "
                "slower with small nets",
                f"unset {name}; it is for finding the kernel that fails",
            )


def no_caching(scene: Scene) -> Iterator[Finding]:
    """Every tensor asks the driver."""
    for name in NO_CACHE:
        if scene.is_set(name):
            yield Finding(name, BAD, "every tensor asks the driver for memory", f"unset {name}")


def rounded_products(scene: Scene) -> Iterator[Finding]:
    """Float32 products with ten bits."""
    for name in ROUNDING:
        if scene.is_set(name):
            yield Finding(
                name,
                BAD,
                "float32 products are rounded to 10 bits (TF32), so runs differ from the CPU's",
                f"unset {name}; ask for speed with trainer.precision=bf16-mixed",
            )


def too_many_threads(scene: Scene) -> Iterator[Finding]:
    """More threads than cores wait for each other."""
    cores, given = scene.machine.cores, {"threads": str(scene.threads)}
    given |= {name: scene.environ[name] for name in THREADS if name in scene.environ}
    for name, value in given.items():
        if value.isdigit() and int(value) > cores:
            remedy = "threads=1" if name == "threads" else f"export {name}=1"
            yield Finding(
                name,
                BAD,
                f"{value}, with {cores} cores for this process: threads wait for each other at "
                "every small kernel",
                f"{remedy}; nets this small are fastest with one thread a process",
            )


def contradicting_visibility(scene: Scene) -> Iterator[Finding]:
    """ROCm reads both names."""
    values = {name: scene.environ[name] for name in VISIBLE.values() if name in scene.environ}
    if scene.machine.platform != CUDA and len(set(values.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in values.items())
        yield Finding(
            VISIBLE[ROCM],
            BAD,
            f"{said}: ROCm reads both, one after the other",
            f"unset {VISIBLE[CUDA]}",
        )


def missing_devices(scene: Scene) -> Iterator[Finding]:
    """Fewer devices than the shell names."""
    platform = scene.machine.platform
    if platform is None or not scene.environ.get(VISIBLE[platform], ""):
        return
    named, seen = scene.environ[VISIBLE[platform]].split(","), len(scene.machine.gpus)
    if len(named) != seen:
        yield Finding(
            VISIBLE[platform],
            BAD,
            f"{','.join(named)} names {len(named)} devices, and torch sees {seen}",
            f"unset {VISIBLE[platform]} to see all; numbers count from 0 and end at the first that "
            "is not there",
        )


def other_arch(scene: Scene) -> Iterator[Finding]:
    """Kernels for other cards than those that are there."""
    gpus = scene.machine.gpus if scene.machine.platform == ROCM else ()
    there = sorted({one.arch for one in gpus})
    asked = [one.strip() for one in scene.environ.get(ARCH, "").split(";") if one.strip()]
    if asked and there and not set(there) <= set(asked):
        yield Finding(
            ARCH,
            BAD,
            f"{';'.join(asked)}, and the devices are {', '.join(there)}: what is built runs on none"
            " or not on all of them",
            f"export {ARCH}='{';'.join(there)}', or hardware.arch={there[0]}",
        )
    if "HSA_OVERRIDE_GFX_VERSION" in scene.environ:
        yield Finding(
            "HSA_OVERRIDE_GFX_VERSION",
            NOTE,
            f"{scene.environ['HSA_OVERRIDE_GFX_VERSION']}: kernels of another card are run",
            "unset it where rocminfo names a card that torch's build knows",
        )


def stray_rank(scene: Scene) -> Iterator[Finding]:
    """Lightning would take this process for one of several."""
    stray = [name for name in STRAY if name in scene.environ]
    if stray and "TORCHELASTIC_RUN_ID" not in scene.environ:
        yield Finding(
            stray[0],
            BAD,
            f"{', '.join(stray)} set in the shell, and torchrun did not: Lightning takes a run for "
            "one of several processes",
            f"unset {' '.join(stray)}",
        )


def slurm_without_srun(scene: Scene) -> Iterator[Finding]:
    """The other tasks would be waited for."""
    tasks = scene.environ.get("SLURM_NTASKS", "1")
    if tasks != "1" and "SLURM_STEP_ID" not in scene.environ:
        yield Finding(
            "SLURM_NTASKS",
            BAD,
            f"{tasks} tasks, and this process was started without srun",
            "put srun before python",
        )


def unused_device(scene: Scene) -> Iterator[Finding]:
    """A card that this build of torch cannot use, or this user may not."""
    for platform, allowed in scene.files.items():
        maker, build = MAKER[platform], BUILD[platform]
        if scene.machine.platform != platform:
            yield Finding(
                str(DEVICE_FILES[platform]),
                NOTE,
                f"there is a driver for {maker} devices, and torch {scene.machine.torch_version} "
                f"is not built for {build}",
                f"to use them, install torch's {build} build, as the README says",
            )
        elif not allowed:
            yield Finding(
                str(DEVICE_FILES[platform]),
                BAD,
                "this user may not open it, so there is no device",
                "sudo usermod -aG render,video $USER, and log in again",
            )


def other_torch(scene: Scene) -> Iterator[Finding]:
    """The compiled engine reads the code that one version of torch writes."""
    if not scene.machine.torch_version.startswith(f"{TESTED_TORCH}."):
        yield Finding(
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
