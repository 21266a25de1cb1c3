"""Layout of a bar table as found, form of its stamps and numbers, and rows left out."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float

from robust_fin.errors import SchemaError
from robust_fin.market.intake.sniffing import NumberForm, number_form, plain_numbers
from robust_fin.market.intake.stamps import StampForm, stamp_form
from robust_fin.market.parsing import NUMBERS, to_numbers
from robust_fin.market.schema import PRICES, bar_starts

log = logging.getLogger(__name__)

_OUTRIGHT = r"[A-Z0-9]{1,4}?[FGHJKMNQUVXZ]\d{1,4}"
_SPREAD = re.compile(rf"^{_OUTRIGHT}(?:[-:]{_OUTRIGHT})+$")
_NO_NUMBERS = ("time", "contract", "session")
_FIXED_POINT = 1e9
# integers this large, in steps this coarse, are prices of at least 1 with at most five decimals
_LEAST_FIXED_POINT, _FIXED_POINT_STEP = 1e9, 1e4
REPEATED_ROWS = "exact repeats of a row"
REPEATED_HEADERS = "repeats of the header"
FOOTERS = "lines below the rows that are no bars"
SPREADS = "bars of calendar spreads"

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of a bar table as it was found, and the rows that were left out.

    Attributes:
        kind: "csv", "parquet", "folder" (of Parquet files), "frame" or "synthetic".
        encoding: encoding of a CSV, such as utf-8 or utf-16-le.
        delimiter: character between the cells of a CSV.
        decimal: decimal mark of text numbers, "." or ",".
        thousands: mark between groups of three digits; "" if there is none.
        skipped_lines: lines above the header, or above the first row if there is no header.
        header_lines: lines of the header; 0 if the file has none.
        columns: schema name -> column of the file; extra columns under the name of source.columns.
        unread: columns of the file that are not read.
        stamp_columns: columns that make the timestamp, one or two.
        stamp_form: such as "ISO 8601", "epoch ms" or a strptime pattern.
        stamp_zone: time zone that the file names for its stamps; None if it names none.
        price_scale: "1" for prices as written, "1e-9" for fixed point, or "32nds".
        newest_first: the rows were in falling order of time and have been reversed.
        dropped: number of rows left out while reading, by reason.
    """

    kind: str
    encoding: str | None = None
    delimiter: str | None = None
    decimal: str = "."
    thousands: str = ""
    skipped_lines: int = 0
    header_lines: int = 1
    columns: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    stamp_columns: tuple[str, ...] = ()
    stamp_form: str = ""
    stamp_zone: str | None = None
    price_scale: str = "1"
    newest_first: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str]]:
        """Describe the layout for display: (subject, found, how to override)."""
        rows = []
        if self.kind == "csv":
            rows += self._csv_rows()
        stamps = " and ".join(self.stamp_columns)
        zone = f", {self.stamp_zone}" if self.stamp_zone else ""
        rows.append(("timestamp", f"{stamps}: {self.stamp_form}{zone}", "source.time_format"))
        renamed = {n: c for n, c in self.columns.items() if n not in ("time", "date") and n != c}
        if renamed:
            found = ", ".join(f"{name} from {column}" for name, column in renamed.items())
            rows.append(("columns", found, "source.columns"))
        if self.unread:
            rows.append(("columns not read", ", ".join(self.unread), "source.columns"))
        if self.price_scale != "1":
            rows.append(("price scale", self.price_scale, "source.decimal"))
        if self.newest_first:
            rows.append(("row order", "newest first; reversed", ""))
        rows += [("rows left out", f"{n:,} {reason}", "") for reason, n in self.dropped.items()]
        return rows

    def _csv_rows(self) -> list[tuple[str, str, str]]:
        delimiter = _DELIMITERS.get(str(self.delimiter), repr(self.delimiter))
        header = {0: "none", 1: "one line"}.get(self.header_lines, f"{self.header_lines} lines")
        above = f", {self.skipped_lines} lines above it" if self.skipped_lines else ""
        marks = f'"{self.decimal}"'
        marks += f', thousands mark "{self.thousands}"' if self.thousands else ""
        return [
            ("encoding", str(self.encoding), ""),
            ("delimiter", delimiter, ""),
            ("decimal mark", marks, "source.decimal"),
            ("header", f"{header}{above}", "source.columns"),
        ]


@dataclass(frozen=True, slots=True)
class TableForm:
    """Form of the stamps and of the numbers of a table."""

    stamps: StampForm
    numbers: NumberForm

    def to_floats(self, column: pd.Series, name: str, *, origin: str) -> Float[np.ndarray, " rows"]:
        """Convert a column to float64; prices are scaled to points.

        Args:
            column: cells as read.
            name: schema name of the column.
            origin: file name, for the message.

        Raises:
            SchemaError: a cell is not a number.
        """
        form = self.numbers
        if form.is_32nds and name not in PRICES:
            form = NumberForm()
        if form != NumberForm() and not form.is_fixed_point and not _is_typed(column):
            text = pa.array(column.astype("str"), type=pa.large_string())
            plain = plain_numbers(text, form).to_pandas()
            column = plain.set_axis(column.index).rename(column.name)
        values = to_numbers(column, origin=origin)
        return values / _FIXED_POINT if form.is_fixed_point and name in PRICES else values

    def describe(self, layout: Layout, *, typed_stamps: pd.Series) -> Layout:
        """Return the layout with the forms of stamps and numbers."""
        is_typed = pd.api.types.is_datetime64_any_dtype(typed_stamps)
        return replace(
            layout,
            decimal=self.numbers.decimal,
            thousands=self.numbers.thousands,
            price_scale=self.numbers.price_scale,
            stamp_form="datetime" if is_typed else self.stamps.name,
            stamp_zone=self.stamps.zone or (self.stamps.named_zones or None),
        )


def _is_typed(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)


def number_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that hold numbers: those of the schema, then those of source.columns."""
    extra = [name for name in table if name not in (*NUMBERS, *_NO_NUMBERS)]
    return [*(name for name in NUMBERS if name in table), *map(str, extra)]


def table_form(
    head: pd.DataFrame,
    *,
    time_format: str | None,
    timezone: str | None,
    decimal: str | None,
    header: str,
    origin: str,
) -> TableForm:
    """Infer the form of stamps and numbers from the first rows.

    Args:
        head: first rows under the schema's names.
        time_format: source.time_format.
        timezone: source.timezone.
        decimal: source.decimal.
        header: column or columns of the stamp.
        origin: file name, for the message.

    Raises:
        SchemaError: stamps or numbers can be read in two ways.
        ConfigError: a setting is invalid.
    """
    stamps = stamp_form(
        head["time"], time_format=time_format, timezone=timezone, header=header, origin=origin
    )
    texts = [name for name in number_columns(head) if not _is_typed(head[name])]
    cells = {name: pa.array(head[name].astype("str"), pa.large_string()) for name in texts}
    numbers = number_form(cells, decimal=decimal, origin=origin)
    if numbers == NumberForm() and decimal is None and _is_fixed_point(head):
        numbers = NumberForm(is_fixed_point=True)
    return TableForm(stamps, numbers)


def _is_fixed_point(head: pd.DataFrame) -> bool:
    """Return whether all prices, of spreads aside, are integers in units of 1e-9."""
    if "contract" in head:
        codes = head["contract"].astype("str")
        spreads = [code for code in codes.dropna().unique() if is_spread(code)]
        head = head[~codes.isin(spreads)]
    for name in PRICES:
        values = pd.to_numeric(head[name], errors="coerce").to_numpy(np.float64)
        if not values.size or not (values >= _LEAST_FIXED_POINT).all():
            return False
        if (values % _FIXED_POINT_STEP != 0).any():
            return False
    return True


def drop_rows(
    table: pd.DataFrame, layout: Layout, *, origin: str
) -> tuple[pd.DataFrame, Layout, dict[str, int]]:
    """Leave out calendar spreads and exact repeats, and reverse a table that is newest first.

    Args:
        table: typed rows in the order of the file.
        layout: layout of the file.
        origin: file name, for the message.

    Returns:
        The table, the layout with what was found, and the number of rows left out, by reason.

    Raises:
        SchemaError: all contracts are calendar spreads.
    """
    kept = table[~_is_spread(table["contract"], origin)] if _has_spreads(table) else table
    dropped = {SPREADS: len(table) - len(kept)}
    newest_first = False
    time = bar_starts(kept)
    if (np.diff(time) <= np.timedelta64(0)).any():
        steps = kept.groupby("contract", sort=False, observed=True)["time"].diff().dropna()
        if (steps <= pd.Timedelta(0)).any():
            unique = kept.drop_duplicates()
            dropped[REPEATED_ROWS] = len(kept) - len(unique)
            steps = unique.groupby("contract", sort=False, observed=True)["time"].diff().dropna()
            newest_first = len(steps) > 0 and bool((steps < pd.Timedelta(0)).all())
            kept = unique.iloc[::-1] if newest_first else unique
    dropped = {reason: count for reason, count in dropped.items() if count}
    for reason, count in dropped.items():
        log.info("%s: %d %s are left out", origin, count, reason)
    if newest_first:
        log.info("%s: the rows are newest first; they are read from the last to the first", origin)
    if len(kept) < len(table) or newest_first:
        kept = kept.reset_index(drop=True)
        kept["contract"] = kept["contract"].cat.remove_unused_categories()
    found = {**layout.dropped, **dropped}
    return kept, replace(layout, newest_first=newest_first, dropped=found), dropped


def _has_spreads(table: pd.DataFrame) -> bool:
    return any(map(is_spread, table["contract"].cat.categories))


def is_spread(code: str) -> bool:
    """Return whether a contract code is a calendar spread such as ESH4-ESM4."""
    return _SPREAD.match(code.strip().upper()) is not None


def _is_spread(contract: pd.Series, origin: str) -> pd.Series:
    spreads = [code for code in contract.cat.categories if is_spread(code)]
    if len(spreads) == len(contract.cat.categories):
        raise SchemaError(
            f"{origin}: all contracts are calendar spreads, such as {spreads[0]}, whose prices are "
            "differences; a bar table needs outright contracts such as ESH24"
        )
    return contract.isin(spreads)
