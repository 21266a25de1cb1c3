"""Daily VIX closes, joined to minute bars point in time."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from robust_fin.errors import SourceError
from robust_fin.market.files import read_texts
from robust_fin.market.schema import shown

log = logging.getLogger(__name__)


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
