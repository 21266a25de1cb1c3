"""Figures as a reader meets them: names spoken, percentages, intervals in brackets."""

import math
from collections.abc import Callable

from robust_fin.evaluation.bootstrap import Interval

NONE = "none"  # what could not be computed, or what there is none of
_SPOKEN = {
    "net": "net",
    "constant": "constant",
    "minus_last_return": "minus the last return",
    "ridge": "ridge",
    "lightgbm": "LightGBM",
}


def spoken(model: str) -> str:
    """The name of a model in words."""
    return _SPOKEN.get(model, model)


def percent(found: Interval) -> str:
    """A share with its interval: +2.125 % [+1.168, +2.798]."""
    return _with_ends(found, lambda value: f"{_whole(100 * value, 3):+.3f}", unit=" %")


def plain(found: Interval, *, digits: int = 4) -> str:
    """A number with its interval: 0.1942 [0.1635, 0.2194].

    Args:
        found: to be set.
        digits: after the point.
    """
    return _with_ends(found, lambda value: f"{_whole(value, digits):.{digits}f}")


def number(value: object) -> str:
    """A number as metrics.json has it: a whole one with commas, another with six digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def share(value: object) -> str:
    """A share in percent, with its sign: +2.125 %."""
    if not isinstance(value, int | float) or math.isnan(value):
        return NONE
    return f"{_whole(100 * value, 3):+.3f} %"


def _whole(value: float, digits: int) -> float:
    """Rounded, and without the sign of a zero."""
    return round(value, digits) + 0.0


def _with_ends(found: Interval, text: Callable[[float], str], *, unit: str = "") -> str:
    if math.isnan(found.estimate):
        return NONE
    if math.isnan(found.low) or math.isnan(found.high):
        return f"{text(found.estimate)}{unit} [none]"
    return f"{text(found.estimate)}{unit} [{text(found.low)}, {text(found.high)}]"
