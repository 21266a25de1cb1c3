import pytest

from robust_fin.errors import ConfigError
from robust_fin.runtime.launcher import LaunchPlan, plan_launch
from tests.runtime.test_environment import hardware
from tests.runtime.test_place import TORCHRUN

ONE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
DDP = ONE | {"devices": 2, "strategy": "ddp"}
TRIED = ("rocm_dual", "check=false")  # the environment of two devices, on the CPU


def start(
    trainer: dict[str, object] = ONE, choice: tuple[str, ...] = ("cpu",), **environ: str
) -> LaunchPlan:
    return plan_launch(trainer, hardware(*choice), environ)


def test_one_process_whose_environment_is_in_place_trains_here() -> None:
    assert start() == LaunchPlan(None, 0, {})


def test_two_processes_are_started() -> None:
    assert start(DDP) == LaunchPlan(None, 2, {})


def test_an_environment_that_is_not_in_place_costs_a_process_even_for_one_device() -> None:
    choice = ("cuda", "max_split_size_mb=64", "check=false")
    wanted = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
    assert start(ONE, choice) == LaunchPlan(None, 1, wanted)
    assert start(ONE, choice, **wanted) == LaunchPlan(None, 0, {})


def test_both_devices_have_the_environment_of_the_study() -> None:
    plan = start(DDP, TRIED)
    assert plan.processes == 2
    assert plan.environment == hardware("rocm_dual").environment()


def test_a_rank_of_torchrun_trains_here_once_its_environment_is_in_place() -> None:
    environ = {**TORCHRUN, "WORLD_SIZE": "2", "RANK": "1"}
    here = start(DDP, **environ)
    assert (here.processes, here.info and here.info.rank) == (0, 1)
    wanted = hardware("rocm_dual").environment()
    assert start(DDP, TRIED, **environ).processes == 1
    assert start(DDP, TRIED, **environ, **wanted).processes == 0


@pytest.mark.parametrize(
    ("trainer", "choice", "environ", "telling"),
    [
        (DDP | {"num_nodes": 2}, "cpu", {}, "needs torchrun or srun on every machine"),
        (DDP, "cpu", TORCHRUN, "torchrun started 4 processes"),
        (ONE, "cpu", {**TORCHRUN, "WORLD_SIZE": "2"}, "trainer.devices=1 times"),
        (DDP | {"accelerator": "gpu"}, "rocm_dual", {}, "asks for 2 AMD devices"),
    ],
)
def test_what_does_not_fit_is_refused(
    trainer: dict[str, object], choice: str, environ: dict[str, str], telling: str
) -> None:
    with pytest.raises(ConfigError, match=telling):
        start(trainer, (choice,), **environ)
