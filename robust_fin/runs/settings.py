"""Typed settings of a fit, built once from the composed config."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate, to_absolute_path
from omegaconf import DictConfig, OmegaConf
from torch import nn

from robust_fin.errors import ConfigError
from robust_fin.training.losses import check_warmup
from robust_fin.training.settings import (
    CheckpointSettings,
    EngineSettings,
    FitSettings,
    PopulationSettings,
    StabilitySettings,
    TrainerSettings,
)


def with_absolute_ledger(config: DictConfig) -> DictConfig:
    """Make the path of the trial ledger absolute, so that later commands find it.

    A relative path starts at the folder in which the command was started.
    """
    changed = config.copy()
    changed.ledger = to_absolute_path(str(Path(config.ledger).expanduser()))
    return changed


def check_ranges(config: DictConfig) -> None:
    """Check the values that no typed settings check.

    Raises:
        ConfigError: `threads` is below 1, or the link does not fit the target scale.
    """
    if config.threads < 1:
        raise ConfigError(f"threads={config.threads} must be at least 1")
    scale, link = config.target_scale["_target_"], config.link["_target_"]
    if scale.endswith(".ReturnScale") and link.endswith(".sigmoid"):
        raise ConfigError(
            "link=sigmoid keeps forecasts in (0, 1), and target_scale=return trains on returns; "
            "write link=identity"
        )


def fit_settings(config: DictConfig) -> FitSettings:
    """Build the settings of a fit from the config of a run.

    Raises:
        ConfigError: a value is out of range.
    """
    schedule = bound_function(config.schedule)
    check_warmup(schedule.keywords.get("warmup", 0))
    return FitSettings(
        seed=config.seed,
        batch_size=config.batch_size,
        net=net_factory(config.model),
        link=bound_function(config.link),
        loss=bound_function(config.loss),
        optimizer=bound_function(config.optimizer),
        schedule=schedule,
        engine=EngineSettings.checked(plain_values(config.engine)),
        population=PopulationSettings.checked(plain_values(config.population)),
        trainer=TrainerSettings.checked(
            plain_values(config.trainer), build=partial(instantiate, config.trainer)
        ),
        checkpoint=CheckpointSettings.checked(plain_values(config.checkpoint)),
        stability=StabilitySettings.checked(plain_values(config.stability)),
        callbacks=partial(_callbacks, config.callbacks),
        logger=partial(instantiate, config.logger),
        config=OmegaConf.to_yaml(config, resolve=True),
    )


def bound_function(config: DictConfig) -> partial[Any]:
    """Return the target of a YAML with `_partial_: true`, with its arguments bound.

    Hydra's own partial checks its policy on every call, which takes 0.1 ms: as long as a step of a
    small net. Here the check runs once.

    Raises:
        ConfigError: `_partial_: true` is missing.
    """
    part = instantiate(config)
    if not isinstance(part, partial):
        raise ConfigError(f"{config.get('_target_')} needs _partial_: true; it is called by step")
    return partial(part.func, *part.args, **part.keywords)


def net_factory(config: DictConfig) -> Callable[..., nn.Module]:
    """Return a function that builds the net; called with `features=n`.

    The first call goes through Hydra, which reports wrong arguments. Later calls skip its checks,
    which take milliseconds, unless the net has parts with a `_target_` that it must not share.
    """
    through_hydra = partial(instantiate, config)
    if str(OmegaConf.to_container(config)).count("'_target_'") > 1:
        return through_hydra
    direct: list[Callable[..., nn.Module]] = []

    def build(*, features: int) -> nn.Module:
        if direct:
            return direct[0](features=features)
        net: nn.Module = through_hydra(features=features)
        part = instantiate(config, _partial_=True)
        direct.append(partial(part.func, *part.args, **part.keywords))
        return net

    return build


def _callbacks(config: DictConfig) -> list[L.Callback]:
    return [instantiate(callback) for callback in config.values()]


def plain_values(config: DictConfig) -> dict[str, Any]:
    """Return a config as nested dictionaries and lists, every value resolved."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
