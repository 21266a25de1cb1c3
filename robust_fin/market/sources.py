"""Load CSV, Parquet or synthetic bars as one validated table."""

import logging
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt64

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.files import read_blocks, read_table
from robust_fin.market.labelling import Labeller, contracts_by_expiry, label_reports
from robust_fin.market.parsing import NUMBERS, check_same_zoning, to_codes, to_numbers, to_utc
from robust_fin.market.schema import PRICES, BarSummary, bar_starts, check_bars, fingerprint
from robust_fin.market.synthetic import SyntheticMarket

log = logging.getLogger(__name__)

SPIKED_BARS = "bars spiked on purpose by source.spikes"
_GAMMA = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)  # SplitMix64's increment


@dataclass(frozen=True, slots=True)
class Spikes:
    """Random bad ticks: a share of bars has all four prices multiplied by a factor.

    All prices of a bar are multiplied together, so the bar still passes the schema checks and only
    a comparison with its neighbours reveals it. The choice of bars is a hash of time, contract and
    seed: it does not depend on which part of a file is read, or on the block size.

    Attributes:
        share: expected share of bars, in [0, 1).
        factor: multiplier of open, high, low and close; 10 imitates a misplaced decimal point.
        seed: seed of the choice of bars, at least 0.
    """

    share: float
    factor: float
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        valid_seed = isinstance(self.seed, int) and self.seed >= 0
        rules = (
            (0 <= self.share < 1, f"share={self.share} must be in [0, 1)"),
            (0 < self.factor < math.inf, f"factor={self.factor} must be finite and > 0"),
            (valid_seed, f"seed={self.seed} must be an integer >= 0"),
        )
        for holds, message in rules:
            if not holds:
                raise ConfigError(f"source.spikes.{message}; typical values are 0.001, 10.0 and 0")

    def __str__(self) -> str:
        """Describe the spikes for the name of the data."""
        return f"{100 * self.share:g} % of bars spiked {self.factor:g}-fold"

    def mask(self, bars: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Select the bars to spike.

        Args:
            bars: table with time and contract.
        """
        contract = bars["contract"].cat
        codes = np.array([zlib.crc32(str(code).encode()) for code in contract.categories])
        salt = _splitmix64(_splitmix64(np.array([self.seed], np.uint64)) + codes.astype(np.uint64))
        key = bar_starts(bars).view(np.uint64) ^ salt[contract.codes.to_numpy()]
        return (_splitmix64(key) >> np.uint64(11)) * 2.0**-53 < self.share

    def apply(self, bars: pd.DataFrame) -> tuple[pd.DataFrame, int]:
        """Return the bars with spikes, and the number of spiked bars.

        Args:
            bars: validated table; it is not modified.
        """
        mask = self.mask(bars)
        scale = np.where(mask, self.factor, 1.0)
        spiked: dict[str, Any] = {name: bars[name] * scale for name in PRICES}
        return bars.assign(**spiked), int(mask.sum())


def _splitmix64(key: UInt64[np.ndarray, " keys"]) -> UInt64[np.ndarray, " keys"]:
    """Hash 64-bit keys.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    key = key + _GAMMA
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Bars:
    """Validated bars, sorted by time, then by expiry.

    Attributes:
        table: the columns of `robust_fin.market.schema`, and session (RTH or ETH, from the
            calendar), trading_date (datetime64[s]) and trading_day (its number in the calendar).
        bar: length of a bar.
        origin: file name, or "synthetic bars".
        rows_in: number of rows in the file, before `source.fraction`.
        dropped: number of rows left out, by reason.
        reports: oddities that were counted and left unchanged, by name.
    """

    table: pd.DataFrame
    bar: pd.Timedelta
    origin: str
    rows_in: int
    dropped: dict[str, int] = field(default_factory=dict)
    reports: dict[str, float] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Return the SHA-256 of times, contracts, prices, volume and VIX, in hexadecimal."""
        return fingerprint(self.table)

    def summary(self) -> BarSummary:
        """Return what a run records about its bars."""
        time = self.table["time"]
        return BarSummary(
            self.origin, self.rows_in, time.iloc[0], time.iloc[-1], self.fingerprint()
        )


@dataclass(frozen=True, slots=True)
class BarSource:
    """Location of the bars, and how to read their timestamps.

    Attributes:
        path: a .csv or .parquet file (also .gz, .zst); None makes synthetic bars.
        timezone: time zone of timestamps that carry none.
        time_format: strptime pattern of text timestamps; None reads ISO 8601.
        stamp: "start" or "end": the end of the bar that its timestamp marks.
        bar: length of a bar, as a pandas offset such as 1min.
        fraction: share of the rows to keep, from the first row on, in (0, 1].
        vix_path: CSV of daily VIX closes with the columns date and close; it replaces a vix column
            of the file.
        calendar: a name of pandas_market_calendars, or 24/7.
        calendar_overrides: CSV with trading_date, open, close that corrects the calendar.
        block_rows: number of rows read at once, so that memory does not grow with the file; None
            reads the file at once. The result is the same.
        spikes: bad ticks to insert after the bars are read and checked; None inserts none.
        synthetic: factory of the synthetic bars, used when `path` is None.
    """

    synthetic: Callable[[], SyntheticMarket]
    path: str | None
    timezone: str | None
    time_format: str | None
    stamp: str
    bar: str
    fraction: float
    vix_path: str | None
    calendar: str
    calendar_overrides: str | None
    block_rows: int | None
    spikes: Spikes | None

    def __post_init__(self) -> None:
        """Check the settings before any file is read."""
        if self.stamp not in ("start", "end"):
            raise ConfigError(f"source.stamp={self.stamp} must be start or end")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"source.fraction={self.fraction} must be in (0, 1]")
        try:
            length = pd.Timedelta(self.bar)
        except ValueError as error:
            raise ConfigError(
                f"source.bar={self.bar} must be a pandas offset such as 1min: {error}"
            ) from error
        if not length > pd.Timedelta(0):
            raise ConfigError(f"source.bar={self.bar} must be > 0, such as 1min")
        rows = self.block_rows
        if rows is not None and (not isinstance(rows, int) or rows < 1):
            raise ConfigError(
                f"source.block_rows={rows} must be an integer >= 1, such as 500000, or null to "
                "read the file at once"
            )

    def load(self) -> Bars:
        """Read, check, sort and label the bars.

        Raises:
            SourceError: the file cannot be read.
            SchemaError: a row breaks a rule of the bar table.
        """
        table = self._read()
        check_bars(table, origin=self.origin)
        table = sort_bars(table, contracts_by_expiry(table["contract"], table["time"]))
        rows_in = len(table)
        kept = max(1, int(rows_in * self.fraction))
        dropped = {}
        if kept < rows_in:
            dropped = {"beyond source.fraction": rows_in - kept}
            table = table.iloc[:kept].copy()
            table["contract"] = table["contract"].cat.remove_unused_categories()
        self.log_vix_override(table)
        table, spiked = self.add_spikes(table)
        table, counts = self.labeller().label(table)
        reports = label_reports([counts]) | spiked
        return Bars(table, self.length, self.name, rows_in, dropped, reports)

    @property
    def length(self) -> pd.Timedelta:
        """Length of a bar."""
        return pd.Timedelta(self.bar)

    @property
    def name(self) -> str:
        """Name of the data in a bundle: the origin and the spikes, if any."""
        return self.origin if self.spikes is None else f"{self.origin}, {self.spikes}"

    @property
    def origin(self) -> str:
        """Name of the bars in messages: the file name, or "synthetic bars"."""
        return "synthetic bars" if self.path is None else self._file.name

    @property
    def _file(self) -> Path:
        return Path(str(self.path)).expanduser()

    def labeller(self) -> Labeller:
        """Read the calendar and the VIX closes."""
        return Labeller.load(
            self.calendar, override_path=self.calendar_overrides, vix_path=self.vix_path
        )

    def log_vix_override(self, table: pd.DataFrame) -> None:
        """Log a line if `vix_path` replaces a vix column of the bars."""
        if self.vix_path is not None and "vix" in table:
            log.info("source.vix_path replaces the vix column of the bars")

    def add_spikes(self, table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
        """Return the bars with `spikes` applied, and the number of spiked bars as a report."""
        if self.spikes is None:
            return table, {}
        table, count = self.spikes.apply(table)
        return table, {SPIKED_BARS: float(count)}

    def raw_blocks(self, *names: str) -> Iterator[pd.DataFrame]:
        """Yield blocks of `block_rows` rows, typed but not checked, in the order of the file.

        Args:
            names: columns to read, of those the file has; no names read all of them.

        Raises:
            SourceError: the file cannot be read.
        """
        assert self.block_rows is not None, "block_rows is None"
        if self.path is None:
            table = self._read()
            for first in range(0, len(table), self.block_rows):
                yield table.iloc[first : first + self.block_rows].reset_index(drop=True)
            return
        first, zoned = 0, None
        for table in read_blocks(self._file, self.block_rows, names=names):
            if self.time_format is None:
                zoned = check_same_zoning(table["time"], zoned, origin=self.origin, first=first)
            yield self._typed(table, block_origin(self.origin, first))
            first += len(table)

    def _read(self) -> pd.DataFrame:
        if self.path is None:
            table = self.synthetic().bars
            texts = [name for name in ("contract", "session") if name in table]
            return table.assign(**{name: to_codes(table[name]) for name in texts})
        return self._typed(read_table(self._file), self.origin)

    def _typed(self, table: pd.DataFrame, origin: str) -> pd.DataFrame:
        if table.empty:
            raise SchemaError(f"{origin} has a header but no rows; a bar file needs at least one")
        time = to_utc(
            table["time"], timezone=self.timezone, time_format=self.time_format, origin=origin
        )
        typed: dict[str, pd.Series | np.ndarray] = {}
        typed["time"] = time - self.length if self.stamp == "end" else time
        for name in NUMBERS:
            if name in table:
                typed[name] = to_numbers(table[name], origin=origin)
        contract = table["contract"] if "contract" in table else pd.Series("ONE", table.index)
        typed["contract"] = to_codes(contract)
        if "session" in table:
            typed["session"] = to_codes(table["session"])
        return pd.DataFrame(typed, copy=False)  # a copy costs a third of the load


def block_origin(origin: str, first: int) -> str:
    """Name a block in messages; its rows are counted from row `first` of the file."""
    return origin if first == 0 else f"{origin}, counting rows from row {first} of the file"


def sort_bars(table: pd.DataFrame, contracts: Sequence[str]) -> pd.DataFrame:
    """Sort rows by time, then by expiry.

    Args:
        table: validated bars.
        contracts: all contract codes, sorted by expiry.
    """
    contract = table["contract"].cat.set_categories(contracts)
    table = table.assign(contract=contract)
    time, rank = bar_starts(table).view(np.int64), contract.cat.codes.to_numpy()
    step = np.diff(time)
    if ((step > 0) | ((step == 0) & (np.diff(rank) > 0))).all():
        return table
    return table.iloc[np.lexsort((rank, time))].reset_index(drop=True)
