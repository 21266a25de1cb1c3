"""The verdict on a net in words, and the number formats of console tables and report."""

import math
from collections.abc import Callable, Mapping, Sequence

from robust_fin.evaluation.breakdowns import Edge
from robust_fin.evaluation.intervals import SHORT_SHARE, Interval
from robust_fin.evaluation.significance import Judgement, PairedDifference, Significance

NONE = "none"  # shown where a value could not be computed
_MODEL_LABELS = {"minus_last_return": "minus the last return", "lightgbm": "LightGBM"}
_COMPARED = ("ridge", "lightgbm")  # baselines that forecast a level; reversal only gives an order
MIN_TEST_DATES = 5  # with fewer, noise is called skill too often; see docs/honesty.md
_MIN_DATES = 20  # with fewer, the ends of an interval are themselves uncertain
_SHOWN_CONTRACTS = 3


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
    """State in a few sentences what a net's forecasts are worth.

    Skill is claimed only if the entire interval of the skill over the constant is above 0, on at
    least `MIN_TEST_DATES` trading dates. The net is called better than a baseline only if the
    entire interval of their paired difference is above 0, and its edge above the cost of a round
    trip only if the entire interval of the edge is.

    Args:
        judgement: of a run, or the figures of a single model if there is nothing to compare with.
    """
    if isinstance(judgement, Significance):
        return " ".join([f"{_claim(judgement)}.", *_caution(judgement)])
    net, edge = judgement.net, judgement.edge
    closing = [*_unknown_costs(edge), *_caution(net), *_accepted(judgement.accepted)]
    sentence, reversal = _claim(net), list[str]()
    if claims_skill(net):
        sentence = ", ".join([sentence, *_comparisons(judgement.against)])
        sentence += "".join(f"; {text}" for text in _edge(edge))
        reversal = _reversal(judgement.against)
    return " ".join([*_leak_warning(judgement), f"{sentence}.", *reversal, *closing])


def headline(judgement: Judgement) -> str:
    """Return the result in two or three words, for the top of the report."""
    if judgement.limits.exceeded_by(judgement.net):
        return "Looks like a leak"
    return "Skill" if claims_skill(judgement.net) else "No skill"


def claims_skill(net: Significance) -> bool:
    """Return True if skill over the constant may be claimed."""
    return _may_claim(net) and net.skill.is_above(0)


def claims_order(net: Significance) -> bool:
    """Return True if it may be claimed that the forecasts order the outcomes."""
    return _may_claim(net) and net.rank_ic.is_above(0)


def _may_claim(net: Significance) -> bool:
    ends = (net.skill.low, net.skill.high, net.rank_ic.low, net.rank_ic.high)
    return net.dates >= MIN_TEST_DATES and not any(map(math.isnan, ends))


def _leak_warning(judgement: Judgement) -> list[str]:
    net, limits = judgement.net, judgement.limits
    if not limits.exceeded_by(net):
        return []
    return [
        f"This looks like a leak: run python -m robust_fin.leakcheck with the settings of this "
        f"run. Bars of a market are not known to give a rank IC above {limits.rank_ic:.2g} or a "
        f"skill above {100 * limits.skill:.2g} %; here they are "
        f"{format_interval(net.rank_ic)} and {format_percent_interval(net.skill, signed=False)}."
    ]


def format_figures(net: Significance) -> str:
    """Format skill and rank IC with their intervals, which by themselves claim nothing."""
    skill, rank_ic = format_percent_interval(net.skill, signed=False), format_interval(net.rank_ic)
    return f"skill {skill} over the constant, rank IC {rank_ic}"


def _claim(net: Significance) -> str:
    skill = format_percent_interval(net.skill, signed=False)
    rank_ic = f"rank IC {format_interval(net.rank_ic)}"
    if net.dates < MIN_TEST_DATES:
        dates = f"{net.dates} trading date{'' if net.dates == 1 else 's'}"
        return (
            f"No skill can be claimed: the test span has {dates}, and {MIN_TEST_DATES} are needed"
        )
    if claims_skill(net):
        return f"Skill {skill} over the constant, {rank_ic}"
    if claims_order(net):
        return (
            f"No skill over the constant: {skill}; the forecasts do order the outcomes, {rank_ic}"
        )
    if math.isnan(net.rank_ic.estimate):
        return f"No skill: {skill} over the constant; the forecast is constant"
    if not _may_claim(net):
        return f"No skill can be claimed without intervals: {skill} over the constant, {rank_ic}"
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
    """Compare the edge of a trade with a round trip, in ticks if the tick size is known."""
    earned, unit, cost = edge.trade_ticks, "tick", edge.round_trip_ticks
    if math.isnan(earned.estimate):
        earned, unit, cost = edge.trade_bp, "bp", math.nan
    if math.isnan(earned.estimate):
        return []
    text = f"the edge is {_with_ends(earned, '{:.2f}'.format, unit=f' {unit}')}"
    if math.isnan(cost):
        return [f"{text} before costs"]
    relation = "above" if earned.is_above(cost) else "not shown to be above"
    relation = "below" if earned.is_below(cost) else relation
    return [f"{text}, {relation} the {cost:.2f} of a round trip (two half-spreads and two fees)"]


def _unknown_costs(edge: Edge) -> list[str]:
    return [] if math.isfinite(edge.round_trip_ticks) else [unknown_costs(edge)]


def unknown_costs(edge: Edge) -> str:
    """Say whose spread and fees are unknown, and how to give them."""
    names = ", ".join(edge.contracts[:_SHOWN_CONTRACTS]) or "these contracts"
    more = " and others" if len(edge.contracts) > _SHOWN_CONTRACTS else ""
    return (
        f"Spread and fees of {names}{more} are not known, so no cost is subtracted: evaluate with "
        "instrument=NAME, or train with instrument.root, .tick, .half_spread_ticks, .multiplier "
        "and .fee."
    )


def _reversal(against: Mapping[str, PairedDifference]) -> list[str]:
    if "minus_last_return" not in against:
        return []
    difference = against["minus_last_return"].rank_ic
    if math.isnan(difference.estimate) or difference.is_above(0):
        return []
    interval = format_interval(difference)
    return [f"It orders the outcomes no better than minus the last return ({interval})."]


def _caution(net: Significance) -> list[str]:
    texts = []
    if net.short_dates:
        dates, verb = ("date", "is") if net.short_dates == 1 else ("dates", "are")
        texts.append(
            f"{net.short_dates} short {dates}, with less than {SHORT_SHARE:.0%} of the usual rows, "
            f"{verb} not counted."
        )
    if MIN_TEST_DATES <= net.dates < _MIN_DATES:
        texts.append(
            f"With only {net.dates} trading dates, the intervals themselves are uncertain."
        )
    return texts


def _accepted(disagreements: Sequence[str]) -> list[str]:
    return [f"Accepted against the checks: {'; '.join(disagreements)}."] if disagreements else []
