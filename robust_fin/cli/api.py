"""The Python API: bars and features as tables, and a training run from Python."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate
from omegaconf import OmegaConf

from robust_fin.cli.composition import Composition, composed
from robust_fin.errors import ConfigError, SchemaError
from robust_fin.features.registry import FeatureSet, compute_features
from robust_fin.market.schema import write_bars
from robust_fin.runs.job import Job, start
from robust_fin.runs.run import Run
from robust_fin.runs.settings import of_run
from robust_fin.runs.training import MODULE, work
from robust_fin.runtime.process_state import borrowed_process
from robust_fin.runtime.terminal import NOTHING, talking

_LABELS = ("contract", "trading_date", "trading_day")


def load_bars(path: Path | str | None = None, *words: str) -> pd.DataFrame:
    """Read bars from a file, or make synthetic ones; checked, ordered and labelled.

    Args:
        path: a .csv or .parquet file (also .gz, .zst); None makes synthetic bars.
        words: overrides such as source.timezone=UTC or source.synthetic.rows=5000; with
            +experiment=NAME the bars that it trains on.

    Returns:
        One row a bar: time (its start, UTC), open, high, low, close, volume, contract, vix where
        there is one, session (RTH or ETH), trading_date and trading_day (its number).

    Raises:
        SourceError: the file cannot be read as bars.
        ConfigError: a word names no key.

    Examples:
        >>> from robust_fin import load_bars
        >>> bars = load_bars(None, "source.synthetic.rows=500", "source.synthetic.seed=1")
        >>> len(bars), bars["contract"].iloc[0], bars["session"].unique().tolist()
        (500, 'ESH22', ['ETH'])
        >>> bool((bars["low"] <= bars["close"]).all())
        True
    """
    source = composed("train", words).config.source
    if path is not None:
        source.path = str(path)
    bars: pd.DataFrame = instantiate(source).load().table
    return bars


def make_features(bars: pd.DataFrame, names: Sequence[str] | str) -> pd.DataFrame:
    """The value of each feature at each bar, which sees that bar and those before it.

    Args:
        bars: as `load_bars` returns them, or whole contracts of them.
        names: registered features, also those of your own; or a choice of conf/features, such as
            top5 or rich.

    Returns:
        One row a bar with the index of `bars`, one column a feature, float64; NaN where there is
        too little history.

    Raises:
        ConfigError: a name is not registered.
        SchemaError: the bars lack a column.

    Examples:
        >>> from robust_fin import load_bars, make_features
        >>> bars = load_bars(None, "source.synthetic.rows=500")
        >>> features = make_features(bars, ["close_change_pct", "price_range"])
        >>> features.shape, int(features["close_change_pct"].isna().sum())
        ((500, 2), 1)
        >>> list(make_features(bars, "study"))[:2]
        ['close_change_pct', 'typical_price']
    """
    missing = [name for name in _LABELS if name not in bars]
    if missing:
        raise SchemaError(
            f"the bars have no column {', '.join(missing)}; make_features takes the table that "
            "load_bars returns, which has looked up every bar's trading date"
        )
    return compute_features(bars, _names(names))


def _names(names: Sequence[str] | str) -> Sequence[str]:
    if not isinstance(names, str):
        return names
    chosen: FeatureSet = instantiate(composed("train", [f"features={names}"]).config.features)
    return chosen.names


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
    found = composed("train", given)
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
    with borrowed_process(), contextlib.nullcontext() if verbose else talking(NOTHING):
        start(Job(of_run(found.config), run, resume=False), work, module=MODULE)
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
