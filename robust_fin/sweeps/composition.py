"""From a trial to what its job needs: a run folder and a frozen config."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from robust_fin.bundle.whole_files import write_whole
from robust_fin.settings import of_run
from robust_fin.sweeps.trial import Trial
from robust_fin.trials import placed


@dataclass(frozen=True, slots=True)
class Composed:
    """What Hydra made of a trial.

    Attributes:
        folder: of its run, absolute.
        config: of the run, every value resolved.
        files: of Hydra's own folder in the run folder, by name.
        logging: settings of the run's log file.
        environment: variables that its devices need, and those that Hydra is to set.
    """

    folder: Path
    config: DictConfig
    files: Mapping[str, str]
    logging: dict[str, Any]
    environment: dict[str, str]

    def write_files(self) -> None:
        """Write config and overrides into the run folder, as Hydra does for a single run."""
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content.encode())


class Composer:
    """Composes jobs as Hydra's own launcher does.

    Args:
        loader: of the command's configs.
        master: the command's config, Hydra's part included.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        """Keep both."""
        self._loader, self._master = loader, master
        self.folder = Path(str(master.hydra.sweep.dir)).absolute()

    def compose(self, trial: Trial) -> Composed:
        """Compose a trial's job; raises what Hydra raises where it cannot."""
        config = self._loader.load_sweep_config(self._master, list(trial.overrides))
        with open_dict(config):
            config.hydra.job.id = str(trial.number)
            config.hydra.job.num = trial.number
        with _in_hydra(config):
            folder = self.folder / str(config.hydra.sweep.subdir)
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = str(folder)
        with _in_hydra(config):
            return _frozen(config, folder)


def _frozen(config: DictConfig, folder: Path) -> Composed:
    hydra = config.hydra
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    settings = of_run(plain)
    resolved = OmegaConf.create(OmegaConf.to_container(settings, resolve=True))
    assert isinstance(resolved, DictConfig)
    files = {
        "config.yaml": OmegaConf.to_yaml(settings),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(config, "hydra")),
        "overrides.yaml": OmegaConf.to_yaml(hydra.overrides.task),
    }
    kept = hydra.output_subdir
    missing = instantiate(resolved.hardware).missing(os.environ)
    variables = {name: str(value) for name, value in _plain(hydra.job.env_set).items()}
    return Composed(
        folder,
        placed(resolved),
        {} if kept is None else {f"{kept}/{name}": text for name, text in files.items()},
        _plain(hydra.job_logging),
        {**missing, **variables},
    )


def _plain(node: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@contextmanager
def _in_hydra(config: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` be that of this job."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    try:
        yield
    finally:
        instance.cfg = before
