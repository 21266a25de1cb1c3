"""The verdict: what the intervals allow one to say, in one or two sentences."""

import math
from collections.abc import Mapping

from robust_fin.evaluation.bootstrap import Interval
from robust_fin.evaluation.cells import spoken
from robust_fin.evaluation.edge import Edge
from robust_fin.evaluation.significance import Comparison, Judgement, Significance

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


def _compared(against: Mapping[str, Comparison]) -> list[str]:
    found = []
    for name in (one for one in _RIVALS if one in against):
        apart, rival = against[name].skill, spoken(name)
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


def _beside_reversal(against: Mapping[str, Comparison]) -> list[str]:
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
