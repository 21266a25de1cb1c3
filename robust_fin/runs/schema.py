"""Schema of the composed config: its keys and their types, so that unknown keys are refused."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import to_absolute_path
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robust_fin.errors import ConfigError, RobustFinError
from robust_fin.runtime.terminal import DETAILED, NORMAL, QUIET

USER_ERRORS = (RobustFinError, HydraException, OmegaConfBaseException)
SWEEP_KEYS = ("sweep", "executor")  # groups that a single run does not see


@dataclass
class PredictionSettings:
    """Settings of the predictions table.

    Attributes:
        members: number of members of a population whose single scores are kept.
    """

    members: int = MISSING


@dataclass
class ReportSettings:
    """Settings of report.html.

    Attributes:
        pictures: draw pictures, for the report and for TensorBoard; needs matplotlib.
    """

    pictures: bool = MISSING


@dataclass
class TrainSettings:
    """Top level of conf/train.yaml, which holds the values.

    Attributes:
        name: name of the folder of runs.
        ledger: file of the trial ledger.
        seed: of initialisation, dropout and row order.
        batch_size: rows per training batch and rank.
        score_batch_size: rows per validation batch.
        threads: number of torch threads.
        verbose: console output: 0, 1 or 2.
        predictions: settings of the predictions table.
        report: settings of the report.
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
        select: how features are ranked.
    """

    select: Any = MISSING


@dataclass
class LeakcheckSettings(TrainSettings):
    """Top level of conf/leakcheck.yaml.

    Attributes:
        leaks: which perturbations are tried.
    """

    leaks: Any = MISSING


def register_schema() -> None:
    """Register the schemas that conf/train.yaml, select.yaml and leakcheck.yaml refer to."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainSettings)
    store.store(name="select_schema", node=SelectSettings)
    store.store(name="leakcheck_schema", node=LeakcheckSettings)


def apply_schema(config: DictConfig) -> DictConfig:
    """Validate a config read from a file against the schema, as Hydra does when it composes."""
    merged = OmegaConf.merge(OmegaConf.structured(TrainSettings), config)
    assert isinstance(merged, DictConfig)
    return merged if any(key in config for key in SWEEP_KEYS) else without_sweep_keys(merged)


def without_sweep_keys(config: DictConfig) -> DictConfig:
    """Return the config of a single run, so that no hash depends on the sweep's settings."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in SWEEP_KEYS])


def with_absolute_ledger(config: DictConfig) -> DictConfig:
    """Make the path of the trial ledger absolute, so that later commands find it.

    A relative path starts at the folder in which the command was started.
    """
    changed = config.copy()
    changed.ledger = to_absolute_path(str(Path(config.ledger).expanduser()))
    return changed


def plain_values(config: DictConfig) -> dict[str, Any]:
    """Return a config as nested dictionaries and lists, every value resolved."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


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


def get_verbosity(config: DictConfig) -> int:
    """Return the value of `verbose`; NORMAL where the config has none.

    Raises:
        ConfigError: the value is not 0, 1 or 2.
    """
    verbose = OmegaConf.select(config, "verbose")
    if verbose is None:
        return NORMAL
    if verbose not in (QUIET, NORMAL, DETAILED):
        raise ConfigError(
            f"verbose={verbose} must be 0 (errors and the verdict), 1 (normal) or 2 (details)"
        )
    return int(verbose)


def format_error(error: BaseException) -> str:
    """Format an error for the user: our message as it is, Hydra's together with its cause."""
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, RobustFinError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    if isinstance(error.__cause__, OmegaConfBaseException) and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    return text
