"""Label bars with trading date, session, contract order and the previous day's VIX close."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped

from robust_fin.errors import SchemaError, SourceError
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.files import read_texts
from robust_fin.market.intake.continuity import silent_gaps
from robust_fin.market.intake.products import MONTHS, Expiry, parse_code, parse_expiry
from robust_fin.market.schema import bar_starts, excerpt

log = logging.getLogger(__name__)

_MAX_VIX_AGE = 10  # calendar days; the longest closure since 1990 took seven


def product_of(code: str) -> str:
    """Return the product of a contract code: ES for ESZ24; an unknown form is its own product."""
    return parse_code(code).product or code.strip().upper()


def contract_expiry(code: str, *, first_year: int) -> tuple[int, int] | None:
    """Parse the year and month of expiry from a contract code; None if it has another form.

    Args:
        code: such as ESZ24, ESZ4, ESZ2024 or ES 12-24.
        first_year: year of the contract's first bar. One- and two-digit years mean the first
            matching year that is not before it.
    """
    parts = parse_expiry(code)
    if parts is None:
        return None
    return _full_year(parts.year, first_year), parts.month


def _full_year(digits: str, first_year: int) -> int:
    """Return the year of one, two or four digits, not before `first_year` unless it has four."""
    year, cycle = int(digits), 10 ** len(digits)
    return year if len(digits) == 4 else first_year + (year - first_year) % cycle


def split_reused_codes(table: pd.DataFrame, *, origin: str) -> pd.DataFrame:
    """Give the contracts that share a code with a one-digit year codes of their own.

    ESH4 is the contract of March 2014 and, ten years later, that of March 2024: they become ESH2014
    and ESH2024. A code is split where its contract is silent for longer than it traded, and only if
    the bars after the silence have another year of expiry.

    Args:
        table: checked bars; the times of each contract increase.
        origin: file name, for the log.
    """
    parsed = {code: parse_expiry(code) for code in table["contract"].cat.categories}
    reusable = {code: parts for code, parts in parsed.items() if parts and len(parts.year) == 1}
    if not reusable:
        return table
    start, names = bar_starts(table).view(np.int64), [*parsed]
    number = table["contract"].cat.codes.to_numpy().astype(np.int64)
    for code, parts in reusable.items():
        rows = np.flatnonzero(table["contract"] == code)
        first = [0, *silent_gaps(start[rows])]  # of each contract, among these rows
        meant = [_with_full_year(parts, int(start[rows[at]])) for at in first]
        if 1 < len(meant) == len(set(meant)):
            log.info("%s: %s is the contracts %s", origin, code, ", ".join(meant))
            names += [name for name in meant if name not in names]
            for name, part in zip(meant, np.split(rows, first[1:]), strict=True):
                number[part] = names.index(name)
    contract = pd.Categorical.from_codes(number, pd.Index(names, dtype="str"))
    return table.assign(contract=contract.remove_unused_categories())


def _with_full_year(parts: Expiry, start: int) -> str:
    """Return a code with four digits of the year, for a contract whose first bar is at `start`."""
    year = _full_year(parts.year, pd.Timestamp(start).year)
    return f"{parts.root}{MONTHS[parts.month - 1]}{year}"


def contracts_by_expiry(contract: pd.Series, time: pd.Series) -> list[str]:
    """Sort the contracts of a table by expiry, or by first bar if any code is unknown.

    Args:
        contract: code of each bar, categorical.
        time: start of each bar.

    Raises:
        SchemaError: two codes mean the same contract, or a code is unprintable.
    """
    first = time.groupby(contract, observed=True).min()
    return sort_by_expiry({str(code): start for code, start in first.items()})


def sort_by_expiry(first: Mapping[str, pd.Timestamp]) -> list[str]:
    """Sort contract codes by expiry, or by first bar if any code is unknown.

    Args:
        first: start of the first bar of each contract.

    Raises:
        SchemaError: two codes mean the same contract, or a code is unprintable.
    """
    _check_printable(list(first))
    keys = {code: contract_expiry(code, first_year=start.year) for code, start in first.items()}
    _check_spellings(keys)
    if any(key is None for key in keys.values()):
        return sorted(first, key=lambda code: (first[code], code))
    return sorted(keys, key=lambda code: (keys[code], first[code], code))


def _check_printable(codes: list[str]) -> None:
    bad = [code for code in codes if not code.isprintable()]
    if bad:
        raise SchemaError(
            f"the contract '{excerpt(bad[0])}' contains a line break or another unprintable "
            f"character; {len(bad)} of {len(codes)} contracts. Write plain codes such as ESZ24"
        )


def _check_spellings(keys: Mapping[str, tuple[int, int] | None]) -> None:
    """Raise if two codes mean the same contract: each would get only a part of its bars."""
    seen: dict[object, str] = {}
    for code, key in keys.items():
        plain = code.strip().upper()
        parts = parse_expiry(plain)
        root_and_expiry = None if parts is None or key is None else (parts.root, *key)
        for meaning in (plain, root_and_expiry):
            other = seen.setdefault(meaning, code)
            if meaning is not None and other != code:
                first, second = (f"'{excerpt(name)}'" for name in sorted((other, code)))
                raise SchemaError(
                    f"the contracts {first} and {second} are two spellings of the same contract; "
                    "use the same code in every row"
                )


def read_daily_closes(path: Path) -> pd.Series:
    """Read VIX closes by date from a CSV with the columns date and close, in any case.

    Only the close is read: some opens of 1992-2006 are impossible.

    Raises:
        SourceError: the file is missing, lacks a column, or has an invalid or repeated row.
    """
    if not path.is_file():
        raise SourceError(f"no VIX file at {path}; set source.vix_path to a CSV with date, close")
    table = read_texts(path).rename(columns=lambda name: name.strip().lower())
    if not {"date", "close"} <= set(table.columns):
        raise SourceError(f"{path} has the columns {list(table.columns)}; it needs date and close")
    if not table.columns.is_unique:
        raise SourceError(f"{path} has the columns {list(table.columns)}; keep each name once")
    if table.empty:
        raise SourceError(f"{path} has a header but no rows; it needs a close for every date")
    dates = _parse_dates(table["date"].str.strip())
    closes = pd.to_numeric(table["close"].str.strip(), errors="coerce").astype(np.float64)
    bad = np.flatnonzero(dates.isna() | ~np.isfinite(closes) | (closes <= 0))
    if bad.size:
        date, close = (excerpt(table[name][bad[0]]) for name in ("date", "close"))
        raise SourceError(
            f"{path}: row {bad[0]} is date={date}, close={close}; {bad.size} rows are not a date "
            "with a close above 0. Remove them"
        )
    repeated = np.flatnonzero(dates.duplicated())
    if repeated.size:
        raise SourceError(
            f"{path}: row {repeated[0]} repeats the date {table['date'][repeated[0]]}; "
            f"{repeated.size} such rows. Keep a single close per date"
        )
    return pd.Series(closes.to_numpy(), index=pd.DatetimeIndex(dates).as_unit("s")).sort_index()


def _parse_dates(text: pd.Series) -> pd.Series:
    """Parse ISO dates, or month/day/year as Cboe writes them; NaT for anything else."""
    slashed = text.str.contains("/", regex=False, na=False).any()
    digits = text.where(text.str.contains(r"^[0-9]", na=False))  # pandas parses "now" and "today"
    return pd.to_datetime(digits, errors="coerce", format="%m/%d/%Y" if slashed else "%Y-%m-%d")


def last_close_before(
    closes: pd.Series, trading_date: Shaped[np.ndarray, " rows"], *, days: int
) -> Float[np.ndarray, " rows"]:
    """Return the last close of a day strictly before each bar's trading date; NaN if none.

    A day's close is known at 15:15 Chicago time of that day, so a bar of the same trading date must
    not use it. `days` keeps a file that ends early from lending its last close to all later bars.

    Args:
        closes: VIX closes in index points, by date, sorted.
        trading_date: datetime64, one entry per bar.
        days: maximum age of a close, in calendar days.
    """
    dates = closes.index.to_numpy().astype("datetime64[D]")
    today = trading_date.astype("datetime64[D]")
    position = np.searchsorted(dates, today, side="left") - 1
    last = np.maximum(position, 0)
    known = (position >= 0) & (today - dates[last] <= np.timedelta64(days, "D"))
    return np.where(known, closes.to_numpy()[last], np.nan)


class LabelCounts(NamedTuple):
    """Counts of oddities in a labelled table, in rows; None if the check does not apply."""

    rows: int
    late: int
    outside: int
    contradicted: int | None
    unreadable: int | None
    without_vix: int | None


@dataclass(frozen=True, slots=True)
class Labeller:
    """Adds labels row by row, so blocks get the same labels as the complete table.

    Attributes:
        calendar: calendar of the market.
        closes: daily VIX closes by date that replace a vix column, or None.
    """

    calendar: TradingCalendar
    closes: pd.Series | None

    @classmethod
    def load(cls, calendar: str, *, override_path: str | None, vix_path: str | None) -> "Labeller":
        """Read the calendar and the VIX file.

        Raises:
            ConfigError: the calendar is unknown, or its overrides are invalid.
            SourceError: the VIX file cannot be read.
        """
        closes = None if vix_path is None else read_daily_closes(Path(vix_path).expanduser())
        return cls(TradingCalendar.named(calendar, override_path=override_path), closes)

    def label(self, table: pd.DataFrame) -> tuple[pd.DataFrame, LabelCounts]:
        """Add session, trading_date and trading_day, and vix if there are closes.

        Args:
            table: validated bars.

        Raises:
            SchemaError: a bar lies beyond the calendar.
        """
        labels = self.calendar.label(bar_starts(table))
        contradicted, unreadable, without_vix = None, None, None
        if "session" in table:
            contradicted, unreadable = _compare_sessions(table["session"], labels.rth)
        table = table.assign(
            session=pd.Categorical.from_codes(labels.rth.astype(np.int8), pd.Index(["ETH", "RTH"])),
            trading_date=labels.trading_date,
            trading_day=labels.trading_day,
        )
        if self.closes is not None:
            vix = last_close_before(self.closes, labels.trading_date, days=_MAX_VIX_AGE)
            table, without_vix = table.assign(vix=vix), int(np.isnan(vix).sum())
        late, outside = int(labels.late.sum()), int(labels.outside.sum())
        return table, LabelCounts(len(table), late, outside, contradicted, unreadable, without_vix)


def label_reports(parts: Iterable[LabelCounts]) -> dict[str, float]:
    """Sum the counts of all blocks into named reports, and log the nonzero ones."""
    total = [_sum_known(counts) for counts in zip(*parts, strict=True)]
    rows, late, outside, contradicted, unreadable, without_vix = total
    assert rows, "no rows were labelled"
    named = {
        "bars up to 30 minutes after the close": late,
        "bars outside every session": outside,
        "share of session labels the calendar contradicts": (
            None if contradicted is None else contradicted / rows
        ),
        "session labels that are neither RTH nor ETH": unreadable,
        f"bars without a VIX close of the {_MAX_VIX_AGE} days before": without_vix,
    }
    reports = {name: float(value) for name, value in named.items() if value is not None}
    for name, value in reports.items():
        if value:
            log.info("%s: %g", name, value)
    return reports


def _sum_known(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _compare_sessions(session: pd.Series, rth: Bool[np.ndarray, " rows"]) -> tuple[int, int]:
    """Count the file's session labels that the calendar contradicts, and the unreadable ones.

    The file's labels are compared, but never used.
    """
    codes = {"RTH": 1.0, "ETH": 0.0}
    meaning = [codes.get(name.strip().upper(), np.nan) for name in session.cat.categories]
    label = np.append(meaning, np.nan)[session.cat.codes.to_numpy()]  # the last is for code -1
    wrong = ~np.isnan(label) & (label != rth)
    return int(wrong.sum()), int(np.isnan(label).sum())
