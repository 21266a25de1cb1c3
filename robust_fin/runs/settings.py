"""The schema of the training config: its keys and their types, so that a stray one is refused."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.runtime.terminal import DETAILED, NORMAL, QUIET

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


def check_ranges(config: DictConfig) -> None:
    """Refuse numbers that no part of the run checks by itself.

    Raises:
        ConfigError: names the key and what it may be.
    """
    if config.threads < 1:
        raise ConfigError(f"threads={config.threads} must be at least 1")
    every = config.checkpoint.every_n_steps
    if not isinstance(every, int) or every < 1:
        raise ConfigError(f"checkpoint.every_n_steps={every} must be a whole number, at least 1")
    _check_stability(config.stability)
    _check_link(config)
    for key in ("max_epochs", "max_steps"):
        value = config.trainer[key]
        if not (isinstance(value, int | None) and value != 0 and (value is None or value >= -1)):
            raise ConfigError(
                f"trainer.{key}={value} must be a whole number above 0, or -1 for no limit"
            )


def _check_link(config: DictConfig) -> None:
    """A sigmoid's forecasts lie in (0, 1), where ranks are and returns are not."""
    scale, link = config.target_scale["_target_"], config.link["_target_"]
    if scale.endswith(".ReturnScale") and link.endswith(".sigmoid"):
        raise ConfigError(
            "link=sigmoid keeps forecasts in (0, 1), and target_scale=return trains on returns; "
            "write link=identity"
        )


def _check_stability(settings: DictConfig) -> None:
    if settings.on_nonfinite not in ("stop", "rollback"):
        raise ConfigError(
            f"stability.on_nonfinite={settings.on_nonfinite} is neither stop nor rollback"
        )
    for key, least in (("max_rollbacks", 0), ("keep_every_n_steps", 1)):
        value = settings[key]
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"stability.{key}={value} must be a whole number, at least {least}")
    every = settings.diagnose_every_n_steps
    if every is not None and not (isinstance(every, int) and every >= 1):
        raise ConfigError(
            f"stability.diagnose_every_n_steps={every} must be a whole number above 0, or null"
        )


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
