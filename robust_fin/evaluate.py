"""Judge the test span of a finished run, open its lockbox, or compare several runs.

python -m robust_fin.evaluate run=RUN_FOLDER [lockbox=true] [instrument=NAME]
python -m robust_fin.evaluate run=RUN_FOLDER void="the bars had a wrong time zone"
python -m robust_fin.evaluate run=[A,B]
"""

from robust_fin.cli.command import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("evaluate")  # before torch is imported

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from robust_fin.bundle.folder import read_provenance
from robust_fin.cli.command import make_module_callable, run_command
from robust_fin.errors import ConfigError
from robust_fin.evaluation.breakdowns import Instrument
from robust_fin.evaluation.run_selection import (
    compare_runs,
    comparison_tables,
    judge_selection,
    selection_sentences,
)
from robust_fin.evaluation.significance import Judgement
from robust_fin.evaluation.tables import compare_table, judgement_tables, metric_tables
from robust_fin.evaluation.verdict import MIN_TEST_DATES, format_figures, verdict
from robust_fin.ledger.record import (
    LOCKBOX,
    open_lockbox,
    read_daily_series,
    summarize_trials,
    void_trial,
)
from robust_fin.runs.results import publish
from robust_fin.runs.run import Run
from robust_fin.runtime.files import lock_folder
from robust_fin.runtime.terminal import RESULT, show


def evaluate(run: Run | Path | str) -> Judgement:
    """Judge the test span of a finished run against its baselines.

    Args:
        run: a finished run, or its folder.

    Returns:
        Every metric with its interval, every paired difference, calibration and edge.

    Raises:
        BundleError: `run` is not the folder of a finished run.

    Examples:
        >>> from robust_fin import evaluate, fit, verdict
        >>> tiny = ["source.synthetic.rows=9000", "features=study", "report.pictures=false"]
        >>> run = fit("smoke", *tiny)
        >>> judgement = evaluate(run)
        >>> skill = judgement.net.skill
        >>> judgement.net.dates, skill.low < skill.estimate < skill.high
        (2, True)
        >>> sorted(judgement.against), verdict(judgement) == run.verdict
        (['constant', 'minus_last_return', 'ridge'], True)
    """
    finished = Run.open(run)
    finished.metrics  # noqa: B018  # raises unless the run has finished
    return finished.judgement


def evaluate_run(run: Run, *, instrument: Instrument | None = None) -> None:
    """Print the metrics of a finished run beside its baselines and the verdict; write its report.

    Args:
        run: a finished run.
        instrument: costs of the contracts; None takes those of the run.

    Raises:
        BundleError: the folder is not that of a finished run.
    """
    folder, metrics, judgement = run.folder, run.metrics, evaluate(run)
    if instrument is not None:
        judgement = run.judged(instrument)
    show(*metric_tables(metrics, title=f"{run.config.name}, {folder.name}"))
    trials = summarize_trials(folder)
    report = publish(
        folder, run.predictions, judgement, metrics=metrics, pictures=True, notes=[trials]
    )
    show(*judgement_tables(judgement), f"report       {report}", trials)
    show(verdict(judgement), level=RESULT)


def evaluate_lockbox(run: Run) -> None:
    """Score the lockbox of a finished run, log the look, and print the result.

    Raises:
        BundleError: the run has no lockbox, or the bars are not those it was trained on.
    """
    opened = open_lockbox(run.folder, modules=run.modules)
    show(*judgement_tables(opened.judgement), opened.message)
    net = opened.judgement.net
    if net.dates < MIN_TEST_DATES:  # the verdict then names no figure
        show(f"Lockbox: {format_figures(net)}", level=RESULT)
    show(f"Lockbox: {verdict(opened.judgement)}", level=RESULT)
    show(f"written to   {run.folder / LOCKBOX}")


def compare(folders: Sequence[Path]) -> None:
    """Print finished runs side by side, their paired differences, and PBO and SPA test."""
    runs = {str(folder): Run.open(folder) for folder in folders}
    if len(runs) < len(folders):
        raise ConfigError("run=[...] names a folder twice; compare different runs")
    show(compare_table({run.folder.name: run.metrics for run in runs.values()}))
    tables = {name: run.predictions for name, run in runs.items()}
    first, *others = tables
    for other in others:
        show(*comparison_tables(compare_runs(tables[first], tables[other]), first, other))
    if len(folders) > 1:
        show(*describe_selection(folders))
    for folder in folders:
        show(f"{folder.name}: {runs[str(folder)].verdict}", level=RESULT)


def describe_selection(folders: Sequence[Path]) -> list[str]:
    """Describe the probability of backtest overfitting and the SPA test of choosing a run."""
    if len({read_provenance(folder)["data_sha256"] for folder in folders}) > 1:
        return ["No PBO and no SPA: these runs read different bars."]
    daily = {str(folder): read_daily_series(folder) for folder in folders}
    return selection_sentences(judge_selection(daily))


def evaluate_config(config: DictConfig) -> None:
    """Evaluate the run or the runs of a config.

    Raises:
        ConfigError: `run` is an empty list or names a folder twice, `lockbox=true` or `void` comes
            with several runs, or there is no trial to void.
    """
    if isinstance(config.run, ListConfig):
        if not config.run:
            raise ConfigError("run=[] names no run folder; run=[A,B] compares two")
        if config.lockbox:
            raise ConfigError("lockbox=true needs one run folder; several would allow a choice")
        if config.void is not None:
            raise ConfigError("void=REASON takes one run folder")
        compare([Path(folder).expanduser() for folder in config.run])
        return
    run = Run.open(config.run, modules=config.modules)
    folder = run.folder
    run.metrics  # noqa: B018  # raises unless the run has finished
    with lock_folder(folder):
        if config.void is not None:
            show(void_trial(folder, reason=str(config.void)), level=RESULT)
        elif config.lockbox:
            evaluate_lockbox(run)
        else:
            costs = config.get("instrument")
            evaluate_run(run, instrument=None if costs is None else instantiate(costs))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(evaluate_config, config_name="evaluate", argv=argv)


make_module_callable(evaluate)

if __name__ == "__main__":
    sys.exit(main())
