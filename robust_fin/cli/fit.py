"""Train from Python: the same as `python -m robust_fin.train`."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from robust_fin.cli.composition import Composition, compose_config
from robust_fin.errors import ConfigError
from robust_fin.market.columns import write_bars
from robust_fin.runs.job import Job, start_job
from robust_fin.runs.run import Run
from robust_fin.runs.run_folder import check_holds_no_run
from robust_fin.runs.schema import without_sweep_keys
from robust_fin.runs.training import TRAIN_MODULE, run_training
from robust_fin.runtime.files import create_folder, lock_folder, write_atomic
from robust_fin.runtime.process_state import preserve_process_state
from robust_fin.runtime.terminal import NOTHING, console_level

BARS = "bars.parquet"


def fit(
    experiment: str | None,
    *words: str,
    bars: pd.DataFrame | None = None,
    folder: Path | str | None = None,
    verbose: bool = False,
) -> Run:
    """Train, score the test span once, and judge it; the same as `python -m robust_fin.train`.

    Args:
        experiment: a choice of conf/experiment, such as top5; None trains the defaults.
        words: overrides such as seed=3 or trainer.max_epochs=2; source.path=FILE reads a file.
        bars: train on this table instead of source.path. It is saved in the run folder as
            bars.parquet, so that the run can be resumed and checked. Times are bar starts unless
            source.stamp=end is given; times without a zone need source.timezone.
        folder: run folder, which holds no run; None means a new one,
            outputs/<experiment>/<date_time>.
        verbose: print the tables and the verdict, as the command does.

    Returns:
        The finished run.

    Raises:
        ConfigError: an override matches no key, settings contradict each other, or the folder
            holds a run.
        SourceError: the bars break a rule of a bar table.
        NonFiniteError: training stopped at a non-finite number.

    Examples:
        >>> from robust_fin import fit
        >>> tiny = ["source.synthetic.rows=4000", "features=study", "report.pictures=false"]
        >>> run = fit("smoke", *tiny, "seed=3")
        >>> run.metrics["seed"], run.metrics["rows"], run.metrics["nonfinite_steps"]
        (3, 4000, 0)
        >>> sorted(run.predictions["model"].unique())
        ['constant', 'minus_last_return', 'net', 'ridge']
        >>> run.verdict[:8]
        'No skill'
    """
    overrides = [] if experiment is None else [f"+experiment={experiment}"]
    overrides += words
    composition = compose_config("train", overrides)
    if composition.is_sweep:
        raise ConfigError(
            f"{experiment} is a sweep of several runs, but fit trains one; run it with "
            f"python -m robust_fin.train +experiment={experiment}"
        )
    run = create_folder(composition.folder.absolute()) if folder is None else Path(folder)
    run = run.expanduser().absolute()
    run.mkdir(parents=True, exist_ok=True)
    with lock_folder(run):
        check_holds_no_run(run)
        if bars is not None:
            _save_bars(composition, bars, run / BARS)
        _write_hydra_folder(run, composition, overrides)
        job = Job(without_sweep_keys(composition.config), run, resume=False)
        quiet = contextlib.nullcontext() if verbose else console_level(NOTHING)
        with preserve_process_state(), quiet:
            start_job(job, run_training, module=TRAIN_MODULE)
    return Run(run)


def _save_bars(composition: Composition, bars: pd.DataFrame, path: Path) -> None:
    """Save the table in the run folder and make it the source of the run."""
    source = composition.config.source
    if source.path is not None:
        raise ConfigError(f"source.path={source.path} and bars= were both given; give one of them")
    write_bars(bars, path, length=source.bar, columns=dict(source.columns or {}))
    source.path = str(path)


def _write_hydra_folder(run: Path, composition: Composition, overrides: Sequence[str]) -> None:
    """Write .hydra as the command line does."""
    folder = run / ".hydra"
    folder.mkdir(exist_ok=True)
    files = {
        "config": OmegaConf.to_yaml(composition.config),
        "overrides": OmegaConf.to_yaml(OmegaConf.create(list(overrides))),
        "hydra": composition.hydra,
    }
    for name, text in files.items():
        write_atomic(folder / f"{name}.yaml", text.encode())
