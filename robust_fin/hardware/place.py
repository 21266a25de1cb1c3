"""Which of the processes of a run this one is, as its starter put it into the environment."""

from collections.abc import Mapping
from dataclasses import dataclass

from robust_fin.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """One of the processes (ranks) that train together.

    Attributes:
        rank: over all machines; rank 0 writes.
        world: number of ranks.
        local_rank: on this machine.
        address: `tcp://` of rank 0, or `file://` on one machine, where the ranks meet.
        starter: what started them, for messages.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    starter: str

    def check_world(self, *, devices: int, nodes: int) -> None:
        """Refuse ranks that the trainer does not count on.

        Raises:
            ConfigError: their number is not trainer.devices times trainer.num_nodes.
        """
        if devices * nodes != self.world:
            raise ConfigError(
                f"{self.starter} started {self.world} processes, and trainer.devices={devices} "
                f"times trainer.num_nodes={nodes} makes {devices * nodes}. Make them equal; "
                "trainer.devices is the number on each machine"
            )


def place_from_outside(environ: Mapping[str, str]) -> Place | None:
    """The place that torchrun or srun gave this process; None where it was started alone.

    Raises:
        ConfigError: a part of what torchrun or srun sets is there and another is not.
    """
    if "TORCHELASTIC_RUN_ID" in environ and int(environ["WORLD_SIZE"]) > 1:
        rank, world = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        return Place(rank, world, int(environ["LOCAL_RANK"]), "env://", "torchrun")
    tasks = int(environ.get("SLURM_NTASKS", "1"))
    interactive = environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" not in environ or tasks == 1 or interactive:
        return None
    if "SLURM_STEP_ID" not in environ:
        raise ConfigError(
            f"SLURM gave this job {tasks} tasks, and this process was started without srun: the "
            "others would be waited for in vain. Put srun before python, or ask for one task"
        )
    from lightning.fabric.plugins.environments import SLURMEnvironment

    try:
        slurm = SLURMEnvironment()
    except RuntimeError as error:
        raise ConfigError(str(error)) from error
    address = f"tcp://{slurm.main_address}:{slurm.main_port}"
    return Place(slurm.global_rank(), slurm.world_size(), slurm.local_rank(), address, "srun")


def local_rank(environ: Mapping[str, str]) -> int:
    """The rank on this machine; 0 where this process is alone."""
    return int(environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0")))


def outside_rank(environ: Mapping[str, str]) -> int:
    """The rank that torchrun or srun gave this process, unchecked; 0 where neither did."""
    name = "RANK" if "TORCHELASTIC_RUN_ID" in environ else "SLURM_PROCID"
    return int(environ.get(name, "0"))
