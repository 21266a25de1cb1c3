"""Daily VIX closes, joined to minute bars point in time."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.errors import SourceError

log = logging.getLogger(__name__)


def read_daily_closes(path: Path) -> pd.Series:
    """VIX closes by date from a CSV with the columns date and close (in any case).

    Only the close is read: some opens of 1992-2006 are impossible.

    Raises:
        SourceError: the file is missing, lacks a column, or holds a close that is no number.
    """
    if not path.is_file():
        raise SourceError(f"no VIX file at {path}; set source.vix_path to a CSV with date, close")
    table = pd.read_csv(path).rename(columns=lambda name: str(name).strip().lower())
    if not {"date", "close"} <= set(table.columns):
        raise SourceError(f"{path} has the columns {list(table.columns)}; it needs date and close")
    dates = pd.to_datetime(table["date"], errors="coerce")
    closes = pd.to_numeric(table["close"], errors="coerce").astype(np.float64)
    bad = np.flatnonzero(dates.isna() | ~np.isfinite(closes) | (closes <= 0))
    if bad.size:
        raise SourceError(
            f"{path}: row {bad[0]} is date={table['date'][bad[0]]}, close={table['close'][bad[0]]}"
            f"; {bad.size} rows are not a date with a close above 0. Remove them"
        )
    return pd.Series(closes.to_numpy(), index=pd.DatetimeIndex(dates).as_unit("s")).sort_index()


def last_close_before(closes: pd.Series, trading_date: np.ndarray) -> Float[np.ndarray, " rows"]:
    """The last close of a day strictly before each bar's trading date; NaN before the first.

    A day's close is known at 15:15 Chicago of that day, so a bar of the same trading date must not
    see it.

    Args:
        closes: VIX closes in index points, by date, sorted.
        trading_date: datetime64, one entry a bar.
    """
    dates = closes.index.to_numpy().astype("datetime64[s]")
    position = np.searchsorted(dates, trading_date.astype("datetime64[s]"), side="left") - 1
    return np.where(position >= 0, closes.to_numpy()[np.maximum(position, 0)], np.nan)
