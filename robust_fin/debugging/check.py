"""What a debugging run is, and what it works with."""

from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig, OmegaConf

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.hardware.group import world_size


class CheckError(RobustFinError):
    """A debugging run that found what it looks for."""


class Check(Protocol):
    """A look at a run, in place of the run: it leaves no metrics.json and no trial."""

    def look(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Do it, and say what was seen.

        Args:
            config: as composed.
            data: the first fold.
            folder: of the run.

        Raises:
            CheckError: something is wrong with the net or its settings.
        """
        ...


def plainly(config: DictConfig) -> DictConfig:
    """The same settings for Lightning's own loop and one net.

    Raises:
        ConfigError: several processes were asked for.
    """
    if world_size() > 1:
        raise ConfigError(
            f"a debugging run is for one process, and there are {world_size()}; "
            "leave trainer=ddp out"
        )
    found = config.copy()
    OmegaConf.update(found, "engine.name", "plain")
    return found
