"""python -m robust_fin.evaluate run=RUN_FOLDER [lockbox=true], or run=[A,B] to compare."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from robust_fin.bundle import read_config, read_provenance
from robust_fin.command import run_job
from robust_fin.errors import BundleError, ConfigError
from robust_fin.evaluation.console import compare_table, judgement_tables, metric_tables, show
from robust_fin.evaluation.contest import contest, contest_words
from robust_fin.evaluation.pairing import paired, pairing_tables
from robust_fin.evaluation.report import write_report
from robust_fin.evaluation.significance import Judgement, judge
from robust_fin.evaluation.verdict import verdict
from robust_fin.lockbox import LOCKBOX, open_lockbox
from robust_fin.trials import daily_of, deflated_words

PREDICTIONS = "predictions.parquet"


def evaluate(run: Path) -> dict[str, Any]:
    """Print the figures of a finished run beside its baselines, and the verdict.

    Raises:
        BundleError: `run` is not the folder of a finished run.
    """
    metrics = read_metrics(run)
    config = read_config(run)
    show(*metric_tables(metrics, title=f"{config.name}, {run.name}"))
    predictions = pd.read_parquet(run / PREDICTIONS)
    found = judged(predictions, config)
    trials = deflated_words(run)
    written = write_report(run, predictions, found, metrics=metrics, pictures=True, notes=[trials])
    show(*judgement_tables(found), f"report       {written}", trials, verdict(found))
    return metrics


def look(run: Path) -> None:
    """Score the lockbox of a finished run, log the look, and print what it shows.

    Raises:
        BundleError: the run has no lockbox, or the bars are not those it read.
    """
    read_metrics(run)
    opened = open_lockbox(run)
    show(*judgement_tables(opened.judgement), opened.words)
    show(f"Lockbox: {verdict(opened.judgement)}", f"written to   {run / LOCKBOX}")


def compare(runs: Sequence[Path]) -> None:
    """Print finished runs side by side, and what picking the best of them is worth."""
    show(compare_table({run.name: read_metrics(run) for run in runs}))
    tables = {str(run): pd.read_parquet(run / PREDICTIONS) for run in runs}
    first, *others = tables
    for other in others:
        show(*pairing_tables(paired(tables[first], tables[other]), first, other))
    if len(runs) > 1:
        show(*picking_words(runs))
    for run in runs:
        show(f"{run.name}: {verdict(judged(tables[str(run)], read_config(run)))}")


def picking_words(runs: Sequence[Path]) -> list[str]:
    """Probability of backtest overfitting and SPA test, where the runs allow them."""
    if len({read_provenance(run)["data_sha256"] for run in runs}) > 1:
        return ["No PBO and no SPA: these runs read different bars."]
    return contest_words(contest({str(run): daily_of(run) for run in runs}))


def judged(predictions: pd.DataFrame, config: DictConfig) -> Judgement:
    """What the net's forecasts of the test span carry, from the predictions table alone."""
    return judge(predictions, instrument=instantiate(config.instrument))


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
        if config.lockbox:
            raise ConfigError("lockbox=true takes one run folder: a look at many is a choice")
        compare([Path(one).expanduser() for one in config.run])
        return
    folder = Path(config.run).expanduser()
    if config.lockbox:
        look(folder)
    else:
        evaluate(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    return run_job(job, config_name="evaluate", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
