"""Registered features: pure functions of one contract's bars; the same functions as a stream."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.features.history import chain_links, chained_bars, contract_rows, take_rows
from robust_fin.runtime.terminal import hide_progress, progress_bar

_LONG = 500_000  # values that take long enough to show how far they are
BARS, TRADING_DATES, SESSION = "bars", "trading dates", "since the session's start"


@dataclass(frozen=True, slots=True)
class Lookback:
    """How much history before its own bar a feature needs.

    Attributes:
        count: bars or trading dates; 0 for a session.
        unit: BARS, TRADING_DATES or SESSION.
    """

    count: int
    unit: str

    def __str__(self) -> str:
        """Such as `5 trading dates`."""
        return self.unit if self.unit == SESSION else f"{self.count} {self.unit}"


@dataclass(frozen=True, slots=True)
class Feature:
    """A registered feature.

    Attributes:
        name: the term of the field, with its span.
        lookback: history needed before the bar; a row with less is NaN, never filled.
        unit: of the value.
        fn: one contract's bars, in time order -> one value a bar, the same to the last bit whatever
            bars lie before the lookback (so no running sums over more than it).
        chained: whether the bars before the contract's first come from the contract before it, with
            prices rescaled so that the step across the roll is 0. Otherwise they are missing.
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
    """Register the decorated function under its own name.

    Args:
        lookback: history the function needs before the bar itself.
        unit: of the value.
        chained: see `Feature`.

    Raises:
        ConfigError: the name is taken.
    """

    def register(fn: Callable[[pd.DataFrame], pd.Series]) -> Callable[[pd.DataFrame], pd.Series]:
        name = fn.__name__
        if name in FEATURES:
            raise ConfigError(f"a feature named {name} is registered already; choose another name")
        FEATURES[name] = Feature(name, lookback, unit, fn, chained)
        return fn

    return register


def get_feature(name: str) -> Feature:
    """The feature of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FEATURES:
        raise ConfigError(
            f"no feature is named {name}; registered are {', '.join(sorted(FEATURES))}"
        )
    return FEATURES[name]


def compute_features(bars: pd.DataFrame, names: Sequence[str], *, first: int = 0) -> pd.DataFrame:
    """The named features of every bar, float64, NaN where undefined.

    Each is computed inside its contract, so how the rows of contracts interleave changes nothing.

    Args:
        bars: the table of `robust_fin.market.sources.Bars`, in the order of time.
        names: registered features; the columns of the result, in this order.
        first: bars before this row are history alone; their own features may be NaN.

    Returns:
        One row a bar, in the order of `bars`.

    Raises:
        ConfigError: a name is not registered.
        SchemaError: a feature needs a column the bars lack.
    """
    wanted = [get_feature(name) for name in names]
    values = {name: np.full(len(bars), np.nan) for name in names}
    contracts, total = contract_rows(bars), len(bars) * len(wanted)
    with hide_progress(when=total < _LONG), progress_bar("features", total=total) as advance:
        for position, rows in enumerate(contracts):
            if rows[-1] < first:
                continue
            history = {(False, ""): take_rows(bars, rows)}
            for unit, count in longest_chains(wanted).items():
                history[True, unit] = chained_bars(bars, contracts, position, count, unit)
            for one in wanted:
                seen = history[one.chained, one.lookback.unit if one.chained else ""]
                values[one.name][rows] = _values(one, seen)[-len(rows) :]
                advance(len(rows))
    return pd.DataFrame(values, columns=list(names), index=bars.index, copy=False)


def longest_chains(wanted: Sequence[Feature]) -> dict[str, int]:
    """The longest chained lookback of each unit; more history than it states moves no feature."""
    chains: dict[str, int] = {}
    for one in wanted:
        if one.chained:
            chains[one.lookback.unit] = max(one.lookback.count, chains.get(one.lookback.unit, 0))
    return chains


def _values(one: Feature, history: pd.DataFrame) -> np.ndarray:
    try:
        result = one.fn(history)
    except KeyError as error:
        raise SchemaError(
            f"feature {one.name} needs the column {error.args[0]}, which the bars lack; add it to "
            "the file (for vix also source.vix_path=FILE) or choose other features"
        ) from error
    return result.to_numpy(dtype=np.float64)


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """The inputs of a net, by name and in order."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], modules: Sequence[str] = ()) -> "FeatureSet":
        """Check that every name is registered, once.

        Args:
            names: registered features.
            modules: importable modules of the user's that register features of their own.

        Raises:
            ConfigError: a module cannot be found, a name is unknown or given twice, or none is.
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
            f"features.modules names {module}, but {error}; put it on PYTHONPATH"
        ) from error


class FeatureStream:
    """Holds back the bars that the lookbacks still need, and nothing more.

    Exact for every feature whose value does not depend, in its last bit either, on bars before its
    lookback; the registry asks that of each.

    Args:
        names: registered features.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """No bars were seen yet."""
        self._names = list(names)
        self._wanted = [get_feature(name) for name in names]
        self._held: pd.DataFrame | None = None

    def push(self, block: pd.DataFrame) -> pd.DataFrame:
        """The features of the next bars.

        Args:
            block: labelled bars that follow those of the calls before, in the order of time, with
                the same contracts as categories.

        Returns:
            What `compute_features` of all bars says of these.
        """
        bars = block if self._held is None else pd.concat([self._held, block], ignore_index=True)
        first = len(bars) - len(block)
        values = compute_features(bars, self._names, first=first)
        self._held = bars[needed_history(bars, self._wanted)].reset_index(drop=True)
        return values.iloc[first:].reset_index(drop=True)


def needed_history(bars: pd.DataFrame, wanted: Sequence[Feature]) -> Bool[np.ndarray, " rows"]:
    """Which bars a later one may look back to.

    Of each contract these are the last ones, and one more: it tells that there were older ones,
    which ends a chain where it would end with all bars at hand. A contract that began so late that
    its lookbacks reach beyond its first bar also needs the bars of others it is chained to.

    Args:
        bars: all bars that are at hand, in the order of time.
        wanted: the features.
    """
    count = max((one.lookback.count for one in wanted if one.lookback.unit == BARS), default=0)
    dates = _dates(wanted)
    days = bars["trading_day"].to_numpy()
    keep = np.zeros(len(bars), dtype=bool)
    contracts = contract_rows(bars)
    for position, rows in enumerate(contracts):
        start = rows.size - count - 1
        if dates is not None:
            start = min(start, int(np.searchsorted(days[rows], days[-1] - dates)) - 1)
        keep[rows[max(0, start) :]] = True
        for unit, reach in longest_chains(wanted).items():
            if unit == BARS and rows.size > reach:
                continue
            if unit != BARS and days[rows[0]] < days[-1] - reach:
                continue
            for link in chain_links(bars, contracts, position, reach, unit):
                keep[link.before[max(0, link.before.size - link.taken.size - 1) :]] = True
    return keep


def _dates(wanted: Sequence[Feature]) -> int | None:
    """Trading dates before the newest one whose bars are needed; None where dates do not matter."""
    counts = [one.lookback.count for one in wanted if one.lookback.unit == TRADING_DATES]
    counts += [0 for one in wanted if one.lookback.unit == SESSION]
    return max(counts, default=None)
