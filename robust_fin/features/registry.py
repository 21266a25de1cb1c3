"""Registry of features, computed on a complete table or on a stream of blocks."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.features.history import chain_links, chained_bars, contract_rows, take_rows
from robust_fin.runtime.terminal import hide_progress, progress_bar

_PROGRESS_MIN_VALUES = 500_000  # fewer values are computed too quickly for a progress bar
BARS, TRADING_DATES, SESSION = "bars", "trading dates", "since the session's start"


@dataclass(frozen=True, slots=True)
class Lookback:
    """History that a feature needs before the current bar.

    Attributes:
        count: number of bars or trading dates; 0 for SESSION.
        unit: BARS, TRADING_DATES or SESSION.
    """

    count: int
    unit: str

    def __str__(self) -> str:
        """Format as in `5 trading dates`."""
        return self.unit if self.unit == SESSION else f"{self.count} {self.unit}"


@dataclass(frozen=True, slots=True)
class Feature:
    """A registered feature.

    Attributes:
        name: name with its span, such as return_5bar.
        lookback: history needed before the bar; a row with less history is NaN, never filled.
        unit: unit of the value.
        fn: maps the bars of a contract, sorted by time, to one value per bar. A value must not
            depend on bars before the lookback, not even by rounding (so no running sums).
        chained: True to precede a contract's bars with the bars of the contract before it, with
            prices rescaled so that the return across the roll is 0. Otherwise they are missing.
    """

    name: str
    lookback: Lookback
    unit: str
    fn: Callable[[pd.DataFrame], pd.Series]
    chained: bool


FEATURES: dict[str, Feature] = {}


def feature(
    *, lookback: Lookback, unit: str, chained: bool = False
) -> Callable[[Callable[[pd.DataFrame], pd.Series]], Callable[[pd.DataFrame], pd.Series]]:
    """Register the decorated function as a feature under its name.

    Args:
        lookback: history that the function needs before the current bar.
        unit: unit of the value.
        chained: see `Feature`.

    Raises:
        ConfigError: the name is already registered.
    """

    def register(fn: Callable[[pd.DataFrame], pd.Series]) -> Callable[[pd.DataFrame], pd.Series]:
        name = fn.__name__
        if name in FEATURES:
            raise ConfigError(f"the feature {name} is already registered; choose another name")
        FEATURES[name] = Feature(name, lookback, unit, fn, chained)
        return fn

    return register


def get_feature(name: str) -> Feature:
    """Look up a feature by name.

    Raises:
        ConfigError: the name is not registered.
    """
    if name not in FEATURES:
        raise ConfigError(
            f"there is no feature {name}; registered features are {', '.join(sorted(FEATURES))}"
        )
    return FEATURES[name]


def compute_features(bars: pd.DataFrame, names: Sequence[str], *, first: int = 0) -> pd.DataFrame:
    """Compute features of every bar as float64; NaN where undefined.

    Features are computed within each contract, so the order of the contracts' rows in the table
    does not matter.

    Args:
        bars: the table of `robust_fin.market.sources.Bars`, sorted by time.
        names: registered features; the columns of the result, in this order.
        first: bars before this row serve only as history; their features may be NaN.

    Returns:
        One row per bar, in the order of `bars`.

    Raises:
        ConfigError: a name is not registered.
        SchemaError: a feature needs a column that the bars lack.
    """
    features = [get_feature(name) for name in names]
    values = {name: np.full(len(bars), np.nan) for name in names}
    contracts, total = contract_rows(bars), len(bars) * len(features)
    few = total < _PROGRESS_MIN_VALUES
    with hide_progress(when=few), progress_bar("features", total=total) as advance:
        for position, rows in enumerate(contracts):
            if rows[-1] < first:
                continue
            history = {(False, ""): take_rows(bars, rows)}
            for unit, count in longest_chains(features).items():
                history[True, unit] = chained_bars(bars, contracts, position, count, unit)
            for item in features:
                seen = history[item.chained, item.lookback.unit if item.chained else ""]
                values[item.name][rows] = _evaluate(item, seen)[-len(rows) :]
                advance(len(rows))
    return pd.DataFrame(values, columns=list(names), index=bars.index, copy=False)


def longest_chains(features: Sequence[Feature]) -> dict[str, int]:
    """Return the longest chained lookback by unit; extra history does not change a feature."""
    chains: dict[str, int] = {}
    for item in features:
        if item.chained:
            unit, count = item.lookback.unit, item.lookback.count
            chains[unit] = max(count, chains.get(unit, 0))
    return chains


def _evaluate(item: Feature, history: pd.DataFrame) -> Float[np.ndarray, " rows"]:
    try:
        result = item.fn(history)
    except KeyError as error:
        raise SchemaError(
            f"feature {item.name} needs the column {error.args[0]}, which the bars lack; add it to "
            "the file (for vix also source.vix_path=FILE) or choose other features"
        ) from error
    return result.to_numpy(dtype=np.float64)


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Input features of a net, in order."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], modules: Sequence[str] = ()) -> "FeatureSet":
        """Check that the names are registered and unique.

        Args:
            names: registered features.
            modules: importable user modules that register features.

        Raises:
            ConfigError: a module cannot be imported, a name is unknown or repeated, or `names` is
                empty.
        """
        for module in modules:
            _import(module)
        for name in names:
            get_feature(name)
        if len(set(names)) < len(names) or not names:
            raise ConfigError(f"features.names={list(names)} must name each feature once")
        return cls(tuple(names))

    @property
    def units(self) -> dict[str, str]:
        """Unit of each feature."""
        return {name: get_feature(name).unit for name in self.names}


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"features.modules lists {module}, but {error}; add its folder to PYTHONPATH"
        ) from error


class FeatureStream:
    """Computes features block by block, keeping only the bars that lookbacks still need.

    The values equal those of `compute_features` on the complete table, to the last bit.

    Args:
        names: registered features.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Start without bars."""
        self._names = list(names)
        self._features = [get_feature(name) for name in names]
        self._held: pd.DataFrame | None = None

    def push(self, block: pd.DataFrame) -> pd.DataFrame:
        """Compute the features of the next bars.

        Args:
            block: labelled bars that follow the previous blocks in time, with the same contract
                categories.

        Returns:
            One row per bar of the block.
        """
        bars = block if self._held is None else pd.concat([self._held, block], ignore_index=True)
        first = len(bars) - len(block)
        values = compute_features(bars, self._names, first=first)
        self._held = bars[needed_history(bars, self._features)].reset_index(drop=True)
        return values.iloc[first:].reset_index(drop=True)


def needed_history(bars: pd.DataFrame, features: Sequence[Feature]) -> Bool[np.ndarray, " rows"]:
    """Select the bars that later bars may look back to.

    These are the last bars of each contract, plus one more: the extra bar shows that older bars
    exist, which ends a chain of contracts where the complete table would end it. A contract that is
    younger than its lookbacks also needs bars of the contracts it is chained to.

    Args:
        bars: the bars in memory, sorted by time.
        features: the features to compute.
    """
    lookbacks = [item.lookback for item in features]
    count = max((item.count for item in lookbacks if item.unit == BARS), default=0)
    dates = max((item.count for item in lookbacks if item.unit != BARS), default=None)
    days = bars["trading_day"].to_numpy()
    keep = np.zeros(len(bars), dtype=bool)
    contracts = contract_rows(bars)
    for position, rows in enumerate(contracts):
        start = rows.size - count - 1
        if dates is not None:
            start = min(start, int(np.searchsorted(days[rows], days[-1] - dates)) - 1)
        keep[rows[max(0, start) :]] = True
        for unit, reach in longest_chains(features).items():
            if unit == BARS and rows.size > reach:
                continue
            if unit != BARS and days[rows[0]] < days[-1] - reach:
                continue
            for link in chain_links(bars, contracts, position, reach, unit):
                keep[link.before[max(0, link.before.size - link.taken.size - 1) :]] = True
    return keep
