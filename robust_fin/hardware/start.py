"""Where a run is to be trained: in this process, or in others that are started for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robust_fin.errors import ConfigError
from robust_fin.hardware.devices import check_devices, check_trainer, this_machine
from robust_fin.hardware.environment import Hardware
from robust_fin.hardware.place import Place, place_from_outside


@dataclass(frozen=True, slots=True)
class Start:
    """How a run starts.

    Attributes:
        place: that torchrun or srun gave this process; None where it was started alone.
        processes: to start, one a device of this machine; 0 where this process trains itself.
        environment: that they need beside this process's own.
    """

    place: Place | None
    processes: int
    environment: dict[str, str]


def plan_start(trainer: Mapping[str, Any], hardware: Hardware, environ: Mapping[str, str]) -> Start:
    """Check that trainer, hardware, machine and environment fit together, before any bar is read.

    Variables that are not in the environment yet cost a process of its own even for one device,
    because torch has been imported here.

    Args:
        trainer: the Trainer's settings.
        hardware: what the run asks for.
        environ: of this process.

    Raises:
        ConfigError: they do not; says what to write instead.
    """
    devices, nodes = check_trainer(trainer, hardware), int(trainer["num_nodes"])
    place, missing = place_from_outside(environ), hardware.missing(environ)
    if hardware.check and hardware.platform is not None:
        check_devices(hardware, this_machine(), processes=devices, environ=environ)
    if place is not None:
        place.check_world(devices=devices, nodes=nodes)
        return Start(place, 1 if missing else 0, missing)
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes} needs torchrun or srun on every machine, as the README "
            "shows; alone, this command starts the processes of one machine"
        )
    return Start(None, devices if devices > 1 or missing else 0, missing)
