"""The devices that are there, held against those that a run asks for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from robust_fin.errors import ConfigError
from robust_fin.hardware.environment import CPU, CUDA, GPU, ROCM, VISIBLE, Hardware

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
