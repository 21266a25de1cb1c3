"""CSV, Parquet or synthetic -> validated bars, labelled with their trading dates.

One source serves every experiment: `source.path` names a file, and null means synthetic bars.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from robust_fin.errors import ConfigError, SourceError
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.columns import canonical_headers, to_numbers, to_utc
from robust_fin.market.contracts import in_expiry_order
from robust_fin.market.schema import PRICES, check_bars
from robust_fin.market.synthetic import SyntheticMarket
from robust_fin.market.vix import last_close_before, read_daily_closes

log = logging.getLogger(__name__)

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}


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
        digest = hashlib.sha256()
        for name in ("time", *PRICES, "volume", *(["vix"] if "vix" in self.table else [])):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(_plain(self.table[name])).data)
        contract = self.table["contract"].cat
        digest.update(",".join(map(str, contract.categories)).encode())
        digest.update(np.ascontiguousarray(contract.codes.to_numpy()).data)
        return digest.hexdigest()


def _plain(column: pd.Series) -> np.ndarray:
    values = column.to_numpy()
    if values.dtype == object or column.name == "time":
        return column.astype("int64").to_numpy()
    return values


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
        vix_path: daily VIX closes to join, a CSV with date and close.
        calendar: a name of pandas_market_calendars, or 24/7.
        calendar_overrides: a CSV with trading_date, open, close that mends the calendar.
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

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing, before any file is read."""
        if self.stamp not in ("start", "end"):
            raise ConfigError(f"source.stamp={self.stamp} is neither start nor end")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"source.fraction={self.fraction} is not in (0, 1]")

    def load(self) -> Bars:
        """Read, check, label and order the bars.

        Raises:
            SourceError: the file cannot be read as bars.
            SchemaError: a row breaks the contract of a bar table.
        """
        table, origin = self._read()
        check_bars(table, origin=origin)
        table = self._ordered(table)
        rows_in = len(table)
        table = table.iloc[: max(1, int(rows_in * self.fraction))].reset_index(drop=True)
        beyond = {"beyond source.fraction": rows_in - len(table)} if len(table) < rows_in else {}
        table, reports = self._labelled(table)
        return Bars(table, self.length, origin, rows_in, beyond, reports)

    @property
    def length(self) -> pd.Timedelta:
        """Length of a bar."""
        return pd.Timedelta(self.bar)

    def _read(self) -> tuple[pd.DataFrame, str]:
        if self.path is None:
            return self.synthetic().bars, "synthetic bars"
        path = Path(self.path).expanduser()
        origin = path.name
        table = canonical_headers(read_table(path), origin=origin)
        return self._typed(table, origin), origin

    def _typed(self, table: pd.DataFrame, origin: str) -> pd.DataFrame:
        if table.empty:
            raise SourceError(f"{origin} has a header but no rows; nothing can be learnt from it")
        time = to_utc(
            table["time"], timezone=self.timezone, time_format=self.time_format, origin=origin
        )
        typed = {"time": time - self.length if self.stamp == "end" else time}
        for name in (*PRICES, "volume", *(["vix"] if "vix" in table else [])):
            typed[name] = to_numbers(table[name], origin=origin)
        contract = table["contract"] if "contract" in table else pd.Series("ONE", table.index)
        typed["contract"] = contract if contract.dtype == "category" else contract.astype("string")
        if "session" in table:
            typed["session"] = table["session"]
        return pd.DataFrame(typed)

    def _ordered(self, table: pd.DataFrame) -> pd.DataFrame:
        codes = in_expiry_order(table["contract"], table["time"])
        contract = pd.Categorical(table["contract"].astype("string"), categories=codes)
        table = table.assign(contract=contract)
        stamps = table["time"].astype("int64").to_numpy()
        order = np.lexsort((contract.codes, stamps))
        if np.array_equal(order, np.arange(len(table))):
            return table
        return table.iloc[order].reset_index(drop=True)

    def _labelled(self, table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
        calendar = TradingCalendar.named(self.calendar, override_path=self.calendar_overrides)
        labels = calendar.label(pd.DatetimeIndex(table["time"]))
        reports = {
            "bars up to 30 minutes after the close": float(labels.late.sum()),
            "bars outside every session": float(labels.outside.sum()),
        }
        if "session" in table:
            said = table["session"].astype("string").str.upper().to_numpy() == "RTH"
            reports["share of session labels the calendar contradicts"] = float(
                np.mean(said != labels.rth)
            )
        table = table.assign(
            session=pd.Categorical.from_codes(labels.rth.astype(np.int8), ["ETH", "RTH"]),
            trading_date=labels.trading_date,
            trading_day=labels.trading_day,
        )
        if self.vix_path is not None:
            closes = read_daily_closes(Path(self.vix_path).expanduser())
            table["vix"] = last_close_before(closes, labels.trading_date)
        for name, value in reports.items():
            if value:
                log.info("%s: %g", name, value)
        return table, reports


def read_table(path: Path) -> pd.DataFrame:
    """The table a CSV or Parquet file holds, chosen by the file's ending, .gz and .zst too.

    Raises:
        SourceError: the file is missing, empty, of another kind, or cannot be parsed.
    """
    if not path.is_file():
        raise SourceError(f"there is no file {path}; set source.path to a CSV or Parquet file")
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty; a bar file has a header and at least one row")
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    compression = _COMPRESSED.get(endings[-1]) if endings else None
    kind = endings[-2:-1] if compression else endings[-1:]
    try:
        if kind == [".csv"]:
            return _read_csv(path, compression)
        if kind in ([".parquet"], [".pq"]):
            return _read_parquet(path, compression)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as {kind[0]}: {error}") from error
    raise SourceError(f"{path} ends in {path.suffix or 'nothing'}; .csv and .parquet are read")


def _read_csv(path: Path, compression: str | None) -> pd.DataFrame:
    with pa.input_stream(str(path), compression=compression) as stream:
        table = pyarrow.csv.read_csv(stream)
    return table.to_pandas()


def _read_parquet(path: Path, compression: str | None) -> pd.DataFrame:
    with pa.input_stream(str(path), compression=compression) as stream:
        content = pa.BufferReader(stream.read())
    return pyarrow.parquet.read_table(content).to_pandas()
