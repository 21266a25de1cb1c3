"""CSV, Parquet or synthetic -> validated bars, labelled with their trading dates.

One source serves every experiment: `source.path` names a file, and null means synthetic bars.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.clock import same_zoning, to_utc
from robust_fin.market.columns import NUMBERS, to_codes, to_numbers
from robust_fin.market.contracts import in_expiry_order
from robust_fin.market.facts import BarFacts, fingerprint
from robust_fin.market.files import read_blocks, read_table
from robust_fin.market.labelling import Labeller, reports
from robust_fin.market.schema import check_bars, stamps
from robust_fin.market.spikes import SPIKED, Spikes
from robust_fin.market.synthetic import SyntheticMarket

log = logging.getLogger(__name__)


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
