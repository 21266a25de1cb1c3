"""python -m robust_fin.doctor [hardware=rocm_dual] [out=FILE.json].

Says whether this machine trains what the tests train: versions, devices and compiler, numbers
against float64, memory, processes that talk, and settings that are known to be bad.
"""

from robust_fin.cli.help import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("doctor")  # before torch is imported

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from robust_fin.cli.command import run_command
from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.runtime.devices import CPU, GPU, Hardware, Machine, check_devices, this_machine
from robust_fin.runtime.launcher import LAUNCHED, launch, read_task
from robust_fin.runtime.machine_checks import (
    BAD,
    NOTE,
    OK,
    AllocatorChurn,
    MachineFinding,
    MachineState,
    check_all_reduce,
    damage_after_churn,
    device_files,
    find_known_problems,
)
from robust_fin.runtime.process_state import exit_with_parent, run_and_record_exit
from robust_fin.runtime.terminal import RESULT, show
from robust_fin.training.engine.build import Passes, compiled_error, passes
from robust_fin.training.engine.loop_library import NoCompilerError, compiler_command
from robust_fin.training.engine.trace import UnsupportedStepError

MODULE = "robust_fin.doctor"  # whatever name this process runs it under
PACKAGES = ("torch", "lightning", "hydra-core", "numpy", "pandas", "pyarrow", "robust-fin")
# relative L2 of float32 against float64; a device that is well stays below a tenth of it
LARGEST_ERROR = {"forward": 1e-5, "backward": 1e-4, "10 steps": 1e-3}


class UnwellError(RobustFinError):
    """At least one check is bad; the table has the remedies."""


def examine(config: DictConfig) -> list[MachineFinding]:
    """Every check, in the order of the report."""
    torch.set_num_threads(config.threads)
    machine, hardware = this_machine(), instantiate(config.hardware)
    devices = [torch.device(CPU), *(torch.device(one.name) for one in machine.gpus)]
    net = instantiate(config.model, features=config.features)
    parts = {"features": config.features, "loss": instantiate(config.loss)}
    parts |= {"optimizer": instantiate(config.optimizer)}
    scene = MachineState(os.environ, machine, config.threads, device_files())
    return [
        *versions(),
        *devices_there(machine, hardware),
        compiled_loop(net, parts),
        *numbers(net, devices, parts),
        *(memory(device) for device in devices),
        all_reduce(machine),
        *find_known_problems(scene),
    ]


def versions() -> Iterator[MachineFinding]:
    """Of Python and the packages that numbers depend on."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    yield MachineFinding("versions", OK, ", ".join([f"Python {platform.python_version()}", *found]))


def devices_there(machine: Machine, hardware: Hardware) -> Iterator[MachineFinding]:
    """What torch sees, held against what hardware asks for."""
    cores = f"{machine.cores} cores, {platform.machine()}, {platform.system()}"
    yield MachineFinding("device cpu", OK, cores)
    for one in machine.gpus:
        memory_gb = "" if one.memory_gb is None else f", {one.memory_gb:.1f} GB"
        yield MachineFinding(f"device {one.name}", OK, f"{one.product}{memory_gb}, {one.arch}")
    wanted = len(hardware.visible or [0])
    try:
        check_devices(hardware, machine, processes=wanted, environ=os.environ)
    except ConfigError as error:
        found, _, remedy = str(error).partition(" Write ")
        yield MachineFinding("hardware", BAD, found, f"write {remedy}")


def compiled_loop(net: torch.nn.Module, parts: dict[str, Any]) -> MachineFinding:
    """Whether engine=compiled can be had, and has the plain numbers."""
    check, plain = "compiler", "engine=plain trains without it, slower"
    try:
        loop, error = compiled_error(net, **parts)
    except NoCompilerError as missing:
        return MachineFinding(check, NOTE, str(missing), f"install g++ or set CXX; {plain}")
    except (UnsupportedStepError, RuntimeError) as broken:
        return MachineFinding(check, BAD, first_line(broken), f"reinstall g++ or set CXX; {plain}")
    how = "from the cache" if loop.cached else f"in {loop.compile_seconds:.1f} s"
    found = f"{compiler_version()}; a loop was built {how}; relative error {error:.1e}"
    if not error < LARGEST_ERROR["10 steps"]:
        return MachineFinding(check, BAD, found, f"set CXX to another compiler; {plain}")
    return MachineFinding(check, OK, found)


def compiler_version() -> str:
    """The first line that the compiler says of itself."""
    path = shutil.which(compiler_command())
    assert path is not None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return (said.stdout.splitlines() or [compiler_command()])[0]


def numbers(
    net: torch.nn.Module, devices: Sequence[torch.device], parts: dict[str, Any]
) -> Iterator[MachineFinding]:
    """Float32 on each device against float64 on the CPU."""
    run = partial(passes, net, **parts)
    wanted = run(device=torch.device(CPU), dtype=torch.float64)
    for device in devices:
        yield against(wanted, run, device)


def against(wanted: Passes, run: Callable[..., Passes], device: torch.device) -> MachineFinding:
    """One device's line."""
    check = f"numbers on {device}"
    remedy = "train elsewhere; update driver and torch, or replace the device"
    try:
        errors = run(device=device, dtype=torch.float32).relative_errors(wanted)
    except RuntimeError as broken:
        return MachineFinding(check, BAD, first_line(broken), remedy)
    found = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    well = all(error < LARGEST_ERROR[name] for name, error in errors.items())
    found = f"float32 against float64: {found}"
    return MachineFinding(check, OK, found) if well else MachineFinding(check, BAD, found, remedy)


def memory(device: torch.device) -> MachineFinding:
    """Live memory read again after churn."""
    check = f"memory of {device}"
    damage, cycles = damage_after_churn(device, AllocatorChurn.of(device))
    if device.type != CPU:
        torch.cuda.empty_cache()
    if damage == 0:
        return MachineFinding(check, OK, f"live blocks whole after {cycles} cycles of churn")
    return MachineFinding(
        check,
        BAD,
        f"{damage:,} live bytes changed by cycle {cycles} of churn",
        "unset PYTORCH_ALLOC_CONF and its older names; else update driver and torch, or replace "
        "the device",
    )


def all_reduce(machine: Machine) -> MachineFinding:
    """Sums over processes: one a device, or two on the CPU."""
    many = len(machine.gpus) > 1
    accelerator, processes = (GPU, len(machine.gpus)) if many else (CPU, 2)
    over = f"{processes} {'devices' if many else 'processes on the CPU (gloo)'}"
    try:
        seconds = check_all_reduce(accelerator, processes=processes)
    except (RobustFinError, RuntimeError) as broken:
        remedy = "set NCCL_DEBUG=INFO and run again" if many else "look at the firewall of lo"
        return MachineFinding("all-reduce", BAD, f"over {over}: {first_line(broken)}", remedy)
    return MachineFinding("all-reduce", OK, f"exact over {over}, {seconds:.1f} s with their start")


def first_line(error: BaseException) -> str:
    """Of the last traceback that came along, else of the message."""
    notes = [note.strip().splitlines()[-1] for note in getattr(error, "__notes__", []) if note]
    return notes[-1] if notes else (str(error).splitlines() or [type(error).__name__])[0]


def report(findings: Sequence[MachineFinding]) -> Table:
    """The findings as a table."""
    table = Table(title="robust_fin.doctor", title_justify="left", show_lines=True)
    for name in ("check", "", "found", "remedy"):
        table.add_column(name, overflow="fold")
    for one in findings:
        table.add_row(one.check, one.status, one.found, one.remedy)
    return table


def diagnose(config: DictConfig) -> None:
    """Check, say, and write.

    Raises:
        UnwellError: a check is bad.
    """
    began = time.perf_counter()
    findings = examine(config)
    show(report(findings))
    show(f"{len(findings)} checks in {time.perf_counter() - began:.0f} s", level=RESULT)
    if config.out is not None:
        text = json.dumps([asdict(one) for one in findings], indent=2) + "\n"
        Path(config.out).expanduser().write_text(text, encoding="utf-8")
    bad = [one.check for one in findings if one.status == BAD]
    if bad:
        raise UnwellError(
            f"{len(bad)} of {len(findings)} checks are bad ({', '.join(bad)}); the table has the "
            "remedy of each"
        )


def job(config: DictConfig) -> None:
    """Check here, or in a process that has the environment of hardware from its start."""
    missing = instantiate(config.hardware).missing(os.environ)
    if not missing:
        diagnose(config)
        return
    task = {"config": OmegaConf.to_yaml(config, resolve=True)}
    launch(MODULE, task, processes=1, environment=missing, advice="Run it again")


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    launched = [Path(word.partition("=")[2]) for word in words if word.startswith(f"{LAUNCHED}=")]
    if not launched:
        return run_command(job, config_name="doctor", argv=words)
    exit_with_parent(launched[0])
    config = OmegaConf.create(read_task(launched[0])["config"])
    assert isinstance(config, DictConfig)
    return run_and_record_exit(launched[0], 0, lambda: diagnose(config))


if __name__ == "__main__":
    sys.exit(main())
