"""CSV, Parquet or synthetic bars as one validated table, or block by block."""

import logging
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt64

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.columns import NUMBERS, to_codes, to_numbers
from robust_fin.market.files import read_blocks, read_table
from robust_fin.market.labelling import Labeller, Noticed, expiry_order, in_expiry_order, reports
from robust_fin.market.schema import PRICES, BarFacts, ColumnSpool, check_bars, fingerprint, stamps
from robust_fin.market.synthetic import SyntheticMarket
from robust_fin.market.timestamps import same_zoning, to_utc

log = logging.getLogger(__name__)

SPIKED = "bars spiked on purpose by source.spikes"
_ODD = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)  # of the golden ratio


@dataclass(frozen=True, slots=True)
class Spikes:
    """A share of bars has all four prices multiplied, as by a misplaced decimal point.

    The prices of a bar move together, so that it keeps every rule of a bar table, and only a
    comparison with its neighbours can tell. Which bars are hit follows from their time, contract
    and the seed alone: reading another part of a file, or reading it in blocks, hits the same ones.

    Attributes:
        share: of bars, in expectation, in [0, 1).
        factor: of open, high, low and close; 10 is tenfold.
        seed: of the choice of bars, at least 0.
    """

    share: float
    factor: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse what would not leave bars behind."""
        rules = (
            (0 <= self.share < 1, f"share={self.share} is not in [0, 1)"),
            (0 < self.factor < math.inf, f"factor={self.factor} is not above 0 and finite"),
            (isinstance(self.seed, int) and self.seed >= 0, f"seed={self.seed} is no count"),
        )
        for holds, words in rules:
            if not holds:
                raise ConfigError(f"source.spikes.{words}; the usual ones are 0.001, 10.0 and 0")

    def __str__(self) -> str:
        """For the name of the data."""
        return f"{100 * self.share:g} % of bars spiked {self.factor:g}-fold"

    def hits(self, bars: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Which bars are spiked.

        Args:
            bars: with time and contract.
        """
        contract = bars["contract"].cat
        names = np.array([zlib.crc32(str(one).encode()) for one in contract.categories])
        mixed = _mixed(_mixed(np.array([self.seed], dtype=np.uint64)) + names.astype(np.uint64))
        key = stamps(bars).view(np.uint64) ^ mixed[contract.codes.to_numpy()]
        return (_mixed(key) >> np.uint64(11)) * 2.0**-53 < self.share

    def applied(self, bars: pd.DataFrame) -> tuple[pd.DataFrame, int]:
        """The bars with spikes, and how many were hit.

        Args:
            bars: validated; left as they are.
        """
        hit = self.hits(bars)
        scale = np.where(hit, self.factor, 1.0)
        spiked: dict[str, Any] = {name: bars[name] * scale for name in PRICES}
        return bars.assign(**spiked), int(hit.sum())


def _mixed(key: UInt64[np.ndarray, " rows"]) -> UInt64[np.ndarray, " rows"]:
    """Sixty-four bits that follow from 64 bits and look like chance.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, SplitMix.
    """
    key = key + _ODD
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Bars:
    """Validated bars in the order of time, then of expiry.

    Attributes:
        table: the columns of `robust_fin.market.schema`, and session (RTH or ETH, from the
            calendar), trading_date (datetime64[s]) and trading_day (its number in the calendar).
        bar: length of a bar.
        origin: file name, or synthetic with its settings.
        rows_in: rows the file holds, before `source.fraction`.
        dropped: rows left out here, by reason.
        reports: what the border noticed and did not change, by name.
    """

    table: pd.DataFrame
    bar: pd.Timedelta
    origin: str
    rows_in: int
    dropped: dict[str, int] = field(default_factory=dict)
    reports: dict[str, float] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """SHA-256 over times, contracts, prices, volume and VIX, as hexadecimal digits."""
        return fingerprint(self.table)

    def facts(self) -> BarFacts:
        """What a run keeps of the bars."""
        time = self.table["time"]
        return BarFacts(self.origin, self.rows_in, time.iloc[0], time.iloc[-1], self.fingerprint())


@dataclass(frozen=True, slots=True)
class BarSource:
    """Where bars come from and how their stamps are read.

    Attributes:
        path: a .csv or .parquet file (also .gz, .zst); None makes synthetic bars.
        timezone: the zone of stamps that carry none.
        time_format: strptime pattern of text stamps; None reads ISO 8601.
        stamp: whether a stamp marks the start or the end of its bar.
        bar: length of a bar, as a pandas offset such as 1min.
        fraction: the first part of the rows to keep, in (0, 1].
        vix_path: daily VIX closes to join, a CSV with date and close; they replace a vix column of
            the file.
        calendar: a name of pandas_market_calendars, or 24/7.
        calendar_overrides: a CSV with trading_date, open, close that mends the calendar.
        block_rows: rows read at once, so that memory does not grow with the file; None reads it
            whole. The result is the same.
        spikes: damages bars on purpose, after they are read and checked; None leaves them alone.
        synthetic: makes the bars when `path` is None.
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
        """Refuse settings that mean nothing, before any file is read."""
        if self.stamp not in ("start", "end"):
            raise ConfigError(f"source.stamp={self.stamp} is neither start nor end")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"source.fraction={self.fraction} is not in (0, 1]")
        try:
            length = pd.Timedelta(self.bar)
        except ValueError as error:
            raise ConfigError(
                f"source.bar={self.bar} is no length such as 1min: {error}"
            ) from error
        if not length > pd.Timedelta(0):
            raise ConfigError(f"source.bar={self.bar} must be longer than nothing; 1min is usual")
        rows = self.block_rows
        if rows is not None and (not isinstance(rows, int) or rows < 1):
            raise ConfigError(
                f"source.block_rows={rows} must be a whole number of rows, at least 1, such as "
                "500000, or null to read the file whole"
            )

    def load(self) -> Bars:
        """Read, check, label and order the bars.

        Raises:
            SourceError: the file cannot be read as bars.
            SchemaError: a row breaks the contract of a bar table.
        """
        table = self._read()
        check_bars(table, origin=self.origin)
        table = ordered(table, in_expiry_order(table["contract"], table["time"]))
        rows_in = len(table)
        kept = max(1, int(rows_in * self.fraction))
        beyond = {}
        if kept < rows_in:
            beyond = {"beyond source.fraction": rows_in - kept}
            table = table.iloc[:kept].copy()
            table["contract"] = table["contract"].cat.remove_unused_categories()
        self.say_what_vix(table)
        table, spiked = self.spiked(table)
        table, noticed = self.labeller().label(table)
        return Bars(table, self.length, self.name, rows_in, beyond, reports([noticed]) | spiked)

    @property
    def length(self) -> pd.Timedelta:
        """Length of a bar."""
        return pd.Timedelta(self.bar)

    @property
    def name(self) -> str:
        """What the bundle calls the bars: where they are from, and how they were damaged."""
        return self.origin if self.spikes is None else f"{self.origin}, {self.spikes}"

    @property
    def origin(self) -> str:
        """What messages call the bars."""
        return "synthetic bars" if self.path is None else self._file.name

    @property
    def _file(self) -> Path:
        return Path(str(self.path)).expanduser()

    def labeller(self) -> Labeller:
        """The calendar and the VIX closes, read."""
        return Labeller.of(
            self.calendar, override_path=self.calendar_overrides, vix_path=self.vix_path
        )

    def say_what_vix(self, table: pd.DataFrame) -> None:
        """Log it where the bars bring a VIX that is not used."""
        if self.vix_path is not None and "vix" in table:
            log.info("source.vix_path takes the place of the vix column of the bars")

    def spiked(self, table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
        """The bars as `spikes` leaves them, and the report of it."""
        if self.spikes is None:
            return table, {}
        table, count = self.spikes.applied(table)
        return table, {SPIKED: float(count)}

    def raw_blocks(self, *names: str) -> Iterator[pd.DataFrame]:
        """`block_rows` rows of the file at a time, typed and not yet checked, in its own order.

        Args:
            names: columns wanted, of those the file has; none means all.

        Raises:
            SourceError: the file cannot be read as bars.
        """
        assert self.block_rows is not None, "blocks of no size"
        if self.path is None:
            table = self._read()
            for first in range(0, len(table), self.block_rows):
                yield table.iloc[first : first + self.block_rows].reset_index(drop=True)
            return
        first, zoned = 0, None
        for table in read_blocks(self._file, self.block_rows, names=names):
            if self.time_format is None:
                zoned = same_zoning(table["time"], zoned, origin=self.origin, first=first)
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
            raise SchemaError(f"{origin} has a header but no rows; nothing can be learnt from it")
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
    """The name of a block in messages, whose rows are counted from its own first one."""
    return origin if first == 0 else f"{origin}, counting rows from row {first} of the file"


def ordered(table: pd.DataFrame, contracts: Sequence[str]) -> pd.DataFrame:
    """Rows in the order of time, then of expiry, however the file interleaves its contracts.

    Args:
        table: validated bars.
        contracts: all codes from the earliest expiry to the latest.
    """
    contract = table["contract"].cat.set_categories(contracts)
    table = table.assign(contract=contract)
    time, rank = stamps(table).view(np.int64), contract.cat.codes.to_numpy()
    step = np.diff(time)
    if ((step > 0) | ((step == 0) & (np.diff(rank) > 0))).all():
        return table
    return table.iloc[np.lexsort((rank, time))].reset_index(drop=True)


class BarStream:
    """The bars that `BarSource.load` holds at once, as labelled tables that follow each other.

    Concatenated they are the table of `Bars`, but for contracts that `source.fraction` cuts off,
    which stay among the categories. The file is read twice: stamps and contracts first, because
    only its end tells the order of the contracts. A stamp is never cut: bars of one time are in one
    block. The facts are there when the last block has been taken.

    Args:
        source: with `block_rows`.
        scratch: an empty folder for what the fingerprint needs; the caller removes it.
    """

    def __init__(self, source: BarSource, *, scratch: Path) -> None:
        """Read stamps and contracts.

        Raises:
            SourceError: the file cannot be read as bars.
            SchemaError: a stamp or a contract code cannot be what it says, or the contracts are of
                more than one product.
        """
        self.source = source
        self.contracts, self.rows_in = _scan(source)
        self._left = max(1, int(self.rows_in * source.fraction))
        self.dropped: dict[str, int] = {}
        if self._left < self.rows_in:
            self.dropped["beyond source.fraction"] = self.rows_in - self._left
        self._spool = ColumnSpool(scratch)
        self._noticed: list[Noticed] = []
        self._spiked: Counter[str] = Counter()
        self._span: list[pd.Timestamp] = []
        self._used = np.zeros(len(self.contracts), dtype=bool)

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """Blocks of about `block_rows` rows.

        Raises:
            SchemaError: a row breaks the contract of a bar table, or the file is not in the order
                of time.
        """
        labeller = self.source.labeller()
        for number, table in enumerate(self._ordered()):
            if not self._left:
                continue  # what source.fraction leaves out is checked all the same
            if number == 0:
                self.source.say_what_vix(table)
            table, spiked = self.source.spiked(table.iloc[: self._left])
            self._spiked.update(spiked)
            table, noticed = labeller.label(table)
            self._left -= len(table)
            self._noticed.append(noticed)
            self._spool.append(table)
            self._used[table["contract"].cat.codes.unique()] = True
            self._span = [*self._span[:1], table["time"].iloc[0], table["time"].iloc[-1]]
            yield table

    @property
    def used(self) -> np.ndarray:
        """Codes of the contracts that the blocks hold, increasing."""
        return np.flatnonzero(self._used)

    def facts(self) -> BarFacts:
        """What `Bars.facts` says of the whole."""
        sha256 = self._spool.fingerprint(self.contracts, used=self.used)
        return BarFacts(self.source.name, self.rows_in, self._span[0], self._span[-1], sha256)

    def reports(self) -> dict[str, float]:
        """What was noticed and not changed, by name."""
        return reports(self._noticed) | dict(self._spiked)

    def _ordered(self) -> Iterator[pd.DataFrame]:
        """Checked blocks, each in order, cut where the time changes."""
        border = TimeBorder(self.source.origin)
        held: pd.DataFrame | None = None
        for raw in self.source.raw_blocks():
            check_bars(raw, origin=block_origin(self.source.origin, border.rows))
            border.check(raw)
            table = raw if held is None else _joined(held, raw)
            last = np.searchsorted(stamps(table), stamps(table)[-1])
            held = table.iloc[last:]
            if last:
                yield ordered(table.iloc[:last].reset_index(drop=True), self.contracts)
        assert held is not None, "a scan of no rows raises"
        yield ordered(held.reset_index(drop=True), self.contracts)


class TimeBorder:
    """The rules of time from block to block, which a check of one block cannot see."""

    def __init__(self, origin: str) -> None:
        """Nothing was seen yet."""
        self.origin, self.rows = origin, 0
        self._last: dict[str, pd.Timestamp] = {}

    def check(self, block: pd.DataFrame) -> None:
        """Hold a block, in the order of the file, against those before it.

        Raises:
            SchemaError: a contract goes on at or before the time where it stopped, or a bar starts
                before one above it.
        """
        spans = block.groupby("contract", observed=True)["time"].agg(["first", "last"])
        for code, start in spans["first"].items():
            self._contract_goes_on(str(code), start)
        newest = max(self._last.values(), default=block["time"].iloc[0])
        time = np.append(newest.tz_localize(None).to_datetime64(), stamps(block))
        early = np.flatnonzero(np.diff(time) < np.timedelta64(0))
        if early.size:
            row = int(early[0])
            raise SchemaError(
                f"{self.origin}: source.block_rows reads a file in the order of time, however row "
                f"{self.rows + row} starts at {block['time'].iloc[row]}, before a bar above it. "
                "Sort the file by time once, or set source.block_rows=null"
            )
        self._last |= {str(code): last for code, last in spans["last"].items()}
        self.rows += len(block)

    def _contract_goes_on(self, code: str, start: pd.Timestamp) -> None:
        if code not in self._last or start > self._last[code]:
            return
        same = start == self._last[code]
        raise SchemaError(
            f"{self.origin}: {'a contract must not have the same time twice' if same else ''}"
            f"{'' if same else 'times must increase within a contract'}. {code} has a bar of "
            f"{start} at or after row {self.rows}, and one of {self._last[code]} above it; mend or "
            "remove them in the file"
        )


def _scan(source: BarSource) -> tuple[list[str], int]:
    """Contracts in the order of expiry, and rows of the file."""
    first: dict[str, pd.Timestamp] = {}
    rows = 0
    for block in source.raw_blocks("time", "contract"):
        rows += len(block)
        _take_earlier(first, block.groupby("contract", observed=True)["time"].min())
    if not rows:
        raise SchemaError(
            f"{source.origin} has a header but no rows; nothing can be learnt from it"
        )
    return expiry_order(first), rows


def _take_earlier(first: dict[str, pd.Timestamp], starts: pd.Series) -> None:
    for code, start in starts.items():
        if not pd.isna(start):
            first[str(code)] = min(start, first.get(str(code), start))


def _joined(held: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    """The rows held back and those that follow; their categories may differ."""
    names = [name for name in ("contract", "session") if name in raw]
    numbers = pd.concat([held.drop(columns=names), raw.drop(columns=names)], ignore_index=True)
    united = {
        name: pd.api.types.union_categoricals([held[name], raw[name]], sort_categories=True)
        for name in names
    }
    return numbers.assign(**united)
