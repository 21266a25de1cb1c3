"""A training run from within Python."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from robust_fin.cli.composition import Composition, compose_config
from robust_fin.errors import ConfigError
from robust_fin.market.schema import write_bars
from robust_fin.runs.job import Job, start
from robust_fin.runs.run import Run
from robust_fin.runs.schema import without_sweep_keys
from robust_fin.runs.training import MODULE, work
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
    """Train, score the test span once, and judge; what `python -m robust_fin.train` does.

    Args:
        experiment: a choice of conf/experiment, such as top5; None trains the defaults.
        words: overrides such as seed=3 or trainer.max_epochs=2; source.path=FILE reads a file.
        bars: to train on, in place of source.path. They are kept in the run folder as bars.parquet,
            so that the run can be resumed and checked. Stamps mark the start of a bar, unless
            source.stamp=end says otherwise; stamps without a zone need source.timezone.
        folder: of the run; None takes outputs/<experiment>/<date_time>.
        verbose: print the tables and the verdict that the command line prints.

    Returns:
        The finished run.

    Raises:
        ConfigError: a word names no key, or the settings do not fit together.
        SourceError: the bars break a rule of a bar table.
        NonFiniteError: training stopped at a number that is none.

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
    chosen = [] if experiment is None else [f"+experiment={experiment}"]
    given = [*chosen, *words]
    found = compose_config("train", given)
    if found.is_sweep:
        raise ConfigError(
            f"{experiment} is a sweep of many runs, and fit trains one; "
            f"python -m robust_fin.train +experiment={experiment} runs them all"
        )
    run = Path(found.folder if folder is None else folder).expanduser().absolute()
    run.mkdir(parents=True, exist_ok=True)
    if bars is not None:
        _give_bars(found, bars, run / BARS)
    _write_words(run, found, given)
    with preserve_process_state(), contextlib.nullcontext() if verbose else console_level(NOTHING):
        start(Job(without_sweep_keys(found.config), run, resume=False), work, module=MODULE)
    return Run(run)


def _give_bars(found: Composition, bars: pd.DataFrame, path: Path) -> None:
    source = found.config.source
    if source.path is not None:
        raise ConfigError(f"source.path={source.path} and bars= both name bars; give one of them")
    write_bars(bars, path, length=source.bar)
    source.path = str(path)


def _write_words(run: Path, found: Composition, words: Sequence[str]) -> None:
    """.hydra, as the command line leaves it."""
    folder = run / ".hydra"
    folder.mkdir(exist_ok=True)
    OmegaConf.save(found.config, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create(list(words)), folder / "overrides.yaml")
    (folder / "hydra.yaml").write_text(found.hydra, encoding="utf-8")
