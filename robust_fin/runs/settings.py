"""The schema of the training config, and the typed settings that are built from a config."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import instantiate, to_absolute_path
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.runtime.terminal import DETAILED, NORMAL, QUIET
from robust_fin.training.losses import check_warmup
from robust_fin.training.settings import (
    CheckpointSettings,
    EngineSettings,
    FitSettings,
    PopulationSettings,
    StabilitySettings,
    TrainerSettings,
)

USER_ERRORS = (RobustFinError, HydraException, OmegaConfBaseException)

OF_SWEEPS = ("sweep", "executor")  # groups that no run sees


@dataclass
class PredictionSettings:
    """The table of the test span.

    Attributes:
        members: of a population, how many keep their single scores.
    """

    members: int = MISSING


@dataclass
class ReportSettings:
    """report.html.

    Attributes:
        pictures: drawn where matplotlib is installed, into the report and into TensorBoard.
    """

    pictures: bool = MISSING


@dataclass
class TrainSettings:
    """Top level of conf/train.yaml, which has the values; a group is what its constructor takes.

    Attributes:
        name: folder of the runs.
        ledger: file in which every run of the project is a line.
        seed: of initialisation, dropout and the order of rows.
        batch_size: rows a training batch and process.
        score_batch_size: rows a validation batch.
        threads: of torch.
        verbose: how much a run says: 0, 1 or 2.
        predictions: what is kept of them.
        report: how it is written.
    """

    name: str = MISSING
    ledger: str = MISSING
    seed: int = MISSING
    batch_size: int = MISSING
    score_batch_size: int = MISSING
    threads: int = MISSING
    verbose: int = MISSING
    predictions: PredictionSettings = field(default_factory=PredictionSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    source: Any = MISSING
    cache: Any = MISSING
    features: Any = MISSING
    target: Any = MISSING
    target_scale: Any = MISSING
    transform: Any = MISSING
    split: Any = MISSING
    model: Any = MISSING
    link: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    engine: Any = MISSING
    population: Any = MISSING
    trainer: Any = MISSING
    hardware: Any = MISSING
    checkpoint: Any = MISSING
    stability: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    baselines: Any = MISSING
    instrument: Any = MISSING
    debug: Any = MISSING
    sweep: Any = MISSING
    executor: Any = MISSING


@dataclass
class SelectSettings(TrainSettings):
    """Top level of conf/select.yaml.

    Attributes:
        select: how candidates are ranked.
    """

    select: Any = MISSING


@dataclass
class LeakcheckSettings(TrainSettings):
    """Top level of conf/leakcheck.yaml.

    Attributes:
        leaks: what is tried on the rest.
    """

    leaks: Any = MISSING


def register_schema() -> None:
    """Let conf/train.yaml, select.yaml and leakcheck.yaml name their schemas in their defaults."""
    ConfigStore.instance().store(name="train_schema", node=TrainSettings)
    ConfigStore.instance().store(name="select_schema", node=SelectSettings)
    ConfigStore.instance().store(name="leakcheck_schema", node=LeakcheckSettings)


def typed(config: DictConfig) -> DictConfig:
    """A config read from a file, held against the schema as one composed by Hydra is."""
    merged = OmegaConf.merge(OmegaConf.structured(TrainSettings), config)
    assert isinstance(merged, DictConfig)
    return merged if any(key in config for key in OF_SWEEPS) else of_run(merged)


def of_run(config: DictConfig) -> DictConfig:
    """The settings of one run alone: without what only a sweep needs, so that no hash knows it."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in OF_SWEEPS])


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


def verbosity_of(config: DictConfig) -> int:
    """What a config asks for; the usual one for a run from before there was a choice.

    Raises:
        ConfigError: it is no such number.
    """
    asked = OmegaConf.select(config, "verbose")
    if asked is None:
        return NORMAL
    if asked not in (QUIET, NORMAL, DETAILED):
        raise ConfigError(
            f"verbose={asked} is not 0 (errors and the verdict), 1 (the usual) or 2 (details)"
        )
    return int(asked)


def readable(error: BaseException) -> str:
    """The message that helps: ours as it is, Hydra's with the cause it hides."""
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, RobustFinError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    if isinstance(error.__cause__, OmegaConfBaseException) and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    return text
