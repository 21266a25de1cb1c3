from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from robust_fin.cli.composition import conf_folder
from robust_fin.errors import ConfigError
from robust_fin.runtime.devices import (
    ALLOCATOR,
    Device,
    Hardware,
    Machine,
    check_devices,
    check_trainer,
    is_risky_pair,
    this_machine,
)
from tests.bars import config

CPU_ONLY = Machine("2.13.0+cpu", None, (), 2)
PAIR = "expandable_segments:True,max_split_size_mb:128"


def hardware(choice: str, *overrides: str) -> Hardware:
    """Build `hardware=choice` with the given overrides."""
    settings = OmegaConf.load(conf_folder() / "hardware" / f"{choice}.yaml")
    built = instantiate(OmegaConf.merge(settings, OmegaConf.from_dotlist(list(overrides))))
    assert isinstance(built, Hardware)
    return built


def machine(platform: str, count: int) -> Machine:
    product, arch = ("Radeon RX 7900 XT", "gfx1100") if platform == "rocm" else ("H200", "sm_90")
    gpus = tuple(Device(f"cuda:{k}", product, 20.0, arch) for k in range(count))
    return Machine(f"2.13.0+{platform}", platform, gpus, 16)


def device_error(choice: str, available: Machine, *, processes: int = 1, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_devices(hardware(*choice.split()), available, processes=processes, environ=environ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("cpu", {}),
        ("cuda", {}),
        ("rocm", {}),
        (
            "rocm_dual",
            {
                "HIP_VISIBLE_DEVICES": "0,1",
                "PYTORCH_ROCM_ARCH": "gfx1100",
                "PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:128",
                "PYTORCH_ALLOC_CONF": "max_split_size_mb:128",
            },
        ),
    ],
)
def test_environment_of_each_hardware_choice(choice: str, expected: dict[str, str]) -> None:
    assert hardware(choice).environment() == expected


def test_expandable_segments_adds_to_both_allocator_variables() -> None:
    built = hardware("rocm_dual", "expandable_segments=true").environment()
    assert built["PYTORCH_HIP_ALLOC_CONF"] == built["PYTORCH_ALLOC_CONF"] == PAIR


def test_nvidia_devices_use_cuda_variables() -> None:
    built = hardware("cuda", "visible=[2,0]", "max_split_size_mb=64")
    assert built.environment() == {
        "CUDA_VISIBLE_DEVICES": "2,0",
        "PYTORCH_ALLOC_CONF": "max_split_size_mb:64",
    }


@pytest.mark.parametrize(("text", "risky"), [
    (PAIR, True),
    ("max_split_size_mb:64, expandable_segments:True", True),
    ("expandable_segments:False,max_split_size_mb:128", False),
    ("expandable_segments:True", False),
    ("max_split_size_mb:128,garbage_collection_threshold:0.8", False),
    ("", False),
])  # fmt: skip
def test_risky_pair_is_detected_in_any_order(text: str, risky: bool) -> None:
    assert is_risky_pair(text) is risky


def test_missing_excludes_variables_already_set() -> None:
    dual = hardware("rocm_dual")
    expected = dual.environment()
    assert dual.missing({}) == expected
    assert dual.missing(expected) == {}
    assert dual.missing({"HIP_VISIBLE_DEVICES": "0,1"}) == {
        name: value for name, value in expected.items() if name != "HIP_VISIBLE_DEVICES"
    }


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("HIP_VISIBLE_DEVICES", "2,3", "visible"),
        ("PYTORCH_ROCM_ARCH", "gfx1030", "arch"),
        *((name, PAIR, "expandable_segments") for name in ALLOCATOR),
    ],
)
def test_contradicting_environment_variable_raises(name: str, value: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hardware("rocm_dual").missing({name: value})
    assert f"the shell has {name}={value}" in str(caught.value)
    assert f"set hardware.{key}" in str(caught.value)
    assert hardware("rocm").missing({name: value}) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cpu", "accelerator=gpu"], "platform=None"),
        (["cuda", "platform=vulkan"], "platform=vulkan"),
        (["cpu", "accelerator=tpu"], "accelerator=tpu"),
        (["cuda", "arch=gfx1100"], "applies to AMD devices only"),
        (["rocm", "visible=[0,0]"], r"visible=\[0, 0\]"),
        (["rocm", "visible=[]"], r"visible=\[\]"),
        (["rocm", "visible=[-1]"], r"visible=\[-1\]"),
        (["cpu", "visible=[0]"], "needs hardware.accelerator=gpu"),
        (["rocm", "max_split_size_mb=19"], "below 20"),
    ],
)
def test_invalid_hardware_raises(overrides: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        hardware(*overrides)
    assert isinstance(caught.value.__cause__, ConfigError)


def test_torch_accepts_the_allocator_settings_and_rejects_a_smaller_split() -> None:
    torch._C._accelerator_setAllocatorSettings(PAIR)
    torch._C._accelerator_setAllocatorSettings("max_split_size_mb:20")
    with pytest.raises(ValueError, match="must be >= 20"):
        torch._C._accelerator_setAllocatorSettings("max_split_size_mb:19")
    torch._C._accelerator_setAllocatorSettings("")


@pytest.mark.parametrize(
    ("choice", "available", "processes"),
    [
        ("cpu", CPU_ONLY, 2),
        ("cuda", machine("cuda", 1), 1),
        ("cuda", machine("cuda", 4), 4),
        ("rocm", machine("rocm", 1), 1),
        ("rocm_dual", machine("rocm", 2), 2),
        ("rocm_dual visible=[1,3]", machine("rocm", 4), 2),
        ("rocm_dual check=false", CPU_ONLY, 2),
    ],
)
def test_available_devices_are_accepted(choice: str, available: Machine, processes: int) -> None:
    check_devices(hardware(*choice.split()), available, processes=processes, environ={})


def test_two_amd_devices_on_a_cpu_only_machine() -> None:
    error = device_error("rocm_dual", CPU_ONLY, processes=2)
    assert error.startswith(
        "hardware.platform=rocm needs 2 AMD devices (hardware.visible=[0, 1]). Available: torch "
        "2.13.0+cpu, built for neither CUDA nor ROCm; it sees no device, and 2 processor cores. "
        "Write hardware=cpu trainer=ddp for two processes on the CPU, or hardware=cpu "
        "trainer=default; or install torch's ROCm build"
    )


@pytest.mark.parametrize(
    ("choice", "available", "processes", "suggestion"),
    [
        ("cuda", CPU_ONLY, 1, "Write hardware=cpu trainer=default; or install torch's"),
        ("cuda", machine("rocm", 1), 1, "Write hardware=rocm trainer=default for the one"),
        (
            "cuda",
            machine("rocm", 2),
            1,
            "Write hardware=rocm_dual trainer=ddp_hip for",
        ),
        ("rocm_dual", machine("rocm", 1), 2, "Write hardware=rocm trainer=default"),
        (
            "rocm_dual",
            machine("cuda", 4),
            2,
            "=cuda trainer=ddp trainer.devices=4",
        ),
        ("cuda", machine("cuda", 2), 4, "hardware=cuda trainer=ddp trainer.devices=2"),
        ("rocm visible=[2]", machine("rocm", 2), 1, "hardware=rocm_dual"),
        ("cuda", machine("cuda", 0), 1, "Write hardware=cpu trainer=default;"),
    ],
)
def test_missing_device_error_says_what_to_write(
    choice: str, available: Machine, processes: int, suggestion: str
) -> None:
    error = device_error(choice, available, processes=processes)
    assert suggestion in error
    assert f"Available: {available}" in error
    assert "python -m robust_fin.doctor" in error


def test_visible_devices_are_renumbered_from_zero() -> None:
    choice = "rocm_dual visible=[2,3]"
    shell = {"HIP_VISIBLE_DEVICES": "2,3"}
    two = machine("rocm", 2)
    check_devices(hardware(*choice.split()), two, processes=2, environ=shell)
    assert "needs 2 AMD devices (hardware.visible=[2, 3])" in device_error(choice, two, processes=2)


ONE = {"accelerator": "cpu", "devices": 1, "strategy": "auto"}
DDP = {**ONE, "devices": 2, "strategy": "ddp"}
GPU = {"accelerator": "gpu"}


@pytest.mark.parametrize(
    ("trainer", "choice", "processes"),
    [
        (ONE, "cpu", 1),
        (DDP, "cpu", 2),
        (DDP | {"devices": 5}, "cpu", 5),
        (DDP | GPU, "rocm_dual", 2),
        (DDP | GPU, "cuda", 2),
        (ONE | GPU | {"devices": [1]}, "cuda", 1),
        (DDP | GPU | {"devices": [0, 2]}, "cuda", 2),
        (ONE | {"devices": 3, "strategy": "ddp_find_unused_parameters_true"}, "cpu", 3),
        (DDP, "rocm_dual check=false", 2),
    ],
)
def test_valid_trainer_returns_its_number_of_processes(
    trainer: dict[str, Any], choice: str, processes: int
) -> None:
    assert check_trainer(trainer, hardware(*choice.split())) == processes


@pytest.mark.parametrize(
    ("trainer", "choice", "message"),
    [
        (ONE | GPU, "cpu", "write hardware=cuda or hardware=rocm"),
        (ONE, "cuda", "write trainer.accelerator=gpu"),
        (ONE | GPU, "rocm_dual", r"trainer.devices=1 uses 1: .* Write trainer=ddp_hip"),
        (DDP | GPU | {"devices": 3}, "rocm_dual", "Make them equal"),
        (ONE | {"devices": "auto"}, "cpu", "trainer.devices=auto must be a number of devices"),
        (ONE | {"devices": -1}, "cpu", "trainer.devices=-1 must be"),
        (ONE | {"devices": 0}, "cpu", "trainer.devices=0 must be"),
        (ONE | {"devices": True}, "cpu", "trainer.devices=True must be"),
        (DDP | {"strategy": "ddp_spawn"}, "cpu", "trainer.strategy=ddp_spawn is not supported"),
        (DDP | {"strategy": "fsdp"}, "cpu", "use auto or ddp"),
    ],
)
def test_invalid_trainer_raises(trainer: dict[str, Any], choice: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_trainer(trainer, hardware(*choice.split()))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer=ddp"], DDP),
        (["trainer=ddp_hip", "hardware=rocm_dual"], DDP | GPU),
        (["+experiment=dual_hip"], DDP | GPU),
        (["+experiment=dual_hip", "hardware=cpu", "trainer=ddp"], DDP),
        (["hardware=cuda"], ONE | GPU),
    ],
)
def test_config_choices_set_the_trainer(overrides: list[str], expected: dict[str, Any]) -> None:
    built = config(*overrides).trainer
    assert {key: built[key] for key in expected} == expected


def test_this_machine_matches_torch() -> None:
    import torch

    here = this_machine()
    assert here.torch_version == torch.__version__
    assert len(here.gpus) == torch.cuda.device_count()
    assert here.cores >= 1
