"""python -m robust_fin.doctor [hardware=rocm_dual] [out=FILE.json].

Check whether this machine computes and trains correctly: versions, devices, compiler, float32
against float64, device memory, communication between ranks, and settings known to be bad.
"""

from robust_fin.cli.command import print_help_if_asked

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
from robust_fin.runtime.files import write_atomic
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
from robust_fin.training.engine.build import NetPasses, compiled_error, run_passes
from robust_fin.training.engine.loop_library import NoCompilerError, compiler_command
from robust_fin.training.engine.trace import UnsupportedStepError

MODULE = "robust_fin.doctor"  # this process may run it as __main__
PACKAGES = ("torch", "lightning", "hydra-core", "numpy", "pandas", "pyarrow", "robust-fin")
# relative L2 error of float32 against float64; a healthy device stays below a tenth of it
MAX_ERROR = {"forward": 1e-5, "backward": 1e-4, "10 steps": 1e-3}


class FailedCheckError(RobustFinError):
    """At least one check is bad."""


def examine(config: DictConfig) -> list[MachineFinding]:
    """Run all checks, in the order of the report."""
    torch.set_num_threads(config.threads)
    machine, hardware = this_machine(), instantiate(config.hardware)
    devices = [torch.device(CPU), *(torch.device(gpu.name) for gpu in machine.gpus)]
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
    """Report Python and the packages that results depend on."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    text = ", ".join([f"Python {platform.python_version()}", *packages])
    yield MachineFinding("versions", OK, text)


def devices_there(machine: Machine, hardware: Hardware) -> Iterator[MachineFinding]:
    """Report the devices that torch sees, and compare them with the requested hardware."""
    cores = f"{machine.cores} cores, {platform.machine()}, {platform.system()}"
    yield MachineFinding("device cpu", OK, cores)
    for gpu in machine.gpus:
        memory_gb = "" if gpu.memory_gb is None else f", {gpu.memory_gb:.1f} GB"
        yield MachineFinding(f"device {gpu.name}", OK, f"{gpu.product}{memory_gb}, {gpu.arch}")
    wanted = len(hardware.visible or [0])
    try:
        check_devices(hardware, machine, processes=wanted, environ=os.environ)
    except ConfigError as error:
        problem, _, remedy = str(error).partition(" Write ")
        yield MachineFinding("hardware", BAD, problem, f"write {remedy}")


def compiled_loop(net: torch.nn.Module, parts: dict[str, Any]) -> MachineFinding:
    """Check that engine=compiled works and computes what the plain engine computes."""
    check, plain = "compiler", "engine=plain works without it, but slower"
    try:
        loop, error = compiled_error(net, **parts)
    except NoCompilerError as missing:
        return MachineFinding(check, NOTE, str(missing), f"install g++ or set CXX; {plain}")
    except (UnsupportedStepError, RuntimeError) as broken:
        return MachineFinding(check, BAD, first_line(broken), f"reinstall g++ or set CXX; {plain}")
    how = "from the cache" if loop.cached else f"in {loop.compile_seconds:.1f} s"
    summary = f"{compiler_version()}; a loop was built {how}; relative error {error:.1e}"
    if not error < MAX_ERROR["10 steps"]:
        return MachineFinding(check, BAD, summary, f"set CXX to another compiler; {plain}")
    return MachineFinding(check, OK, summary)


def compiler_version() -> str:
    """Return the first line of the compiler's --version."""
    path = shutil.which(compiler_command())
    assert path is not None
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [compiler_command()])[0]


def numbers(
    net: torch.nn.Module, devices: Sequence[torch.device], parts: dict[str, Any]
) -> Iterator[MachineFinding]:
    """Compare float32 on each device with float64 on the CPU."""
    run = partial(run_passes, net, **parts)
    wanted = run(device=torch.device(CPU), dtype=torch.float64)
    for device in devices:
        yield against(wanted, run, device)


def against(
    wanted: NetPasses, run: Callable[..., NetPasses], device: torch.device
) -> MachineFinding:
    """Compare float32 on a device with the float64 reference."""
    check = f"numbers on {device}"
    remedy = "train elsewhere; update driver and torch, or replace the device"
    try:
        errors = run(device=device, dtype=torch.float32).relative_errors(wanted)
    except RuntimeError as broken:
        return MachineFinding(check, BAD, first_line(broken), remedy)
    listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    summary = f"float32 against float64: {listed}"
    if all(error < MAX_ERROR[name] for name, error in errors.items()):
        return MachineFinding(check, OK, summary)
    return MachineFinding(check, BAD, summary, remedy)


def memory(device: torch.device) -> MachineFinding:
    """Check that live memory survives an allocator stress test."""
    check = f"memory of {device}"
    damage, cycles = damage_after_churn(device, AllocatorChurn.of(device))
    if device.type != CPU:
        torch.cuda.empty_cache()
    if damage == 0:
        return MachineFinding(
            check, OK, f"live blocks unchanged after {cycles} cycles of allocation"
        )
    return MachineFinding(
        check,
        BAD,
        f"{damage:,} live bytes changed by cycle {cycles} of allocation",
        "unset PYTORCH_ALLOC_CONF and its older names; otherwise update driver and torch, or "
        "replace the device",
    )


def all_reduce(machine: Machine) -> MachineFinding:
    """Check all-reduce between ranks: one per device, or two on the CPU."""
    many = len(machine.gpus) > 1
    accelerator, processes = (GPU, len(machine.gpus)) if many else (CPU, 2)
    over = f"{processes} {'devices' if many else 'processes on the CPU (gloo)'}"
    try:
        seconds = check_all_reduce(accelerator, processes=processes)
    except (RobustFinError, RuntimeError) as broken:
        remedy = (
            "set NCCL_DEBUG=INFO and run again"
            if many
            else "check the firewall of the loopback interface"
        )
        return MachineFinding("all-reduce", BAD, f"over {over}: {first_line(broken)}", remedy)
    return MachineFinding(
        "all-reduce", OK, f"exact over {over}, {seconds:.1f} s including their start"
    )


def first_line(error: BaseException) -> str:
    """Return the last line of an attached traceback, else the first line of the message."""
    notes = [note.strip().splitlines()[-1] for note in getattr(error, "__notes__", []) if note]
    return notes[-1] if notes else (str(error).splitlines() or [type(error).__name__])[0]


def report(findings: Sequence[MachineFinding]) -> Table:
    """Format the findings as a table."""
    table = Table(title="robust_fin.doctor", title_justify="left", show_lines=True)
    for name in ("check", "", "found", "remedy"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, finding.status, finding.found, finding.remedy)
    return table


def diagnose(config: DictConfig) -> None:
    """Run the checks, print the table and write the JSON file.

    Raises:
        FailedCheckError: a check is bad.
    """
    start = time.perf_counter()
    findings = examine(config)
    show(report(findings))
    show(f"{len(findings)} checks in {time.perf_counter() - start:.0f} s", level=RESULT)
    if config.out is not None:
        text = json.dumps([asdict(finding) for finding in findings], indent=2) + "\n"
        write_atomic(Path(config.out).expanduser(), text.encode())
    bad = [finding.check for finding in findings if finding.status == BAD]
    if bad:
        raise FailedCheckError(
            f"{len(bad)} of {len(findings)} checks are bad ({', '.join(bad)}); the table "
            "lists the remedies"
        )


def job(config: DictConfig) -> None:
    """Run the checks here, or in a process that starts with the required environment."""
    missing = instantiate(config.hardware).missing(os.environ)
    if not missing:
        diagnose(config)
        return
    task = {"config": OmegaConf.to_yaml(config, resolve=True)}
    launch(MODULE, task, processes=1, environment=missing, advice="Run it again")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
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
