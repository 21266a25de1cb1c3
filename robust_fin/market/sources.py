"""Load CSV, Parquet or synthetic bars as one validated table."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.files import read_blocks, read_table
from robust_fin.market.intake.findings import CHECKS, BarFindings, Expected, examine
from robust_fin.market.intake.forms import Layout, TableForm, drop_rows, number_columns, table_form
from robust_fin.market.intake.products import left_out, products
from robust_fin.market.intake.sniffing import HEAD_ROWS
from robust_fin.market.labelling import (
    Labeller,
    contracts_by_expiry,
    label_reports,
    split_reused_codes,
)
from robust_fin.market.parsing import check_same_zoning, to_codes, to_utc
from robust_fin.market.schema import BarSummary, bar_starts, check_bars, fingerprint
from robust_fin.market.synthetic import SPIKED_BARS, Spikes, SyntheticMarket

log = logging.getLogger(__name__)


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
        layout: how the table was laid out when it was read.
        findings: comparison of the bars with their settings.
    """

    table: pd.DataFrame
    bar: pd.Timedelta
    origin: str
    rows_in: int
    dropped: dict[str, int] = field(default_factory=dict)
    reports: dict[str, float] = field(default_factory=dict)
    layout: Layout = field(default_factory=lambda: Layout("synthetic"))
    findings: BarFindings = field(default_factory=BarFindings)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all columns but the labels, in hexadecimal."""
        return fingerprint(self.table)

    def summary(self, sha256: str | None = None) -> BarSummary:
        """Return what a run records about its bars.

        Args:
            sha256: their fingerprint; None computes it from the table.
        """
        first, last = self.table["time"].iloc[[0, -1]]
        facts = self.findings.facts()
        sha256 = sha256 or self.fingerprint()
        return BarSummary(self.origin, self.rows_in, first, last, sha256, facts)


@dataclass(frozen=True, slots=True)
class BarSource:
    """Location of the bars, and how to read their timestamps.

    Attributes:
        path: a .csv or .parquet file (also .gz, .zst); None makes synthetic bars.
        timezone: time zone of timestamps that carry none.
        time_format: strptime pattern of text timestamps; None infers the form.
        decimal: form of numbers written as text: "point", "comma" or "32nds"; None infers it.
        columns: schema name, or a name of your own for a numeric column that features may read ->
            column of the file; None reads the columns that have a known name.
        stamp: "start" or "end": the end of the bar that its timestamp marks.
        bar: length of a bar, as a pandas offset such as 1min.
        fraction: share of the rows to keep, from the first row on, in (0, 1].
        vix_path: CSV of daily VIX closes with the columns date and close; it replaces a vix column
            of the file.
        calendar: a name of pandas_market_calendars, or 24/7.
        calendar_overrides: CSV with trading_date, open, close that corrects the calendar.
        block_rows: number of rows read and prepared at once, for a file larger than memory; None
            reads the file at once. The result is the same.
        spikes: bad ticks to insert after the bars are read and checked; None inserts none.
        product: product whose rows are kept, such as ES; None keeps all.
        accept: names of checks (`robust_fin.market.intake.findings.CHECKS`) whose disagreements
            do not stop.
        root: product whose tick is known, such as ES; None for no instrument.
        tick: smallest price step of that product; None if unknown.
        synthetic: factory of the synthetic bars, used when `path` is None.
    """

    synthetic: Callable[[], SyntheticMarket]
    path: str | None
    timezone: str | None
    time_format: str | None
    decimal: str | None
    columns: Mapping[str, str] | None
    stamp: str
    bar: str
    fraction: float
    vix_path: str | None
    calendar: str
    calendar_overrides: str | None
    block_rows: int | None
    spikes: Spikes | None
    product: str | None
    accept: Sequence[str]
    root: str | None
    tick: float | None

    def __post_init__(self) -> None:
        """Check the settings before any file is read."""
        unknown = [name for name in self.accept if name not in CHECKS]
        if unknown:
            raise ConfigError(
                f"source.accept={list(self.accept)} names {', '.join(map(str, unknown))}, which is "
                f"no check; the checks are {', '.join(CHECKS)}"
            )
        if self.stamp not in ("start", "end"):
            raise ConfigError(f"source.stamp={self.stamp} must be start or end")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"source.fraction={self.fraction} must be in (0, 1]")
        if not any(map(str.isalpha, str(self.bar))):
            raise ConfigError(
                f"source.bar={self.bar} has no unit; write source.bar={self.bar}min or "
                f"source.bar={self.bar}s"
            )
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
        bars = self.inspect()
        bars.findings.check(self.origin)
        return bars

    def inspect(self) -> Bars:
        """Return what `load` returns, even where the bars contradict the settings."""
        labeller = self.labeller()
        bars = self.prepare(*self._read(), labeller)
        self.log_vix_override(bars.table)
        table, spiked = self.add_spikes(bars.table)
        table, counts = labeller.label(table)
        return replace(bars, table=table, reports=label_reports([counts]) | spiked)

    def prepare(self, table: pd.DataFrame, layout: Layout, labeller: Labeller) -> Bars:
        """Check, sort and examine typed rows, which get no labels yet.

        Args:
            table: typed rows in the order of the file.
            layout: layout of the file.
            labeller: has the calendar.

        Raises:
            SchemaError: a row breaks a rule of the bar table.
        """
        rows_in = len(table)
        table, layout, dropped = drop_rows(table, layout, origin=self.origin)
        table, others = leave_out(table, self.reasons_left_out(codes_of(table)))
        dropped |= others
        check_bars(table, origin=self.origin)
        table = split_reused_codes(table.reset_index(drop=True), origin=self.origin)
        table = sort_bars(table, contracts_by_expiry(table["contract"], table["time"]))
        kept = max(1, int(len(table) * self.fraction))
        if kept < len(table):
            dropped |= {"beyond source.fraction": len(table) - kept}
            table = table.iloc[:kept]
            table = table.assign(contract=table["contract"].cat.remove_unused_categories())
        findings = self.examine(table, labeller)
        bar = max(self.length, findings.bar or self.length)
        return Bars(table, bar, self.name, rows_in, dropped, {}, layout, findings)

    def reasons_left_out(self, codes: Sequence[str]) -> Mapping[str, str]:
        """Return the contract codes whose rows are left out, with the reason.

        Args:
            codes: all contract codes of the file.

        Raises:
            ConfigError: no row belongs to `product`.
        """
        reasons = left_out(codes, product=self.product)
        if codes and len(reasons) == len(codes):
            raise ConfigError(
                f"source.product={self.product} is not in {self.origin}; it holds "
                f"{', '.join(products(codes)) or ', '.join(codes)}"
            )
        return reasons

    def examine(self, table: pd.DataFrame, labeller: Labeller) -> BarFindings:
        """Compare bars with the settings; disagreements in `accept` are marked.

        Args:
            table: checked bars, sorted by time.
            labeller: has the calendar.
        """
        expected = Expected(
            bar=self.length,
            zone=self.timezone,
            stamp=self.stamp,
            calendar=labeller.calendar,
            root=self.root,
            tick=self.tick,
            product=self.product,
        )
        return examine(table, expected).with_accepted(self.accept)

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

    def raw_blocks(self) -> Iterator[tuple[pd.DataFrame, Layout]]:
        """Yield blocks of `block_rows` rows, typed but not checked, in the order of the file.

        Each comes with the layout of the file; the rows that reading leaves out are counted in it
        as they are read.

        Raises:
            SourceError: the file cannot be read.
        """
        assert self.block_rows is not None, "block_rows is None"
        if self.path is None:
            yield self._read()
            return
        form: TableForm | None = None
        first, zoned = 0, None
        for table, layout in read_blocks(self._file, self.block_rows, columns=self._columns):
            form = form or self._block_form(layout)
            if self.time_format is None and not form.stamps.changes_text:
                zoned = check_same_zoning(table["time"], zoned, origin=self.origin, first=first)
            typed = self._typed(table, form, block_origin(self.origin, first))
            yield typed, form.describe(layout, typed_stamps=table["time"])
            first += len(table)

    def _block_form(self, layout: Layout) -> TableForm:
        """Return the form of stamps and numbers, from the first rows of the file."""
        head, _ = next(read_blocks(self._file, HEAD_ROWS, columns=self._columns))
        return self._form(head, " ".join(layout.stamp_columns))

    @property
    def _columns(self) -> dict[str, str]:
        return {str(name): str(column) for name, column in (self.columns or {}).items()}

    def _form(self, head: pd.DataFrame, header: str) -> TableForm:
        return table_form(
            head.iloc[:HEAD_ROWS],
            time_format=self.time_format,
            timezone=self.timezone,
            decimal=self.decimal,
            header=header,
            origin=self.origin,
        )

    def _read(self) -> tuple[pd.DataFrame, Layout]:
        if self.path is None:
            table = self.synthetic().bars
            texts = [name for name in ("contract", "session") if name in table]
            table = table.assign(**{name: to_codes(table[name]) for name in texts})
            return table, Layout("synthetic", stamp_form="datetime")
        table, layout = read_table(
            self._file, columns=self._columns, as_text=self.decimal is not None
        )
        if table.empty:
            raise SchemaError(no_rows(self.origin))
        form = self._form(table, " ".join(layout.stamp_columns))
        typed = self._typed(table, form, self.origin)
        return typed, form.describe(layout, typed_stamps=table["time"])

    def _typed(self, table: pd.DataFrame, form: TableForm, origin: str) -> pd.DataFrame:
        if table.empty:
            raise SchemaError(no_rows(origin))
        time = to_utc(
            form.stamps.apply(table["time"]),
            timezone=form.stamps.zone or self.timezone,
            time_format=form.stamps.pattern,
            origin=origin,
        )
        typed: dict[str, pd.Series | np.ndarray] = {}
        typed["time"] = time - self.length if self.stamp == "end" else time
        for name in number_columns(table):
            typed[name] = form.to_floats(table[name], name, origin=origin)
        contract = table["contract"] if "contract" in table else pd.Series("ONE", table.index)
        typed["contract"] = to_codes(contract)
        if "session" in table:
            typed["session"] = to_codes(table["session"])
        return pd.DataFrame(typed, copy=False)  # a copy costs a third of the load


def codes_of(table: pd.DataFrame) -> list[str]:
    """Return the contract codes of a typed table."""
    return [str(code) for code in table["contract"].cat.categories]


def leave_out(
    table: pd.DataFrame, reasons: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Leave out the rows of some contracts.

    Args:
        table: typed rows.
        reasons: code of each contract to leave out -> the reason.

    Returns:
        The other rows under their old row labels, and the number of rows left out by reason.
    """
    codes = codes_of(table)
    if not reasons.keys() & set(codes):
        return table, {}
    by_code = np.array([*(reasons.get(code, "") for code in codes), ""])
    reason = by_code[table["contract"].cat.codes.to_numpy()]
    kept = table[reason == ""].copy()
    kept["contract"] = kept["contract"].cat.remove_unused_categories()
    names, counts = np.unique(reason[reason != ""], return_counts=True)
    return kept, dict(zip(names.tolist(), counts.tolist(), strict=True))


def no_rows(origin: str) -> str:
    """Return the message for a file without rows."""
    return f"{origin} has a header but no rows; a bar file needs at least one"


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
