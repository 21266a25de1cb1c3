"""Comparison of a bar table with its settings, and the option to type where they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robust_fin.errors import SchemaError
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.intake.clock import (
    MAX_OUTSIDE,
    clock_shifts,
    fit_calendar,
    fit_zones,
    fitting_calendars,
    read_in_zone,
    stamp_side,
)
from robust_fin.market.intake.continuity import (
    NO_TICK,
    Grouped,
    ScaleJump,
    bar_length,
    format_length,
    holes,
    longest,
    scale_jumps,
    silences,
    tick_size,
    zero_volume_share,
)
from robust_fin.market.intake.products import UNKNOWN, parse_code, products
from robust_fin.market.schema import bar_starts

CHECKS = ("bar", "zone", "clock", "stamp", "calendar", "products", "holes", "scale", "tick")
AGREES, DIFFERS, ACCEPTED = "agrees", "differs", "accepted"
WARNING, NOT_KNOWN, SHOWN = "warning", "unknown", ""
_COARSE_TICK = 20  # multiple of the instrument's tick from which the prices have another scale
_NAMED = 4  # dates, zones or codes listed in a row


@dataclass(frozen=True, slots=True)
class Expected:
    """Settings with which a bar table is compared.

    Attributes:
        bar: length of a bar.
        zone: zone in which the stamps were read; None if they carry their own.
        stamp: "start" or "end": the end of the bar that a stamp marks.
        calendar: of the market.
        root: product whose tick is known, such as ES; None for no instrument.
        tick: smallest price step of that product; None if unknown.
        product: product picked by source.product; None for no choice.
    """

    bar: pd.Timedelta
    zone: str | None
    stamp: str
    calendar: TradingCalendar
    root: str | None = None
    tick: float | None = None
    product: str | None = None


class Finding(NamedTuple):
    """One row of the comparison.

    Attributes:
        check: name in `source.accept`.
        subject: what is compared.
        configured: the setting.
        found: what the file says.
        agreement: agrees, differs, accepted, warning, unknown, or empty for a plain fact.
        option: what to type; empty if there is nothing to change.
    """

    check: str
    subject: str
    configured: str
    found: str
    agreement: str
    option: str = ""

    def __str__(self) -> str:
        """Describe the disagreement in one line."""
        return f"{self.subject}: {self.found}; configured: {self.configured}"


@dataclass(frozen=True, slots=True)
class BarFindings:
    """Result of all checks of a bar table.

    Attributes:
        rows: the comparison, in the order of the table.
        bar: inferred length of a bar; None if unknown.
        product: product of all contracts; None if unknown.
    """

    rows: tuple[Finding, ...] = ()
    bar: pd.Timedelta | None = None
    product: str | None = None

    def with_accepted(self, accept: Sequence[str]) -> "BarFindings":
        """Return the findings with the disagreements of some checks marked as accepted."""
        rows = tuple(
            row._replace(agreement=ACCEPTED)
            if row.agreement == DIFFERS and row.check in accept
            else row
            for row in self.rows
        )
        return BarFindings(rows, self.bar, self.product)

    def select(self, agreement: str) -> list[Finding]:
        """Return the rows with an agreement."""
        return [row for row in self.rows if row.agreement == agreement]

    @property
    def accepted(self) -> list[str]:
        """Accepted disagreements, each in a few words."""
        return [str(row) for row in self.select(ACCEPTED)]

    def check(self, origin: str) -> None:
        """Raise SchemaError if a disagreement is not accepted; name the option for each.

        Args:
            origin: file name, for the message.
        """
        stops = self.select(DIFFERS)
        if not stops:
            return
        lines = [f"  {row}. Write {row.option}" for row in stops]
        names = ",".join(dict.fromkeys(row.check for row in stops))
        raise SchemaError(
            "\n".join(
                [
                    f"{origin} contradicts its settings:",
                    *lines,
                    "python -m robust_fin.inspect with the same options shows all checks; "
                    f"source.accept=[{names}] goes on in spite of them",
                ]
            )
        )

    def facts(self) -> dict[str, Any]:
        """Return what a run records: bar length, product, accepted disagreements, warnings."""
        return {
            "bar": None if self.bar is None else format_length(self.bar),
            "product": self.product,
            "accepted": self.accepted,
            "warnings": [f"{row.subject}: {row.found}" for row in self.select(WARNING)],
        }


def examine(table: pd.DataFrame, expected: Expected) -> BarFindings:
    """Compare a bar table with its settings.

    Args:
        table: checked bars, sorted by time, with times in UTC and contracts as categories.
        expected: the settings.
    """
    codes = [str(code) for code in table["contract"].cat.categories]
    contract = table["contract"].cat.codes.to_numpy().astype(np.int64)
    start, close = bar_starts(table).view(np.int64), table["close"].to_numpy()
    grouped = Grouped.by_contract(start, contract)
    length = bar_length(grouped)
    rows = [_bar(expected, length)]
    zone, start = _zone(expected, start)
    rows += [zone, *_sessions(expected, start, close=close, length=length or expected.bar)]
    rows += [_products(expected, codes), _silence(grouped, contract, codes)]
    every = list(products(codes))
    product = every[0] if len(every) == 1 else None
    jumps = scale_jumps(close, grouped, bar=length or expected.bar, across=product is not None)
    rows += [_scale(table, jumps)]
    rows += [_tick(expected, close, product=product), _volume(table["volume"].to_numpy())]
    return BarFindings(tuple(rows), length, product)


def _bar(expected: Expected, length: pd.Timedelta | None) -> Finding:
    agreement = NOT_KNOWN if length is None else AGREES if length == expected.bar else DIFFERS
    configured, found = (format_length(each) for each in (expected.bar, length))
    option = f"source.bar={found}" if agreement == DIFFERS else ""
    return Finding("bar", "bar length", configured, found, agreement, option)


def _zone(expected: Expected, start: np.ndarray) -> tuple[Finding, np.ndarray]:
    """Return the row of the time zone, and the starts of the bars in the zone that fits."""
    zone = expected.zone or "UTC"
    fit = fit_zones(expected.calendar, start, configured=zone)
    configured = zone if expected.zone else "as stamped"
    row = Finding("zone", "time zone", configured, "unknown", NOT_KNOWN)
    if np.isnan(fit.configured):
        return row, start
    if not fit.better:
        equal = f", equal to {_list(fit.equal)}" if fit.equal else ""
        fits = fit.configured <= MAX_OUTSIDE
        found = (
            f"{'fits' if fits else 'no zone fits these sessions'}, {_percent(fit.configured)} of "
            f"bars outside{' the sessions' if fits else ''}{equal}"
        )
        return row._replace(found=found, agreement=AGREES if fits else NOT_KNOWN), start
    found = (
        f"{_list(fit.better)} leaves {_percent(fit.share)} of bars outside the sessions, "
        f"{zone} {_percent(fit.configured)}"
    )
    option = f"source.timezone={fit.better[0]}"
    if expected.zone is None:
        option = f"the times of {fit.better[0]} without an offset, and {option}"
    moved = read_in_zone(start, configured=zone, zone=fit.better[0])
    return row._replace(found=found, agreement=DIFFERS, option=option), np.sort(moved)


def _sessions(
    expected: Expected, start: np.ndarray, *, close: np.ndarray, length: pd.Timedelta
) -> list[Finding]:
    """Return the rows of clock shifts, stamp side, calendar and holes."""
    calendar = expected.calendar
    fit = fit_calendar(calendar, start)
    row = Finding("calendar", "calendar", calendar.name, "unknown", NOT_KNOWN)
    if not np.isnan(fit.share):
        row = row._replace(found=f"{_percent(fit.share)} of bars outside", agreement=AGREES)
    if fit.closed:
        found = f"{row.found}; a full day traded on {_list(fit.closed)}, which it closes"
        row = row._replace(found=found, agreement=WARNING)
    if fit.share > MAX_OUTSIDE:
        fits = list(fitting_calendars(start))
        found = f"{_percent(fit.share)} of bars outside; {', '.join(fits) or 'no common one'} fits"
        option = f"source.calendar={fits[0]}" if fits else "source.calendar=24/7"
        row = row._replace(found=found, agreement=DIFFERS, option=option)
    shifts = clock_shifts(calendar, start) if row.agreement != DIFFERS or fit.share < 0.1 else []
    clock = Finding("clock", "clock shifts", "none", "none", AGREES)
    if np.isnan(fit.share):
        clock = clock._replace(found="unknown", agreement=NOT_KNOWN)
    if shifts:
        option = "the times in UTC, or source.accept=[clock]"
        clock = clock._replace(found=_format_shifts(shifts), agreement=DIFFERS, option=option)
        row = row._replace(agreement=WARNING, option="") if row.agreement == DIFFERS else row
    return [clock, _stamp(expected, start, length=length), row, _holes(calendar, start, close)]


def _format_shifts(shifts: Sequence[tuple[pd.Timestamp, int]]) -> str:
    """Format the weeks in which the clock of a file is shifted."""
    first, hours = shifts[0]
    weeks = "week" if len(shifts) == 1 else "weeks"
    return f"{len(shifts)} {weeks} off by {-hours:+d} h, first from {first:%Y-%m-%d}"


def _stamp(expected: Expected, start: np.ndarray, *, length: pd.Timedelta) -> Finding:
    late = expected.bar.value if expected.stamp == "end" else 0
    side = stamp_side(expected.calendar, start + late, bar=length)
    agreement = NOT_KNOWN if side is None else AGREES if side == expected.stamp else DIFFERS
    option = f"source.stamp={side}" if agreement == DIFFERS else ""
    return Finding("stamp", "stamp side", expected.stamp, side or "unknown", agreement, option)


def _holes(calendar: TradingCalendar, start: np.ndarray, close: np.ndarray) -> Finding:
    found = holes(calendar, start, close)
    text = longest(found) if found else "none"
    return Finding("holes", "holes", "none", text, WARNING if found else AGREES)


def _products(expected: Expected, codes: Sequence[str]) -> Finding:
    by_product = products(codes)
    odd = [code for code in codes if parse_code(code).kind == UNKNOWN]
    configured = expected.product or "one product"
    found = "; ".join(_product_line(name, group) for name, group in by_product.items())
    if odd:
        found = "; ".join(filter(None, [found, f"no known form: {_list(odd)}"]))
    row = Finding("products", "product", configured, found, AGREES)
    if len(by_product) > 1:
        option = f"source.product={next(iter(by_product))}"
        return row._replace(agreement=DIFFERS, option=option)
    if odd:
        return row._replace(agreement=WARNING if by_product else NOT_KNOWN)
    return row


def _product_line(name: str, group: Sequence[str]) -> str:
    return name if list(group) == [name] else f"{name} ({_list(group)})"


def _silence(grouped: Grouped, contract: np.ndarray, codes: Sequence[str]) -> Finding:
    found = silences(grouped, contract)
    row = Finding("holes", "silent contracts", "none", "none", AGREES)
    if not found:
        return row
    first = found[0]
    text = (
        f"{codes[first.contract]} is silent from {first.before:%Y-%m-%d} to "
        f"{first.after:%Y-%m-%d}, longer than it traded"
    )
    option = "another code for the later bars, or source.accept=[holes]"
    return row._replace(found=text, agreement=DIFFERS, option=option)


def _scale(table: pd.DataFrame, found: Sequence[ScaleJump]) -> Finding:
    row = Finding("scale", "price scale", "constant", "constant", AGREES)
    if not found:
        return row
    first = table["time"].iloc[found[0].row]
    count = "1 jump" if len(found) == 1 else f"{len(found)} jumps, the first"
    text = f"{count} by a factor of {found[0].factor:.4g} at {first:%Y-%m-%d %H:%M} UTC"
    option = "prices of one scale into the file, or source.accept=[scale]"
    return row._replace(found=text, agreement=DIFFERS, option=option)


def _tick(expected: Expected, close: np.ndarray, *, product: str | None) -> Finding:
    tick = tick_size(close)
    known = expected.tick is not None and product is not None and product == expected.root
    configured = f"{expected.tick:g} ({expected.root})" if known else "not known"
    found = "unknown" if tick is None else "no usual grid" if tick == NO_TICK else f"{tick:g}"
    row = Finding("tick", "tick", configured, found, NOT_KNOWN if tick is None else SHOWN)
    if tick is None or not known or expected.tick is None:
        return row
    ratio = tick / expected.tick
    if tick != NO_TICK and 1 <= round(ratio) < _COARSE_TICK and abs(ratio - round(ratio)) < 1e-6:
        return row._replace(agreement=AGREES)
    option = f"instrument.tick={tick:g}" if tick != NO_TICK else "source.accept=[tick]"
    return row._replace(agreement=DIFFERS, option=option)


def _volume(volume: np.ndarray) -> Finding:
    share = zero_volume_share(volume)
    agreement = WARNING if share == 1.0 else SHOWN
    text = "0 in every bar" if share == 1.0 else f"0 in {_percent(share)} of bars"
    return Finding("volume", "volume", "", text, agreement)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _list(names: Sequence[str]) -> str:
    text = ", ".join(names[:_NAMED])
    return text if len(names) <= _NAMED else f"{text} and {len(names) - _NAMED} more"
