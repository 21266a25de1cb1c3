from typing import Any

import pytest

from robust_fin.errors import ConfigError
from robust_fin.runtime.devices import Device, Machine, check_devices, check_trainer, this_machine
from tests.bars import config
from tests.runtime.test_environment import hardware

CPU_ONLY = Machine("2.13.0+cpu", None, (), 2)


def machine(platform: str, count: int) -> Machine:
    product, arch = ("Radeon RX 7900 XT", "gfx1100") if platform == "rocm" else ("H200", "sm_90")
    gpus = tuple(Device(f"cuda:{k}", product, 20.0, arch) for k in range(count))
    return Machine(f"2.13.0+{platform}", platform, gpus, 16)


def refusal(choice: str, there: Machine, *, processes: int = 1, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_devices(hardware(*choice.split()), there, processes=processes, environ=environ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("choice", "there", "processes"),
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
def test_devices_that_are_there_are_fine(choice: str, there: Machine, processes: int) -> None:
    check_devices(hardware(*choice.split()), there, processes=processes, environ={})


def test_two_amd_devices_on_a_bare_machine() -> None:
    message = refusal("rocm_dual", CPU_ONLY, processes=2)
    assert message.startswith(
        "hardware.platform=rocm asks for 2 AMD devices (hardware.visible=[0, 1]). Here is torch "
        "2.13.0+cpu, built for neither CUDA nor ROCm; it sees no device, and 2 processor cores. "
        "Write hardware=cpu trainer=ddp for two processes on the CPU, or hardware=cpu "
        "trainer=default; or install torch's ROCm build"
    )


@pytest.mark.parametrize(
    ("choice", "there", "processes", "instead"),
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
def test_a_device_that_is_not_there_says_what_to_write(
    choice: str, there: Machine, processes: int, instead: str
) -> None:
    message = refusal(choice, there, processes=processes)
    assert instead in message
    assert f"Here is {there}" in message
    assert "python -m robust_fin.doctor" in message


def test_numbers_count_from_the_first_visible_device() -> None:
    choice = "rocm_dual visible=[2,3]"
    shell = {"HIP_VISIBLE_DEVICES": "2,3"}
    two = machine("rocm", 2)
    check_devices(hardware(*choice.split()), two, processes=2, environ=shell)
    assert "asks for 2 AMD devices (hardware.visible=[2, 3])" in refusal(choice, two, processes=2)


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
def test_a_trainer_that_fits_tells_its_processes(
    trainer: dict[str, Any], choice: str, processes: int
) -> None:
    assert check_trainer(trainer, hardware(*choice.split())) == processes


@pytest.mark.parametrize(
    ("trainer", "choice", "telling"),
    [
        (ONE | GPU, "cpu", "write hardware=cuda or hardware=rocm"),
        (ONE, "cuda", "write trainer.accelerator=gpu"),
        (ONE | GPU, "rocm_dual", r"trainer.devices=1 uses 1: .* Write trainer=ddp_hip"),
        (DDP | GPU | {"devices": 3}, "rocm_dual", "Make them equal"),
        (ONE | {"devices": "auto"}, "cpu", "trainer.devices=auto must be a number of devices"),
        (ONE | {"devices": -1}, "cpu", "trainer.devices=-1 must be"),
        (ONE | {"devices": 0}, "cpu", "trainer.devices=0 must be"),
        (ONE | {"devices": True}, "cpu", "trainer.devices=True must be"),
        (DDP | {"strategy": "ddp_spawn"}, "cpu", "trainer.strategy=ddp_spawn is not known"),
        (DDP | {"strategy": "fsdp"}, "cpu", "auto and ddp are"),
    ],
)
def test_a_trainer_that_does_not_fit_is_refused(
    trainer: dict[str, Any], choice: str, telling: str
) -> None:
    with pytest.raises(ConfigError, match=telling):
        check_trainer(trainer, hardware(*choice.split()))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["trainer=ddp"], DDP),
        (["trainer=ddp_hip", "hardware=rocm_dual"], DDP | GPU),
        (["+experiment=dual_hip"], DDP | GPU),
        (["+experiment=dual_hip", "hardware=cpu", "trainer=ddp"], DDP),
        (["hardware=cuda"], ONE | GPU),
    ],
)
def test_the_choices_make_such_trainers(words: list[str], wanted: dict[str, Any]) -> None:
    made = config(*words).trainer
    assert {key: made[key] for key in wanted} == wanted


def test_this_machine_is_what_torch_says() -> None:
    import torch

    here = this_machine()
    assert here.torch_version == torch.__version__
    assert len(here.gpus) == torch.cuda.device_count()
    assert here.cores >= 1
