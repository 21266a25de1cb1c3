"""What metrics.json says of a judgement: name -> number."""

from robust_fin.evaluation.bootstrap import Interval
from robust_fin.evaluation.edge import Edge
from robust_fin.evaluation.significance import Judgement


def judged_figures(found: Judgement) -> dict[str, float]:
    """Intervals of the net, paired differences to each baseline, calibration and edge.

    Returns:
        test/NAME with test/NAME_low and test/NAME_high, the ends of the 95 % interval;
        against/BASELINE/NAME, the net less the baseline, likewise; edge/NAME.
    """
    figures = {
        "test/tie_share": found.net.tie_share,
        "test/dates": found.net.dates,
        "test/block_dates": found.net.block,
        "test/calibration_error": found.calibration.error,
    }
    for name, interval in found.net.intervals().items():
        figures |= interval_figures(f"test/{name}", interval)
    for name, one in found.against.items():
        figures |= interval_figures(f"against/{name}/skill", one.skill)
        figures |= interval_figures(f"against/{name}/rank_ic", one.rank_ic)
    return figures | edge_figures(found.edge)


def edge_figures(found: Edge) -> dict[str, float]:
    """What the first and the last decile earn, and the cost beside it."""
    figures: dict[str, float] = {}
    for unit in ("bp", "ticks"):
        for side in ("top", "bottom", "trade"):
            figures |= interval_figures(f"edge/{side}_{unit}", getattr(found, f"{side}_{unit}"))
    return figures | {
        "edge/half_spread_ticks": found.half_spread_ticks,
        "edge/half_spread_bp": found.half_spread_bp,
        "edge/break_even_ticks": found.break_even_ticks,
        "edge/trades": found.trades,
    }


def interval_figures(name: str, interval: Interval) -> dict[str, float]:
    """An estimate and the ends of its 95 % interval."""
    ends = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: interval.estimate} | ends
