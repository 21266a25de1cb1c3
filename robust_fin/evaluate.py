"""python -m robust_fin.evaluate run=RUN_FOLDER [lockbox=true], or run=[A,B] to compare."""

from robust_fin.cli.help import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("evaluate")  # before torch is imported

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from robust_fin.bundle.folder import read_provenance
from robust_fin.cli.command import make_module_callable, run_command
from robust_fin.errors import ConfigError
from robust_fin.evaluation.run_selection import (
    compare_runs,
    comparison_tables,
    judge_selection,
    selection_sentences,
)
from robust_fin.evaluation.significance import Judgement
from robust_fin.evaluation.tables import compare_table, judgement_tables, metric_tables
from robust_fin.evaluation.verdict import verdict
from robust_fin.ledger.lockbox import LOCKBOX, open_lockbox
from robust_fin.ledger.record import read_daily_series, summarize_trials
from robust_fin.runs.results import publish
from robust_fin.runs.run import Run
from robust_fin.runtime.terminal import RESULT, show


def evaluate(run: Run | Path | str) -> Judgement:
    """Judge the test span of a finished run against its baselines.

    Args:
        run: a finished run, or its folder.

    Returns:
        Every figure with its interval, every paired difference, calibration and edge.

    Raises:
        BundleError: `run` is not the folder of a finished run.

    Examples:
        >>> from robust_fin import evaluate, fit, verdict
        >>> tiny = ["source.synthetic.rows=9000", "features=study", "report.pictures=false"]
        >>> run = fit("smoke", *tiny)
        >>> found = evaluate(run)
        >>> found.net.dates, found.net.skill.low < found.net.skill.estimate < found.net.skill.high
        (2, True)
        >>> sorted(found.against), verdict(found) == run.verdict
        (['constant', 'minus_last_return', 'ridge'], True)
    """
    found = Run.of(run)
    found.metrics  # noqa: B018  # refuses a run that has not finished
    return found.judgement


def tell(folder: Path) -> dict[str, Any]:
    """Print the figures of a finished run beside its baselines, and the verdict.

    Raises:
        BundleError: it is not the folder of a finished run.
    """
    run = Run.of(folder)
    metrics, found = run.metrics, evaluate(run)
    show(*metric_tables(metrics, title=f"{run.config.name}, {folder.name}"))
    trials = summarize_trials(folder)
    written = publish(
        folder, run.predictions, found, metrics=metrics, pictures=True, notes=[trials]
    )
    show(*judgement_tables(found), f"report       {written}", trials)
    show(verdict(found), level=RESULT)
    return metrics


def look(run: Path) -> None:
    """Score the lockbox of a finished run, log the look, and print what it shows.

    Raises:
        BundleError: the run has no lockbox, or the bars are not those it read.
    """
    read_metrics(run)
    opened = open_lockbox(run)
    show(*judgement_tables(opened.judgement), opened.words)
    show(f"Lockbox: {verdict(opened.judgement)}", level=RESULT)
    show(f"written to   {run / LOCKBOX}")


def compare(runs: Sequence[Path]) -> None:
    """Print finished runs side by side, and what picking the best of them is worth."""
    finished = {str(run): Run.of(run) for run in runs}
    show(compare_table({one.folder.name: one.metrics for one in finished.values()}))
    tables = {name: one.predictions for name, one in finished.items()}
    first, *others = tables
    for other in others:
        show(*comparison_tables(compare_runs(tables[first], tables[other]), first, other))
    if len(runs) > 1:
        show(*picking_words(runs))
    for run in runs:
        show(f"{run.name}: {finished[str(run)].verdict}", level=RESULT)


def picking_words(runs: Sequence[Path]) -> list[str]:
    """Probability of backtest overfitting and SPA test, where the runs allow them."""
    if len({read_provenance(run)["data_sha256"] for run in runs}) > 1:
        return ["No PBO and no SPA: these runs read different bars."]
    return selection_sentences(judge_selection({str(run): read_daily_series(run) for run in runs}))


def read_metrics(run: Path) -> dict[str, Any]:
    """metrics.json of a run.

    Raises:
        BundleError: the run is none, or has not finished.
    """
    return Run.of(run).metrics


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
        tell(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    return run_command(job, config_name="evaluate", argv=argv)


make_module_callable(evaluate)

if __name__ == "__main__":
    sys.exit(main())
