"""The verdict on a net in words, and the number formats of console tables and report."""

import math
from collections.abc import Callable, Mapping

from robust_fin.evaluation.breakdowns import Edge
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.significance import Judgement, PairedDifference, Significance

NONE = "none"  # shown where a value could not be computed
_MODEL_LABELS = {"minus_last_return": "minus the last return", "lightgbm": "LightGBM"}
_COMPARED = ("ridge", "lightgbm")  # baselines that forecast a level; reversal only gives an order
_MIN_DATES = 20  # with fewer, the ends of an interval are themselves uncertain


def model_label(model: str) -> str:
    """Return the name of a model as shown to readers."""
    return _MODEL_LABELS.get(model, model)


def format_number(value: object) -> str:
    """Format an integer with thousands separators, a float with six significant digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def format_percent(value: object) -> str:
    """Format a fraction as signed percentage: +2.125 %."""
    if not isinstance(value, int | float) or math.isnan(value):
        return NONE
    return f"{_round(100 * value, 3):+.3f} %"


def format_percent_interval(interval: Interval, *, signed: bool = True) -> str:
    """Format a fraction and its interval as percentages: +2.125 % [+1.168, +2.798].

    Args:
        interval: of a fraction.
        signed: write a plus sign.
    """
    sign = "+" if signed else ""
    return _with_ends(interval, lambda value: f"{_round(100 * value, 3):{sign}.3f}", unit=" %")


def format_interval(interval: Interval, *, digits: int = 4) -> str:
    """Format a number and its interval: 0.1942 [0.1635, 0.2194].

    Args:
        interval: of a number.
        digits: after the decimal point.
    """
    return _with_ends(interval, lambda value: f"{_round(value, digits):.{digits}f}")


def _round(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # adding 0.0 turns -0.0 into 0.0


def _with_ends(interval: Interval, text: Callable[[float], str], *, unit: str = "") -> str:
    if math.isnan(interval.estimate):
        return NONE
    unknown = math.isnan(interval.low) or math.isnan(interval.high)
    ends = NONE if unknown else f"{text(interval.low)}, {text(interval.high)}"
    return f"{text(interval.estimate)}{unit} [{ends}]"


def verdict(judgement: Judgement | Significance) -> str:
    """State in one or two sentences what a net's forecasts are worth.

    Skill is claimed only if the entire interval of the skill over the constant is above 0. The net
    is called better than a baseline only if the entire interval of their paired difference is.

    Args:
        judgement: of a run, or the figures of a single model if there is nothing to compare with.
    """
    if isinstance(judgement, Significance):
        return " ".join([f"{_claim(judgement)}.", *_caution(judgement)])
    net = judgement.net
    if not has_skill(net):
        return " ".join([f"{_claim(net)}.", *_caution(net)])
    sentence = ", ".join([_claim(net), *_comparisons(judgement.against)])
    sentence += "".join(f"; {text}" for text in _edge(judgement.edge))
    return " ".join([f"{sentence}.", *_reversal(judgement.against), *_caution(net)])


def has_skill(net: Significance) -> bool:
    """Return True if skill may be claimed."""
    return net.dates >= 2 and net.skill.is_above(0)


def _claim(net: Significance) -> str:
    skill = format_percent_interval(net.skill, signed=False)
    rank_ic = f"rank IC {format_interval(net.rank_ic)}"
    if net.dates < 2:
        return f"No skill can be claimed: the test span has {net.dates} trading date"
    if net.skill.is_above(0):
        return f"Skill {skill} over the constant, {rank_ic}"
    if net.rank_ic.is_above(0):
        return (
            f"No skill over the constant: {skill}; the forecasts do order the outcomes, {rank_ic}"
        )
    if math.isnan(net.rank_ic.estimate):
        return f"No skill: {skill} over the constant; the forecast is constant"
    return f"No skill: {skill} over the constant, {rank_ic}"


def _comparisons(against: Mapping[str, PairedDifference]) -> list[str]:
    texts = []
    for name in (name for name in _COMPARED if name in against):
        skill, label = against[name].skill, model_label(name)
        difference = format_percent_interval(skill, signed=False)
        if skill.is_above(0):
            texts.append(f"better than {label} by {difference}")
        else:
            relation = "worse" if skill.is_below(0) else "not better"
            texts.append(f"{relation} than {label} ({difference})")
    return texts


def _edge(edge: Edge) -> list[str]:
    """Compare the edge of a trade with the half-spread, in ticks if the tick size is known."""
    earned, unit, cost = edge.trade_ticks, "tick", edge.half_spread_ticks
    if math.isnan(earned.estimate):
        earned, unit, cost = edge.trade_bp, "bp", math.nan
    if math.isnan(earned.estimate):
        return []
    text = f"the edge is {earned.estimate:.2f} {unit} [{earned.low:.2f}, {earned.high:.2f}]"
    if math.isnan(cost):
        return [text]
    relation = "above" if earned.is_above(cost) else "below" if earned.is_below(cost) else "about"
    return [f"{text}, {relation} a half-spread of {cost:g}"]


def _reversal(against: Mapping[str, PairedDifference]) -> list[str]:
    if "minus_last_return" not in against:
        return []
    difference = against["minus_last_return"].rank_ic
    if math.isnan(difference.estimate) or difference.is_above(0):
        return []
    interval = format_interval(difference)
    return [f"It orders the outcomes no better than minus the last return ({interval})."]


def _caution(net: Significance) -> list[str]:
    if not 2 <= net.dates < _MIN_DATES:
        return []
    return [f"With only {net.dates} trading dates, the intervals themselves are uncertain."]
