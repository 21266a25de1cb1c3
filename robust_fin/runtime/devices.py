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
LEAST_SPLIT_MB = 20  # torch refuses less


@dataclass(frozen=True, slots=True)
class Hardware:
    """What conf/hardware names.

    Attributes:
        accelerator: `cpu` or `gpu`, as Lightning calls it.
        platform: `cuda` or `rocm`; None on the CPU.
        visible: numbers of the devices that the run sees; None leaves it as the shell has it.
        arch: of AMD devices, such as gfx1100; None leaves it as the shell has it.
        expandable_segments: of torch's allocator; None leaves torch's default.
        max_split_size_mb: of torch's allocator, in MB; None leaves torch's default.
        check: refuse to start where the devices are not there. False sets the environment alone, to
            try a launch on a machine without them.

    Raises:
        ConfigError: settings that contradict each other.
    """

    accelerator: str
    platform: str | None
    visible: Sequence[int] | None
    arch: str | None
    expandable_segments: bool | None
    max_split_size_mb: int | None
    check: bool

    def __post_init__(self) -> None:
        """Refuse what names no device."""
        wanted = {CPU: (None,), GPU: (CUDA, ROCM)}.get(self.accelerator, ())
        if self.platform not in wanted:
            raise ConfigError(
                f"hardware.accelerator={self.accelerator} with hardware.platform={self.platform}: "
                "the accelerator is cpu without a platform, or gpu with cuda or rocm"
            )
        if self.arch is not None and self.platform != ROCM:
            raise ConfigError(f"hardware.arch={self.arch} is of AMD devices; set it with rocm")
        if self.visible is not None and not self._names_devices(self.visible):
            raise ConfigError(
                f"hardware.visible={list(self.visible)} must name at least one device, none twice "
                "and none below 0, and needs hardware.accelerator=gpu"
            )
        split = self.max_split_size_mb
        if split is not None and split < LEAST_SPLIT_MB:
            raise ConfigError(
                f"hardware.max_split_size_mb={split} is below {LEAST_SPLIT_MB}, the least of torch"
            )

    def environment(self) -> dict[str, str]:
        """Variables that every process of the run has."""
        if self.platform is None:
            return {}
        found = {}
        if self.visible is not None:
            found[VISIBLE[self.platform]] = ",".join(map(str, self.visible))
        if self.arch is not None:
            found[ARCH] = self.arch
        if self.allocator:
            names = ALLOCATOR[1:] if self.platform == ROCM else ALLOCATOR[2:]
            found |= dict.fromkeys(names, self.allocator)
        return found

    @property
    def allocator(self) -> str:
        """The allocator's settings as torch reads them; empty where all are torch's own."""
        parts = {
            "expandable_segments": self.expandable_segments,
            "max_split_size_mb": self.max_split_size_mb,
        }
        return ",".join(f"{name}:{value}" for name, value in parts.items() if value is not None)

    def missing(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables that a process with `environ` would have to be started anew for.

        Raises:
            ConfigError: the shell says something else.
        """
        wanted = self.environment()
        spoken = dict(wanted)
        if self.allocator and self.platform is not None:  # any of the names would win or confuse
            spoken |= dict.fromkeys(ALLOCATOR, self.allocator)
        for name, value in spoken.items():
            if environ.get(name, value) != value:
                raise ConfigError(
                    f"the shell has {name}={environ[name]}, and the settings of hardware ask for "
                    f"{value}. Unset it, or set {_key_of(name)} to what the shell has, or to null"
                )
        return {name: value for name, value in wanted.items() if name not in environ}

    def _names_devices(self, visible: Sequence[int]) -> bool:
        distinct = len(set(visible)) == len(visible) > 0
        return self.accelerator == GPU and distinct and min(visible) >= 0


def is_risky_pair(allocator: str) -> bool:
    """Whether an allocator setting joins expandable segments with a largest split size.

    Together they are reported to make live memory read back as zeros on some ROCm releases.

    Source: github.com/ROCm/legacy-rocm-build/issues/6603 (gfx1201, gfx1100; ROCm 7.14).
    """
    given = dict(part.partition(":")[::2] for part in allocator.replace(" ", "").split(","))
    return given.get("expandable_segments") == "True" and "max_split_size_mb" in given


def _key_of(variable: str) -> str:
    if variable in ALLOCATOR:
        return "hardware.expandable_segments and hardware.max_split_size_mb"
    return "hardware.arch" if variable == ARCH else "hardware.visible"


MAKER = {CUDA: "NVIDIA", ROCM: "AMD"}
BUILD = {CUDA: "CUDA", ROCM: "ROCm"}


@dataclass(frozen=True, slots=True)
class Device:
    """One device that torch can use.

    Attributes:
        name: `cpu`, or `cuda:0` and so on, on AMD too.
        product: the maker's name.
        memory_gb: of the device; of the machine where that is known for the CPU.
        arch: gfx1100 and the like, or sm_90.
    """

    name: str
    product: str
    memory_gb: float | None
    arch: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a process on this machine has to train with.

    Attributes:
        torch_version: with the build's suffix.
        platform: `cuda` or `rocm`, what torch is built for; None for the CPU alone.
        gpus: that torch sees now.
        cores: this process may use.
    """

    torch_version: str
    platform: str | None
    gpus: tuple[Device, ...]
    cores: int

    def __str__(self) -> str:
        """For messages."""
        if self.platform is None:
            build = "built for neither CUDA nor ROCm"
        else:
            build = f"built for {BUILD[self.platform]}"
        gpus = ", ".join(f"{one.name} {one.product}" for one in self.gpus) or "no device"
        cores = f"{self.cores} processor core{'s' if self.cores > 1 else ''}"
        return f"torch {self.torch_version}, {build}; it sees {gpus}, and {cores}"


def this_machine() -> Machine:
    """Ask torch; on a GPU this touches the driver."""
    platform = ROCM if torch.version.hip else CUDA if torch.version.cuda else None
    count = torch.cuda.device_count() if platform else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(
        str(torch.__version__), platform, tuple(map(_gpu, range(count))), int(cores or 1)
    )


def _gpu(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    arch = getattr(found, "gcnArchName", "").partition(":")[0] or f"sm_{found.major}{found.minor}"
    return Device(f"cuda:{index}", found.name, found.total_memory / 2**30, arch)


def check_devices(
    hardware: Hardware, machine: Machine, *, processes: int, environ: Mapping[str, str]
) -> None:
    """Refuse to start where a device is missing.

    Args:
        hardware: what the run asks for.
        machine: what is there.
        processes: on this machine, one device each.
        environ: of the process that found the machine's devices.

    Raises:
        ConfigError: says what is there and what to write instead.
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
        f"hardware.platform={hardware.platform} asks for {asked} {MAKER[hardware.platform]} "
        f"device{'s' if asked > 1 else ''}{named}. Here is {machine}. "
        f"{_instead(machine, wanted=hardware.platform, processes=processes)}; "
        "python -m robust_fin.doctor looks closer"
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
    return f"Write {words}; or install torch's {BUILD[wanted]} build, as the README says"


def check_trainer(trainer: Mapping[str, Any], hardware: Hardware) -> int:
    """Refuse a trainer that does not use what hardware names.

    Args:
        trainer: the Trainer's settings.
        hardware: what the run asks for.

    Returns:
        Processes on this machine, one device each.

    Raises:
        ConfigError: names the key and what it may be.
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
        raise ConfigError(
            f"trainer.strategy={strategy} is not known to work here; auto and ddp are"
        )
    if hardware.visible is not None and len(hardware.visible) != count:
        raise ConfigError(
            f"hardware.visible={list(hardware.visible)} shows {len(hardware.visible)} devices, and "
            f"trainer.devices={devices} uses {count}: the others would idle. "
            + ("Write trainer=ddp_hip" if count == 1 else "Make them equal")
        )
    return count


def _is_list(devices: object) -> bool:
    return hasattr(devices, "__len__") and not isinstance(devices, str)
