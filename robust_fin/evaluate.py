"""python -m robust_fin.evaluate run=RUN_FOLDER, or run=[A,B] to compare."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, ListConfig

from robust_fin.bundle import read_config
from robust_fin.command import run_job
from robust_fin.errors import BundleError, ConfigError
from robust_fin.evaluation.console import compare_table, metric_tables, show
from robust_fin.evaluation.significance import Significance, judged_table, verdict


def evaluate(run: Path) -> dict[str, Any]:
    """Print the figures of a finished run beside its baselines, and the verdict.

    Raises:
        BundleError: `run` is not the folder of a finished run.
    """
    metrics = read_metrics(run)
    config = read_config(run)
    show(*metric_tables(metrics, title=f"{config.name}, {run.name}"))
    show(verdict(judged(run)))
    return metrics


def judged(run: Path) -> Significance:
    """Intervals of the net on the test span, from the predictions table alone."""
    return judged_table(pd.read_parquet(run / "predictions.parquet"))


def read_metrics(run: Path) -> dict[str, Any]:
    """metrics.json of a run.

    Raises:
        BundleError: the run is none, or has not finished.
    """
    read_config(run)
    path = run / "metrics.json"
    if not path.is_file():
        raise BundleError(
            f"{run} has no metrics.json: the run has not finished. python -m robust_fin.train "
            f"resume={run} goes on with it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def job(config: DictConfig) -> None:
    """What Hydra calls."""
    if isinstance(config.run, ListConfig):
        if not config.run:
            raise ConfigError("run=[] names no run folder; run=[A,B] compares two")
        folders = [Path(one).expanduser() for one in config.run]
        show(compare_table({folder.name: read_metrics(folder) for folder in folders}))
        show(*(f"{folder.name}: {verdict(judged(folder))}" for folder in folders))
        return
    evaluate(Path(config.run).expanduser())


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    return run_job(job, config_name="evaluate", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
