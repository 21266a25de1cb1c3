"""python -m robust_fin.predict run=RUN_FOLDER source.path=FILE out=FILE.parquet."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle import load_bundle
from robust_fin.command import run_job
from robust_fin.errors import ConfigError
from robust_fin.evaluation.console import show

log = logging.getLogger(__name__)


def predict(config: DictConfig, *, given: Sequence[str]) -> Path:
    """Score every bar that has all features, and write the predictions table.

    Args:
        config: run, source and out.
        given: the overrides of source that were written on the command line; what is not among
            them is taken from the run, so that its timezone and calendar hold for the new bars too.

    Returns:
        The file written.
    """
    out = Path(str(config.out)).expanduser()
    if out.suffix != ".parquet":
        raise ConfigError(f"out={config.out} must end in .parquet")
    bundle = load_bundle(Path(config.run).expanduser())
    torch.set_num_threads(bundle.config.threads)
    source = bundle.config.source
    OmegaConf.update(source, "spikes", config.source.spikes)  # a run's own were to test the run
    for word in given:
        key = word.partition("=")[0].lstrip("+").removeprefix("source.")
        OmegaConf.update(source, key, OmegaConf.select(config.source, key))
    table = bundle.predict_source(instantiate(source))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(out, index=False)
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {error}") from error
    unknown = int(table["outcome"].isna().sum())
    show(f"{len(table):,} rows scored, {unknown:,} of them without an outcome yet: {out}")
    return out


def job(config: DictConfig) -> None:
    """What Hydra calls."""
    words = HydraConfig.get().overrides.task
    predict(config, given=[word for word in words if word.lstrip("+").startswith("source.")])


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    return run_job(job, config_name="predict", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
