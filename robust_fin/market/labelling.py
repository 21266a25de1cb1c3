"""Bars with their trading date, session, contract order and the VIX close of the day before."""

import logging
import re
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
from robust_fin.market.schema import shown, stamps

log = logging.getLogger(__name__)

_CODE = re.compile(r"^(?P<root>[A-Z0-9]{1,4}?)(?P<month>[FGHJKMNQUVXZ])(?P<year>\d{1,4})$")
_MONTHS = "FGHJKMNQUVXZ"


def expiry(code: str, *, first_year: int) -> tuple[int, int] | None:
    """Year and month in which a contract expires, or None where the code does not tell.

    Args:
        code: such as ESZ24, ESZ4 or ESZ2024.
        first_year: year of the contract's first bar; it settles one- and two-digit years, which
            mean the first such year not before it.
    """
    match = _CODE.match(code.strip().upper())
    if match is None:
        return None
    digits, month = match["year"], _MONTHS.index(match["month"]) + 1
    if len(digits) == 3:
        return None
    cycle = 10 ** len(digits)
    year = int(digits) if len(digits) == 4 else first_year + (int(digits) - first_year) % cycle
    return year, month


def in_expiry_order(contract: pd.Series, time: pd.Series) -> list[str]:
    """Contract codes from the earliest expiry to the latest; by first bar where a code is unknown.

    Args:
        contract: code of each bar, categorical.
        time: start of each bar.

    Raises:
        SchemaError: the codes are of more than one product, or one of them cannot be told.
    """
    first = time.groupby(contract, observed=True).min()
    return expiry_order({str(code): start for code, start in first.items()})


def expiry_order(first: Mapping[str, pd.Timestamp]) -> list[str]:
    """Contract codes from the earliest expiry to the latest; by first bar where a code is unknown.

    Args:
        first: start of the first bar of each contract.

    Raises:
        SchemaError: the codes are of more than one product, or one of them cannot be told.
    """
    _one_line_each(list(first))
    _one_product(list(first))
    keys = {code: expiry(code, first_year=start.year) for code, start in first.items()}
    _told_apart(keys)
    if any(key is None for key in keys.values()):
        return sorted(first, key=lambda code: (first[code], code))
    return sorted(keys, key=lambda code: (keys[code], first[code], code))


def _one_line_each(codes: list[str]) -> None:
    bad = [code for code in codes if not code.isprintable()]
    if bad:
        raise SchemaError(
            f"the contract '{shown(bad[0])}' holds a line break or another mark that cannot be "
            f"printed; {len(bad)} of {len(codes)} contracts. Write plain codes such as ESZ24"
        )


def _told_apart(keys: Mapping[str, tuple[int, int] | None]) -> None:
    """One contract written two ways would be two, each with a part of the bars."""
    seen: dict[object, str] = {}
    for code, key in keys.items():
        plain = code.strip().upper()
        match = _CODE.match(plain)
        expiring = None if match is None or key is None else (match["root"], *key)
        for meaning in (plain, expiring):
            other = seen.setdefault(meaning, code)
            if meaning is not None and other != code:
                one, two = (f"'{shown(name)}'" for name in sorted((other, code)))
                raise SchemaError(
                    f"the contracts {one} and {two} are one contract written two ways; write its "
                    "code alike in every row"
                )


def _one_product(codes: list[str]) -> None:
    """A contract takes history from the one before it, which must be of the same product."""
    matches = [_CODE.match(code.strip().upper()) for code in codes]
    roots = sorted({match["root"] for match in matches if match is not None})
    if len(roots) > 1 and all(matches):
        raise SchemaError(
            f"the contracts are of {len(roots)} products, {', '.join(roots)}; a file holds one. "
            "Split it and train on each"
        )


def read_daily_closes(path: Path) -> pd.Series:
    """VIX closes by date from a CSV with the columns date and close (in any case).

    Only the close is read: some opens of 1992-2006 are impossible.

    Raises:
        SourceError: the file is missing, lacks a column, or holds a close that is no number.
    """
    if not path.is_file():
        raise SourceError(f"no VIX file at {path}; set source.vix_path to a CSV with date, close")
    table = read_texts(path).rename(columns=lambda name: name.strip().lower())
    if not {"date", "close"} <= set(table.columns):
        raise SourceError(f"{path} has the columns {list(table.columns)}; it needs date and close")
    if not table.columns.is_unique:
        raise SourceError(f"{path} has the columns {list(table.columns)}; each may come once")
    if table.empty:
        raise SourceError(f"{path} has a header but no rows; it needs a close for every date")
    dates = _dates(table["date"].str.strip())
    closes = pd.to_numeric(table["close"].str.strip(), errors="coerce").astype(np.float64)
    bad = np.flatnonzero(dates.isna() | ~np.isfinite(closes) | (closes <= 0))
    if bad.size:
        date, close = (shown(table[name][bad[0]]) for name in ("date", "close"))
        raise SourceError(
            f"{path}: row {bad[0]} is date={date}, close={close}; {bad.size} rows are not a date "
            "with a close above 0. Remove them"
        )
    twice = np.flatnonzero(dates.duplicated())
    if twice.size:
        raise SourceError(
            f"{path}: row {twice[0]} has the date {table['date'][twice[0]]} of an earlier row; "
            f"{twice.size} such rows. Keep one close a date"
        )
    return pd.Series(closes.to_numpy(), index=pd.DatetimeIndex(dates).as_unit("s")).sort_index()


def _dates(text: pd.Series) -> pd.Series:
    """ISO dates, or month/day/year as the exchange itself writes them; NaT for anything else."""
    slashed = text.str.contains("/", regex=False, na=False).any()
    digits = text.where(text.str.contains(r"^[0-9]", na=False))  # pandas reads now, today as dates
    return pd.to_datetime(digits, errors="coerce", format="%m/%d/%Y" if slashed else "%Y-%m-%d")


def last_close_before(
    closes: pd.Series, trading_date: Shaped[np.ndarray, " rows"], *, days: int
) -> Float[np.ndarray, " rows"]:
    """The last close of a day strictly before each bar's trading date; NaN where there is none.

    A day's close is known at 15:15 Chicago of that day, so a bar of the same trading date must not
    see it. A file that ends before the bars do must not lend them its last close for ever.

    Args:
        closes: VIX closes in index points, by date, sorted.
        trading_date: datetime64, one entry a bar.
        days: calendar days that a close stays good for.
    """
    dates = closes.index.to_numpy().astype("datetime64[D]")
    today = trading_date.astype("datetime64[D]")
    position = np.searchsorted(dates, today, side="left") - 1
    last = np.maximum(position, 0)
    known = (position >= 0) & (today - dates[last] <= np.timedelta64(days, "D"))
    return np.where(known, closes.to_numpy()[last], np.nan)


_DAYS_VIX_LASTS = 10  # calendar days; the longest closure since 1990 took seven


class Noticed(NamedTuple):
    """What labelling a table noticed and did not change, in rows; None where it does not apply."""

    rows: int
    late: int
    outside: int
    contradicted: int | None
    unreadable: int | None
    without_vix: int | None


@dataclass(frozen=True, slots=True)
class Labeller:
    """Labels bars row by row, so a table in pieces gets the same labels as the whole.

    Attributes:
        calendar: of the market.
        closes: daily VIX closes by date that take the place of a vix column, or None.
    """

    calendar: TradingCalendar
    closes: pd.Series | None

    @classmethod
    def of(cls, calendar: str, *, override_path: str | None, vix_path: str | None) -> "Labeller":
        """Read the calendar and the VIX file.

        Raises:
            ConfigError: the calendar is unknown, or its overrides break a rule.
            SourceError: the VIX file cannot be read.
        """
        closes = None if vix_path is None else read_daily_closes(Path(vix_path).expanduser())
        return cls(TradingCalendar.named(calendar, override_path=override_path), closes)

    def label(self, table: pd.DataFrame) -> tuple[pd.DataFrame, Noticed]:
        """Add session, trading_date and trading_day, and vix where closes were given.

        Args:
            table: validated bars.

        Raises:
            SchemaError: a bar lies beyond the calendar.
        """
        labels = self.calendar.label(stamps(table))
        contradicted, unreadable, without_vix = None, None, None
        if "session" in table:
            contradicted, unreadable = _against(table["session"], labels.rth)
        table = table.assign(
            session=pd.Categorical.from_codes(labels.rth.astype(np.int8), pd.Index(["ETH", "RTH"])),
            trading_date=labels.trading_date,
            trading_day=labels.trading_day,
        )
        if self.closes is not None:
            vix = last_close_before(self.closes, labels.trading_date, days=_DAYS_VIX_LASTS)
            table, without_vix = table.assign(vix=vix), int(np.isnan(vix).sum())
        late, outside = int(labels.late.sum()), int(labels.outside.sum())
        return table, Noticed(len(table), late, outside, contradicted, unreadable, without_vix)


def reports(parts: Iterable[Noticed]) -> dict[str, float]:
    """What was noticed in all parts of a table, by name; also logged."""
    total = [_sum(counts) for counts in zip(*parts, strict=True)]
    rows, late, outside, contradicted, unreadable, without_vix = total
    if not rows or late is None or outside is None:
        raise AssertionError("no rows were labelled")
    found: dict[str, float] = {
        "bars up to 30 minutes after the close": float(late),
        "bars outside every session": float(outside),
    }
    if contradicted is not None and unreadable is not None:
        found["share of session labels the calendar contradicts"] = contradicted / rows
        found["session labels that are neither RTH nor ETH"] = float(unreadable)
    if without_vix is not None:
        name = f"bars without a VIX close of the {_DAYS_VIX_LASTS} days before"
        found[name] = float(without_vix)
    for name, value in found.items():
        if value:
            log.info("%s: %g", name, value)
    return found


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _against(said: pd.Series, rth: Bool[np.ndarray, " rows"]) -> tuple[int, int]:
    """How many of the file's labels the calendar contradicts, and how many say nothing.

    They are compared, never believed.
    """
    regular = {"RTH": 1.0, "ETH": 0.0}
    meaning = [regular.get(name.strip().upper(), np.nan) for name in said.cat.categories]
    label = np.append(meaning, np.nan)[said.cat.codes.to_numpy()]  # code -1, missing, is the last
    wrong = ~np.isnan(label) & (label != rth)
    return int(wrong.sum()), int(np.isnan(label).sum())
