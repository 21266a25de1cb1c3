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
from jaxtyping import Bool

from robust_fin.errors import ConfigError, SourceError
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.columns import to_codes, to_numbers, to_utc
from robust_fin.market.contracts import in_expiry_order
from robust_fin.market.files import read_table
from robust_fin.market.schema import PRICES, check_bars, stamps
from robust_fin.market.synthetic import SyntheticMarket
from robust_fin.market.vix import last_close_before, read_daily_closes

log = logging.getLogger(__name__)

_DAYS_VIX_LASTS = 10  # calendar days; the longest closure since 1990 took seven


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
        digest.update(b"time")
        digest.update(np.ascontiguousarray(stamps(self.table)).view(np.int64).data)
        for name in (*PRICES, "volume", *(["vix"] if "vix" in self.table else [])):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.table[name].to_numpy()).data)
        contract = self.table["contract"].cat
        digest.update(",".join(map(str, contract.categories)).encode())
        digest.update(np.ascontiguousarray(contract.codes.to_numpy()).data)
        return digest.hexdigest()


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
        try:
            length = pd.Timedelta(self.bar)
        except ValueError as error:
            raise ConfigError(
                f"source.bar={self.bar} is no length such as 1min: {error}"
            ) from error
        if not length > pd.Timedelta(0):
            raise ConfigError(f"source.bar={self.bar} must be longer than nothing; 1min is usual")

    def load(self) -> Bars:
        """Read, check, label and order the bars.

        Raises:
            SourceError: the file cannot be read as bars.
            SchemaError: a row breaks the contract of a bar table.
        """
        table, origin = self._read()
        check_bars(table, origin=origin)
        table = _ordered(table)
        rows_in = len(table)
        kept = max(1, int(rows_in * self.fraction))
        beyond = {}
        if kept < rows_in:
            beyond = {"beyond source.fraction": rows_in - kept}
            table = table.iloc[:kept].copy()
            table["contract"] = table["contract"].cat.remove_unused_categories()
        table, reports = self._labelled(table)
        return Bars(table, self.length, origin, rows_in, beyond, reports)

    @property
    def length(self) -> pd.Timedelta:
        """Length of a bar."""
        return pd.Timedelta(self.bar)

    def _read(self) -> tuple[pd.DataFrame, str]:
        if self.path is None:
            table = self.synthetic().bars
            texts = [name for name in ("contract", "session") if name in table]
            return table.assign(**{name: to_codes(table[name]) for name in texts}), "synthetic bars"
        path = Path(self.path).expanduser()
        table = read_table(path, text_stamps=self.time_format is not None)
        return self._typed(table, path.name), path.name

    def _typed(self, table: pd.DataFrame, origin: str) -> pd.DataFrame:
        if table.empty:
            raise SourceError(f"{origin} has a header but no rows; nothing can be learnt from it")
        time = to_utc(
            table["time"], timezone=self.timezone, time_format=self.time_format, origin=origin
        )
        typed: dict[str, pd.Series | np.ndarray] = {}
        typed["time"] = time - self.length if self.stamp == "end" else time
        for name in (*PRICES, "volume", *(["vix"] if "vix" in table else [])):
            typed[name] = to_numbers(table[name], origin=origin)
        contract = table["contract"] if "contract" in table else pd.Series("ONE", table.index)
        typed["contract"] = to_codes(contract)
        if "session" in table:
            typed["session"] = to_codes(table["session"])
        return pd.DataFrame(typed, copy=False)  # a copy costs a third of the load

    def _labelled(self, table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
        calendar = TradingCalendar.named(self.calendar, override_path=self.calendar_overrides)
        labels = calendar.label(stamps(table))
        reports = {
            "bars up to 30 minutes after the close": float(labels.late.sum()),
            "bars outside every session": float(labels.outside.sum()),
        }
        if "session" in table:
            reports |= _session_reports(table["session"], labels.rth)
        table = table.assign(
            session=pd.Categorical.from_codes(labels.rth.astype(np.int8), pd.Index(["ETH", "RTH"])),
            trading_date=labels.trading_date,
            trading_day=labels.trading_day,
        )
        if self.vix_path is not None:
            if "vix" in table:
                log.info("source.vix_path takes the place of the vix column of the bars")
            closes = read_daily_closes(Path(self.vix_path).expanduser())
            vix = last_close_before(closes, labels.trading_date, days=_DAYS_VIX_LASTS)
            table = table.assign(vix=vix)
            absent = f"bars without a VIX close of the {_DAYS_VIX_LASTS} days before"
            reports[absent] = float(np.isnan(vix).sum())
        for name, value in reports.items():
            if value:
                log.info("%s: %g", name, value)
        return table, reports


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of time, then of expiry, however the file interleaves its contracts."""
    codes = in_expiry_order(table["contract"], table["time"])
    contract = table["contract"].cat.set_categories(codes)
    table = table.assign(contract=contract)
    time, rank = stamps(table).view(np.int64), contract.cat.codes.to_numpy()
    step = np.diff(time)
    if ((step > 0) | ((step == 0) & (np.diff(rank) > 0))).all():
        return table
    return table.iloc[np.lexsort((rank, time))].reset_index(drop=True)


def _session_reports(said: pd.Series, rth: Bool[np.ndarray, " rows"]) -> dict[str, float]:
    """How far the file's labels are from the calendar's; they are compared, never believed."""
    regular = {"RTH": 1.0, "ETH": 0.0}
    meaning = [regular.get(name.strip().upper(), np.nan) for name in said.cat.categories]
    label = np.append(meaning, np.nan)[said.cat.codes.to_numpy()]  # code -1, missing, is the last
    wrong = ~np.isnan(label) & (label != rth)
    return {
        "share of session labels the calendar contradicts": float(wrong.mean()),
        "session labels that are neither RTH nor ETH": float(np.isnan(label).sum()),
    }
