"""Form of the timestamps of a bar table, from its first rows.

| stamps | taken as found |
|---|---|
| 1709506800, 1709506800000, ... (also .0) | s, ms, us or ns since 1970, UTC |
| 2024.03.04 15:01, 03/28/2024 3:01 PM, 04-Mar-2024 15:01 | the pattern, if it is the only one |
| 03/04/2024 15:01, and no row that tells day from month | error that names both patterns |
| 2024-03-04 15:01 EST, ... US/Eastern, ... GMT-0500 | that zone, the same for all rows |
| a column named Gmt time or UTC time | UTC |
| all others | ISO 8601, see `robust_fin.market.parsing` |
"""

import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pandas as pd

from robust_fin.errors import SchemaError
from robust_fin.market.parsing import (
    ISO,
    check_time_format,
    format_regex,
    match_cells,
    parse_plain_iso,
)
from robust_fin.market.schema import excerpt

# the years 1990 to 2065 in seconds; in another unit they are another number of digits
_FIRST_SECOND, _LAST_SECOND = 631_152_000, 3_029_529_600
_EXACT = 2**53  # largest float64 below which every whole number has its own
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_WHOLE = r"^\d{9,20}(?:\.0*)?$"
_ZONES = {
    "America/New_York": {"EST": "-0500", "EDT": "-0400"},
    "America/Chicago": {"CST": "-0600", "CDT": "-0500"},
    "America/Denver": {"MST": "-0700", "MDT": "-0600"},
    "America/Los_Angeles": {"PST": "-0800", "PDT": "-0700"},
    "Europe/London": {"GMT": "+0000", "BST": "+0100"},
    "Europe/Berlin": {"CET": "+0100", "CEST": "+0200"},
    "Asia/Tokyo": {"JST": "+0900"},
    "UTC": {"UTC": "+0000"},
}
_ELSEWHERE = {"CST": "America/Chicago or Asia/Shanghai"}  # abbreviations of several zones
_SUFFIX = re.compile(
    r"^(?P<stamp>.*\d(?: ?[AaPp][Mm])?) ?"
    r"(?:(?:GMT|UTC)(?P<offset>[+-]\d{2}:?\d{2})|(?P<zone>[A-Z][A-Za-z_]+/[A-Za-z_/]+)"
    r"|(?P<letters>[A-Z]{3,4}))$"
)
_PARTS = re.compile(
    r"^(?P<date>\d{1,4}(?P<mark>[./-])\d{1,2}[./-]\d{1,4}|\d{8}|\d{1,2}[- ][A-Za-z]{3}[- ]\d{4}"
    r"|[A-Za-z]{3} \d{1,2},? \d{4})"
    r"(?:(?P<gap>T|,? )(?P<clock>\d{1,2}:\d{2}(?::\d{2}(?P<fraction>\.\d+)?)?|\d{4}|\d{6})"
    r"(?P<half> ?[AaPp][Mm])?)?$"
)


@dataclass(frozen=True, slots=True)
class StampForm:
    """Form of timestamps, and how to bring them into a form that `to_utc` reads.

    Attributes:
        pattern: strptime pattern; None for ISO 8601 and for numbers.
        unit: "s", "ms", "us" or "ns" since 1970; None for text.
        zone: time zone that the stamps or their header name; None if they name none.
        offsets: text at the end of a stamp -> offset such as -0500 that replaces it; "" removes it.
        squeeze: several spaces count as one.
        digits: whole numbers are read as text by the pattern.
    """

    pattern: str | None = None
    unit: str | None = None
    zone: str | None = None
    offsets: Mapping[str, str] = field(default_factory=dict)
    squeeze: bool = False
    digits: bool = False

    @property
    def name(self) -> str:
        """Name of the form for display."""
        if self.unit is not None:
            return f"epoch {self.unit}"
        return self.pattern or "ISO 8601"

    @property
    def changes_text(self) -> bool:
        """True unless the stamps are read as ISO 8601 as they are."""
        return self.pattern is not None or self.unit is not None or bool(self.offsets)

    @property
    def named_zones(self) -> str:
        """Abbreviations and offsets at the end of the stamps, for display."""
        return ", ".join(name for name, offset in self.offsets.items() if offset)

    def apply(self, stamps: pd.Series) -> pd.Series:
        """Return the stamps as datetimes, or as text that the pattern or ISO 8601 reads.

        Cells that do not have the form stay as they are, so that `to_utc` names them.
        """
        if self.digits:
            return stamps.astype("str")
        if self.unit is not None:
            return _from_epoch(stamps, self.unit)
        if not self.offsets and not self.squeeze:
            return stamps
        text = stamps.astype("str").str.strip()
        if self.squeeze:
            text = text.str.replace(r"\s+", " ", regex=True)
        for suffix, offset in self.offsets.items():
            ends = text.str.endswith(suffix).fillna(value=False)
            text = text.mask(ends, text.str.slice(stop=-len(suffix)).str.rstrip() + offset)
        return text


def stamp_form(
    head: pd.Series, *, time_format: str | None, timezone: str | None, header: str, origin: str
) -> StampForm:
    """Infer the form of timestamps.

    Args:
        head: the first stamps, of any type.
        time_format: source.time_format, which overrides the inference.
        timezone: source.timezone.
        header: the column, or both columns, of the stamps.
        origin: file name, for the message.

    Raises:
        SchemaError: the stamps can be read in two ways, or in none that is certain.
        ConfigError: `time_format` is invalid.
    """
    zone = "UTC" if re.search(r"\b(gmt|utc)\b", header.lower().replace("_", " ")) else None
    if time_format is not None:
        check_time_format(time_format)
        return StampForm(time_format, zone=zone, digits=pd.api.types.is_integer_dtype(head))
    if pd.api.types.is_datetime64_any_dtype(head) or pd.api.types.is_bool_dtype(head):
        return StampForm(zone=zone)
    if pd.api.types.is_numeric_dtype(head):
        return StampForm(unit=_epoch_unit(head), zone=zone)
    text = head.astype("str")
    if parse_plain_iso(text) is not None:
        return StampForm(zone=zone)
    text = text.str.strip()[head.notna() & (text.str.strip() != "")]
    if text.empty:
        return StampForm(zone=zone)
    if match_cells(text, _WHOLE).all():
        return StampForm(unit=_epoch_unit(_whole(text)), zone=zone)
    squeeze = bool(text.str.contains(r"\s\s", regex=True).any())
    text = text.str.replace(r"\s+", " ", regex=True) if squeeze else text
    return _text_form(text, timezone=timezone, zone=zone, squeeze=squeeze, origin=origin)


def _text_form(
    text: pd.Series, *, timezone: str | None, zone: str | None, squeeze: bool, origin: str
) -> StampForm:
    offsets: Mapping[str, str] = {}
    if not match_cells(text, ISO).all():
        offsets, named = _suffixes(text, timezone=timezone, origin=origin)
        zone = named or zone
    form = StampForm(zone=zone, offsets=offsets, squeeze=squeeze)
    bare = form.apply(text)
    if match_cells(bare, ISO).all():
        return form
    zoned = any(offsets.values())
    fitting = [p for p in _patterns(str(bare.iloc[0]), zoned=zoned) if _reads(bare, p)]
    if len(fitting) > 1:
        first, second = (f"source.time_format='{pattern}'" for pattern in fitting[:2])
        raise SchemaError(
            f"{origin}: the first {len(text)} timestamps do not tell day from month (first: "
            f"'{excerpt(text.iloc[0])}'). Set {first} or {second}"
        )
    pattern = fitting[0] if fitting else None
    return StampForm(pattern, zone=zone, offsets=offsets, squeeze=squeeze)


def _epoch_unit(values: pd.Series) -> str | None:
    """Return the unit in which all values lie between 1990 and 2065; None if there is none."""
    numbers = values.dropna().astype("float64")
    if numbers.empty or (numbers % 1 != 0).any():
        return None
    if pd.api.types.is_float_dtype(values) and numbers.max() > _EXACT:
        return None
    for unit, factor in _UNITS.items():
        if numbers.min() >= _FIRST_SECOND * factor and numbers.max() <= _LAST_SECOND * factor:
            return unit
    return None


def _from_epoch(stamps: pd.Series, unit: str) -> pd.Series:
    """Convert numbers since 1970; returns them unchanged if any has another form or unit."""
    if pd.api.types.is_numeric_dtype(stamps):
        values = stamps
        missing = values.isna()
    else:
        text = stamps.astype("str").str.strip()
        if not match_cells(text, _WHOLE).all():
            return stamps
        values, missing = _whole(text), pd.Series(data=False, index=stamps.index)
    if missing.any() or _epoch_unit(values) != unit:
        return stamps
    ticks = values.astype("int64").to_numpy().astype(f"M8[{unit}]")
    return pd.Series(ticks, index=stamps.index).dt.tz_localize("UTC")


def _whole(text: pd.Series) -> pd.Series:
    """Convert whole numbers, perhaps written with a fraction of zeros, to integers."""
    return text.str.split(".").str[0].map(int).astype("uint64")


def _suffixes(
    text: pd.Series, *, timezone: str | None, origin: str
) -> tuple[dict[str, str], str | None]:
    """Return the replacement of each suffix, and the zone that the suffixes name."""
    parts = text.str.extract(_SUFFIX.pattern)
    if parts["stamp"].isna().any():
        return {}, None
    zones = sorted(parts["zone"].dropna().unique())
    letters = sorted(parts["letters"].dropna().unique())
    offsets = parts["offset"].dropna().unique()
    if len(zones) == 1 and not letters and parts["zone"].notna().all():
        return ({zones[0]: ""}, zones[0]) if zones[0] in _known_zones() else ({}, None)
    if zones or set(letters) & {"AM", "PM"}:
        return {}, None
    found = {f"{p}{o}": o for o in offsets for p in ("GMT", "UTC")}
    if letters:
        zone = _zone_of(tuple(letters), timezone, origin)
        found |= {} if zone is None else {name: _ZONES[zone][name] for name in _ZONES[zone]}
    return found, None


@cache
def _known_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def _zone_of(letters: tuple[str, ...], timezone: str | None, origin: str) -> str | None:
    """Return the zone whose abbreviations are given.

    Raises:
        SchemaError: they are of several zones, or of none that is known.
    """
    zone = next((name for name, known in _ZONES.items() if set(letters) <= set(known)), None)
    if zone is None:
        raise SchemaError(
            f"{origin}: the timestamps end in {', '.join(letters)}, which are not abbreviations of "
            "one known time zone; write the timestamps in UTC"
        )
    other = _ELSEWHERE.get(letters[0]) if len(letters) == 1 else None
    if other is not None and timezone is None:
        raise SchemaError(
            f"{origin}: the timestamps end in {letters[0]}, which may mean {other}; set "
            f"source.timezone={other.split()[0]}, or source.timezone={other.split()[-1]}"
        )
    if other is not None and timezone != zone:
        return None
    return zone


def _patterns(stamp: str, *, zoned: bool) -> list[str]:
    """Return the strptime patterns that may read a stamp."""
    parts = _PARTS.match(stamp.removesuffix(stamp[-5:]).rstrip() if zoned else stamp)
    if parts is None:
        return []
    clock = _clock_pattern(parts)
    ending = "%z" if zoned else ""
    return [f"{date}{clock}{ending}" for date in _date_patterns(parts["date"], parts["mark"])]


def _date_patterns(date: str, mark: str | None) -> list[str]:
    if mark is not None:
        m = mark
        if len(date.split(m)[0]) == 4:
            return [f"%Y{m}%m{m}%d"]
        return [f"%m{m}%d{m}%Y", f"%d{m}%m{m}%Y"] if len(date.split(m)[-1]) == 4 else []
    if date.isdigit():
        return ["%Y%m%d"]
    if date[0].isdigit():
        return [f"%d{date[-9]}%b{date[-5]}%Y"]
    return [f"%b %d{',' if ',' in date else ''} %Y"]


def _clock_pattern(parts: re.Match[str]) -> str:
    clock, half = parts["clock"], parts["half"]
    if clock is None:
        return ""
    hour = "%I" if half else "%H"
    if ":" in clock:
        seconds = ":%S" if clock.count(":") == 2 else ""
        text = f"{hour}:%M{seconds}{'.%f' if parts['fraction'] else ''}"
    else:
        text = f"{hour}%M{'%S' if len(clock) == 6 else ''}"
    spaced = " " if half and half.startswith(" ") else ""
    return f"{parts['gap']}{text}{f'{spaced}%p' if half else ''}"


def _reads(text: pd.Series, pattern: str) -> bool:
    if not match_cells(text, format_regex(pattern)).all():
        return False
    parsed = pd.to_datetime(text, errors="coerce", format=pattern, utc="%z" in pattern)
    return bool(np.all(parsed.notna()))
