import pytest

from robust_fin.errors import ConfigError
from robust_fin.runtime.launcher import LaunchPlan, plan_launch
from tests.runtime.test_devices import hardware
from tests.runtime.test_rank_info import TORCHRUN

ONE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
DDP = ONE | {"devices": 2, "strategy": "ddp"}
DUAL_ON_CPU = ("rocm_dual", "check=false")  # the environment of rocm_dual without its devices


def plan(
    trainer: dict[str, object] = ONE, choice: tuple[str, ...] = ("cpu",), **environ: str
) -> LaunchPlan:
    return plan_launch(trainer, hardware(*choice), environ)


def test_one_process_whose_environment_is_in_place_trains_here() -> None:
    assert plan() == LaunchPlan(None, 0, {})


def test_two_processes_are_started() -> None:
    assert plan(DDP) == LaunchPlan(None, 2, {})


def test_an_environment_that_is_not_in_place_costs_a_process_even_for_one_device() -> None:
    choice = ("cuda", "max_split_size_mb=64", "check=false")
    wanted = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
    assert plan(ONE, choice) == LaunchPlan(None, 1, wanted)
    assert plan(ONE, choice, **wanted) == LaunchPlan(None, 0, {})


def test_both_devices_have_the_environment_of_the_study() -> None:
    launch_plan = plan(DDP, DUAL_ON_CPU)
    assert launch_plan.processes == 2
    assert launch_plan.environment == hardware("rocm_dual").environment()


def test_a_rank_of_torchrun_trains_here_once_its_environment_is_in_place() -> None:
    environ = {**TORCHRUN, "WORLD_SIZE": "2", "RANK": "1"}
    here = plan(DDP, **environ)
    assert (here.processes, here.info and here.info.rank) == (0, 1)
    wanted = hardware("rocm_dual").environment()
    assert plan(DDP, DUAL_ON_CPU, **environ).processes == 1
    assert plan(DDP, DUAL_ON_CPU, **environ, **wanted).processes == 0


@pytest.mark.parametrize(
    ("trainer", "choice", "environ", "message"),
    [
        (DDP | {"num_nodes": 2}, "cpu", {}, "needs torchrun or srun on every machine"),
        (DDP, "cpu", TORCHRUN, "torchrun started 4 processes"),
        (ONE, "cpu", {**TORCHRUN, "WORLD_SIZE": "2"}, "trainer.devices=1 times"),
        (DDP | {"accelerator": "gpu"}, "rocm_dual", {}, "needs 2 AMD devices"),
    ],
)
def test_what_does_not_fit_is_refused(
    trainer: dict[str, object], choice: str, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(trainer, (choice,), **environ)
