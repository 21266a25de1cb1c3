"""The verdict in words, and figures formatted for readers."""

import math
from collections.abc import Callable, Mapping

from robust_fin.evaluation.breakdowns import Edge
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.significance import Judgement, PairedDifference, Significance

NONE = "none"  # what could not be computed, or what there is none of
_SPOKEN = {
    "net": "net",
    "constant": "constant",
    "minus_last_return": "minus the last return",
    "ridge": "ridge",
    "lightgbm": "LightGBM",
}


def model_label(model: str) -> str:
    """The name of a model in words."""
    return _SPOKEN.get(model, model)


def format_percent_interval(found: Interval) -> str:
    """A share with its interval: +2.125 % [+1.168, +2.798]."""
    return _with_ends(found, lambda value: f"{_whole(100 * value, 3):+.3f}", unit=" %")


def format_interval(found: Interval, *, digits: int = 4) -> str:
    """A number with its interval: 0.1942 [0.1635, 0.2194].

    Args:
        found: to be set.
        digits: after the point.
    """
    return _with_ends(found, lambda value: f"{_whole(value, digits):.{digits}f}")


def format_number(value: object) -> str:
    """A number as metrics.json has it: a whole one with commas, another with six digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def format_percent(value: object) -> str:
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


_RIVALS = ("ridge", "lightgbm")  # models that forecast a level; reversal has only an order
_FEW_DATES = 20  # below, the ends of an interval are themselves not known well


def verdict(found: Judgement | Significance) -> str:
    """One or two sentences on what a net's forecasts are worth.

    Skill is claimed only where the whole interval of the skill over the constant is above 0;
    better than a baseline only where the whole interval of the paired difference is.

    Args:
        found: of a run; or the figures of one model, when there is nothing to compare it with.
    """
    if isinstance(found, Significance):
        return " ".join([f"{_claim(found)}.", *_caution(found)])
    if not has_skill(found.net):
        return " ".join([f"{_claim(found.net)}.", *_caution(found.net)])
    parts = [_claim(found.net), *_compared(found.against)]
    worth = _worth(found.edge)
    sentence = ", ".join(parts) + (f"; {worth}" if worth else "") + "."
    return " ".join([sentence, *_beside_reversal(found.against), *_caution(found.net)])


def has_skill(found: Significance) -> bool:
    """Whether skill may be claimed."""
    return found.dates >= 2 and found.skill.is_above(0)


def _claim(found: Significance) -> str:
    skill, ic = _percent(found.skill), f"rank IC {_plain(found.rank_ic)}"
    if found.dates < 2:
        return f"No skill can be claimed: the test span has {found.dates} trading date"
    if found.skill.is_above(0):
        return f"Skill {skill} over the constant, {ic}"
    if found.rank_ic.is_above(0):
        return f"No skill over the constant: {skill}; the forecasts do order the outcomes, {ic}"
    if math.isnan(found.rank_ic.estimate):
        return f"No skill: {skill} over the constant; the forecast is constant"
    return f"No skill: {skill} over the constant, {ic}"


def _compared(against: Mapping[str, PairedDifference]) -> list[str]:
    found = []
    for name in (one for one in _RIVALS if one in against):
        apart, rival = against[name].skill, model_label(name)
        if apart.is_above(0):
            found.append(f"better than {rival} by {_percent(apart)}")
        elif apart.is_below(0):
            found.append(f"worse than {rival} ({_percent(apart)})")
        else:
            found.append(f"not better than {rival} ({_percent(apart)})")
    return found


def _worth(edge: Edge) -> str:
    """The edge of a trade beside the half-spread, in ticks where a tick is known."""
    earned, unit, cost = edge.trade_ticks, "tick", edge.half_spread_ticks
    if math.isnan(earned.estimate):
        earned, unit, cost = edge.trade_bp, "bp", math.nan
    if math.isnan(earned.estimate):
        return ""
    said = f"the edge is {earned.estimate:.2f} {unit} [{earned.low:.2f}, {earned.high:.2f}]"
    if math.isnan(cost):
        return said
    side = "above" if earned.is_above(cost) else "below" if earned.is_below(cost) else "about"
    return f"{said}, {side} a half-spread of {cost:g}"


def _beside_reversal(against: Mapping[str, PairedDifference]) -> list[str]:
    apart = against["minus_last_return"].rank_ic if "minus_last_return" in against else None
    if apart is None or math.isnan(apart.estimate) or apart.is_above(0):
        return []
    return [f"It orders the outcomes no better than minus the last return ({_plain(apart)})."]


def _caution(found: Significance) -> list[str]:
    few = 2 <= found.dates < _FEW_DATES
    return [f"Intervals over only {found.dates} trading dates are themselves unsure."] * few


def _percent(found: Interval) -> str:
    parts = (f"{100 * one:.3f}" for one in (found.estimate, found.low, found.high))
    estimate, low, high = parts
    return f"{estimate} % [{low}, {high}]"


def _plain(found: Interval) -> str:
    return f"{found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}]"
