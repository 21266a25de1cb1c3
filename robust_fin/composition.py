"""A verb's config composed without a command line, as Hydra composes it for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from robust_fin.configs import composed_whole
from robust_fin.errors import ConfigError
from robust_fin.settings import register_schema
from robust_fin.suggestions import explained, require_known


@dataclass(frozen=True, slots=True)
class Composition:
    """What a command line of a verb comes to.

    Attributes:
        config: the settings.
        hydra: Hydra's own, as YAML; its resolvers are Hydra's.
        folder: where the run would go, relative to the working directory.
        is_sweep: whether the settings ask for many runs.
        choices: what was chosen of each group.
    """

    config: DictConfig
    hydra: str
    folder: Path
    is_sweep: bool
    choices: Mapping[str, str]


def composed(verb: str, words: Sequence[str]) -> Composition:
    """Compose the config of a verb; whatever Hydra had in hand before is there again after.

    Args:
        verb: the name of a primary YAML, such as train.
        words: overrides, as on the command line.

    Raises:
        ConfigError: a word names no key or choice.
    """
    register_schema()
    try:
        whole = composed_whole(verb, words)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explained(error, verb=verb, words=words)) from error
    require_known(whole, verb=verb, words=words)
    hydra = whole.hydra
    found = Composition(
        whole,
        OmegaConf.to_yaml(hydra),
        Path(hydra.run.dir),
        hydra.mode is RunMode.MULTIRUN,
        dict(hydra.runtime.choices),
    )
    with open_dict(whole):
        del whole["hydra"]
    return found
