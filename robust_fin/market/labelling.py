"""Bars with their trading dates, sessions and the VIX of the day before."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.schema import stamps
from robust_fin.market.vix import last_close_before, read_daily_closes

log = logging.getLogger(__name__)

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
