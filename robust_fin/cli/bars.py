"""Bars and features as DataFrames, for notebooks and scripts; needs no torch."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate

from robust_fin.cli.composition import compose_config
from robust_fin.errors import SchemaError
from robust_fin.features.registry import FeatureSet, compute_features

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
    source = compose_config("train", words).config.source
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
    chosen: FeatureSet = instantiate(compose_config("train", [f"features={names}"]).config.features)
    return chosen.names
