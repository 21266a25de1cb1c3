"""Layout of a bar table: what was taken as found when a file or DataFrame was read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
