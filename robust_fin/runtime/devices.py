"""Devices: those that a run asks for, those that exist, and their environment variables."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robust_fin.errors import ConfigError

CPU, GPU, CUDA, ROCM = "cpu", "gpu", "cuda", "rocm"
VISIBLE = {CUDA: "CUDA_VISIBLE_DEVICES", ROCM: "HIP_VISIBLE_DEVICES"}
ARCH = "PYTORCH_ROCM_ARCH"
# in the order in which torch looks for them; the last is the name that torch itself recommends
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
MIN_SPLIT_MB = 20  # the minimum of torch
MAKER = {CUDA: "NVIDIA", ROCM: "AMD"}
BUILD = {CUDA: "CUDA", ROCM: "ROCm"}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Requested hardware, one choice of conf/hardware.

    Attributes:
        accelerator: `cpu` or `gpu`, as in Lightning.
        platform: `cuda` or `rocm`; None on the CPU.
        visible: indices of the visible devices; None leaves the shell's setting.
        arch: AMD architecture such as gfx1100; None leaves the shell's setting.
        expandable_segments: allocator setting; None leaves torch's default.
        max_split_size_mb: allocator setting in MB; None leaves torch's default.
        rank_timeout: seconds after which a rank that gives no sign of life ends the run.
        check: refuse to start where the devices do not exist. False only sets the environment
            variables, to try a launch on a machine without the devices.

    Raises:
        ConfigError: the settings contradict each other.
    """

    accelerator: str
    platform: str | None
    visible: Sequence[int] | None
    arch: str | None
    expandable_segments: bool | None
    max_split_size_mb: int | None
    rank_timeout: float
    check: bool

    def __post_init__(self) -> None:
        wanted = {CPU: (None,), GPU: (CUDA, ROCM)}.get(self.accelerator, ())
        if self.platform not in wanted:
            raise ConfigError(
                f"hardware.accelerator={self.accelerator} with hardware.platform={self.platform}: "
                "the accelerator is cpu without a platform, or gpu with cuda or rocm"
            )
        if self.arch is not None and self.platform != ROCM:
            raise ConfigError(
                f"hardware.arch={self.arch} applies to AMD devices only; use it with hardware=rocm"
            )
        if self.visible is not None and not self._names_devices(self.visible):
            raise ConfigError(
                f"hardware.visible={list(self.visible)} must name at least one device, none twice "
                "and none below 0, and needs hardware.accelerator=gpu"
            )
        split = self.max_split_size_mb
        if split is not None and split < MIN_SPLIT_MB:
            raise ConfigError(
                f"hardware.max_split_size_mb={split} is below {MIN_SPLIT_MB}, the minimum of torch"
            )

    def environment(self) -> dict[str, str]:
        """Return the environment variables that every process of the run needs."""
        if self.platform is None:
            return {}
        variables = {}
        if self.visible is not None:
            variables[VISIBLE[self.platform]] = ",".join(map(str, self.visible))
        if self.arch is not None:
            variables[ARCH] = self.arch
        if self.allocator:
            names = ALLOCATOR[1:] if self.platform == ROCM else ALLOCATOR[2:]
            variables |= dict.fromkeys(names, self.allocator)
        return variables

    @property
    def allocator(self) -> str:
        """Return the allocator settings as torch reads them; empty for torch's defaults."""
        parts = {
            "expandable_segments": self.expandable_segments,
            "max_split_size_mb": self.max_split_size_mb,
        }
        return ",".join(f"{name}:{value}" for name, value in parts.items() if value is not None)

    def missing(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that `environ` lacks, for which a new process is needed.

        Raises:
            ConfigError: the shell sets another value.
        """
        wanted = self.environment()
        expected = dict(wanted)
        if self.allocator and self.platform is not None:  # any of these names could take precedence
            expected |= dict.fromkeys(ALLOCATOR, self.allocator)
        for name, value in expected.items():
            if environ.get(name, value) != value:
                raise ConfigError(
                    f"the shell has {name}={environ[name]}, and hardware requires "
                    f"{value}. Unset it, or set {_key_of(name)} to what the shell has, or to null"
                )
        return {name: value for name, value in wanted.items() if name not in environ}

    def _names_devices(self, visible: Sequence[int]) -> bool:
        distinct = len(set(visible)) == len(visible) > 0
        return self.accelerator == GPU and distinct and min(visible) >= 0


def is_risky_pair(allocator: str) -> bool:
    """Return whether an allocator setting combines expandable segments with max_split_size_mb.

    Together they are reported to make live memory read back as zeros on some ROCm releases.

    Source: github.com/ROCm/legacy-rocm-build/issues/6603 (gfx1201, gfx1100; ROCm 7.14).
    """
    given = dict(part.partition(":")[::2] for part in allocator.replace(" ", "").split(","))
    return given.get("expandable_segments") == "True" and "max_split_size_mb" in given


def _key_of(variable: str) -> str:
    if variable in ALLOCATOR:
        return "hardware.expandable_segments and hardware.max_split_size_mb"
    return "hardware.arch" if variable == ARCH else "hardware.visible"


@dataclass(frozen=True, slots=True)
class Device:
    """A device that torch can use.

    Attributes:
        name: `cuda:0` and so on, also on AMD.
        product: product name.
        memory_gb: memory in GiB.
        arch: such as gfx1100 or sm_90.
    """

    name: str
    product: str
    memory_gb: float | None
    arch: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices and cores available to this process.

    Attributes:
        torch_version: with the suffix of its build.
        platform: `cuda` or `rocm` where torch is built for it; else None.
        gpus: visible devices.
        cores: usable CPU cores.
    """

    torch_version: str
    platform: str | None
    gpus: tuple[Device, ...]
    cores: int

    def __str__(self) -> str:
        """Describe the machine for messages."""
        if self.platform is None:
            build = "built for neither CUDA nor ROCm"
        else:
            build = f"built for {BUILD[self.platform]}"
        gpus = ", ".join(f"{gpu.name} {gpu.product}" for gpu in self.gpus) or "no device"
        cores = f"{self.cores} processor core{'s' if self.cores > 1 else ''}"
        return f"torch {self.torch_version}, {build}; it sees {gpus}, and {cores}"


def this_machine() -> Machine:
    """Query torch and, where it is built for GPUs, the driver."""
    platform = ROCM if torch.version.hip else CUDA if torch.version.cuda else None
    count = torch.cuda.device_count() if platform else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(
        str(torch.__version__), platform, tuple(map(_gpu, range(count))), int(cores or 1)
    )


def _gpu(index: int) -> Device:
    device = torch.cuda.get_device_properties(index)
    arch = (
        getattr(device, "gcnArchName", "").partition(":")[0] or f"sm_{device.major}{device.minor}"
    )
    return Device(f"cuda:{index}", device.name, device.total_memory / 2**30, arch)


def check_devices(
    hardware: Hardware, machine: Machine, *, processes: int, environ: Mapping[str, str]
) -> None:
    """Raise ConfigError where a requested device does not exist.

    Args:
        hardware: requested hardware.
        machine: available devices.
        processes: on this machine, one device each.
        environ: environment in which `machine` was queried.
    """
    if not hardware.check or hardware.platform is None:
        return
    count, visible = len(machine.gpus), hardware.visible
    if machine.platform == hardware.platform:
        masked = environ.get(VISIBLE[hardware.platform]) is not None
        if visible is None or masked:
            enough = count >= (len(visible) if visible is not None else processes)
        else:
            enough = max(visible) < count
        if enough:
            return
    asked = len(visible) if visible is not None else processes
    named = "" if visible is None else f" (hardware.visible={list(visible)})"
    raise ConfigError(
        f"hardware.platform={hardware.platform} needs {asked} {MAKER[hardware.platform]} "
        f"device{'s' if asked > 1 else ''}{named}. Available: {machine}. "
        f"{_instead(machine, wanted=hardware.platform, processes=processes)}; "
        "python -m robust_fin.doctor shows details"
    )


def _instead(machine: Machine, *, wanted: str, processes: int) -> str:
    if not machine.gpus:
        some = "hardware=cpu trainer=ddp for two processes on the CPU, or "
        words = f"{some if processes > 1 else ''}hardware=cpu trainer=default"
    elif len(machine.gpus) == 1:
        words = f"hardware={machine.platform} trainer=default for the one device"
    elif machine.platform == ROCM:
        words = "hardware=rocm_dual trainer=ddp_hip for two devices, or hardware=rocm"
    else:
        words = f"hardware=cuda trainer=ddp trainer.devices={len(machine.gpus)}"
    if machine.platform == wanted:
        return f"Write {words}"
    return f"Write {words}; or install torch's {BUILD[wanted]} build, see docs/hardware.md"


def check_trainer(trainer: Mapping[str, Any], hardware: Hardware) -> int:
    """Check the Trainer's settings against the requested hardware.

    Returns:
        Number of processes on this machine, one device each.

    Raises:
        ConfigError: they contradict each other.
    """
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if hardware.check and accelerator != hardware.accelerator:
        other = "hardware=cuda or hardware=rocm" if accelerator == GPU else "trainer.accelerator="
        other += hardware.accelerator if accelerator == CPU else ""
        raise ConfigError(
            f"trainer.accelerator={accelerator} and hardware.accelerator={hardware.accelerator} "
            f"contradict each other; write {other}"
        )
    count = devices if isinstance(devices, int) else len(devices) if _is_list(devices) else 0
    if isinstance(devices, bool) or count < 1:
        raise ConfigError(
            f"trainer.devices={devices} must be a number of devices, or a list of their numbers"
        )
    strategy = trainer["strategy"]
    known = strategy == "auto" or strategy == "ddp" or str(strategy).startswith("ddp_find_unused_")
    if not known:
        raise ConfigError(f"trainer.strategy={strategy} is not supported; use auto or ddp")
    if hardware.visible is not None and len(hardware.visible) != count:
        raise ConfigError(
            f"hardware.visible={list(hardware.visible)} shows {len(hardware.visible)} devices, and "
            f"trainer.devices={devices} uses {count}: the other devices would be idle. "
            + ("Write trainer=ddp_hip" if count == 1 else "Make them equal")
        )
    return count


def _is_list(devices: object) -> bool:
    return hasattr(devices, "__len__") and not isinstance(devices, str)
