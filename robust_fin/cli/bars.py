"""Bars and features as DataFrames, for notebooks and scripts; needs no torch."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate

from robust_fin.cli.composition import compose_config
from robust_fin.errors import SchemaError
from robust_fin.features.registry import FeatureSet, compute_features
from robust_fin.market.schema import log_warnings
from robust_fin.market.sources import Bars

_LABELS = ("contract", "trading_date", "trading_day")


def load_bars(path: Path | str | None = None, *words: str) -> pd.DataFrame:
    """Read bars from a file, or generate synthetic bars; check, sort and label them.

    Args:
        path: a .csv or .parquet file (also .gz, .zst); None generates synthetic bars.
        words: overrides such as source.timezone=UTC or source.synthetic.rows=5000; with
            +experiment=NAME reads the bars of that experiment.

    Returns:
        One row per bar: time (bar start, UTC), open, high, low, close, volume, contract, vix (where
        available), session (RTH or ETH), trading_date and trading_day (its number).

    Raises:
        SourceError: the file cannot be read as bars.
        ConfigError: an override matches no key.

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
    bars: Bars = instantiate(source).load()
    log_warnings(bars.findings.facts(), origin=bars.origin)
    return bars.table


def make_features(bars: pd.DataFrame, names: Sequence[str] | str) -> pd.DataFrame:
    """Compute features; the value at a bar depends on that bar and earlier ones only.

    Args:
        bars: table returned by `load_bars`, or complete contracts of it.
        names: registered features, including your own; or a choice of conf/features such as
            top5 or rich.

    Returns:
        One row per bar with the index of `bars`, one float64 column per feature; NaN where there
        is too little history.

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
            f"the bars have no column {', '.join(missing)}; pass a table returned by load_bars, "
            "which adds the trading date of every bar"
        )
    return compute_features(bars, _names(names))


def _names(names: Sequence[str] | str) -> Sequence[str]:
    if not isinstance(names, str):
        return names
    features: FeatureSet = instantiate(
        compose_config("train", [f"features={names}"]).config.features
    )
    return features.names
