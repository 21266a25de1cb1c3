"""What a report says of the forecasts: models side by side, groups, calibration, time, edge."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from robust_fin.evaluation.calibration import Calibration
from robust_fin.evaluation.cells import number, percent, plain, share, spoken
from robust_fin.evaluation.edge import Edge
from robust_fin.evaluation.groups import LEAST_DATES, Group, by_hour, by_month
from robust_fin.evaluation.markup import PlainTable
from robust_fin.evaluation.pictures import Picture
from robust_fin.evaluation.plots import draw_calibration, draw_groups, draw_path
from robust_fin.evaluation.section import Section
from robust_fin.evaluation.significance import CONSTANT, DRAWS, NET, Judgement
from robust_fin.evaluation.skill_path import SkillPath, skill_path

Models = Mapping[str, pd.DataFrame]
_SPAN_ROWS = ("loss", "loss_trivial", "skill", "skill_squared", "mae", "mae_trivial", "rank_ic")
_OFF_THE_CHART = 5.0  # times as far from 0 as the net


def models_section(found: Judgement, metrics: Mapping[str, Any]) -> Section:
    """The net beside its baselines.

    Args:
        found: of the run.
        metrics: as metrics.json has them.
    """
    every = {NET: found.net, **found.baselines}
    rows = [
        [
            spoken(name),
            percent(one.skill),
            plain(one.rank_ic),
            plain(one.daily_ic),
            plain(one.icir, digits=3),
            plain(one.hit_rate),
        ]
        for name, one in every.items()
    ]
    columns = ("model", "skill over the constant", "rank IC", "daily IC", "ICIR", "hit rate")
    caption = f"Test span, {found.net.dates:,} trading dates: estimates with 95 % intervals"
    less = [
        [f"net less {spoken(name)}", percent(one.skill), plain(one.rank_ic)]
        for name, one in found.against.items()
    ]
    paired = PlainTable(
        "Paired differences on the same rows and dates, with 95 % intervals",
        ("", "skill", "rank IC"),
        less,
    )
    words = (
        "Skill is the share of the constant's Huber loss that is saved; rank IC is the rank "
        "correlation of forecast and outcome over all rows, daily IC its mean within a date, ICIR "
        "that mean over its standard deviation.",
        f"Intervals are of a stationary bootstrap of whole trading dates, in blocks of "
        f"{found.net.block:.1f} dates on average. {found.net.tie_share:.1%} of rows have no "
        "direction and count as half a hit. A constant ranks nothing within a fold.",
    )
    return Section(
        "models",
        "The net beside its baselines",
        words,
        (PlainTable(caption, columns, rows), paired, spans_table(metrics)),
    )


def spans_table(metrics: Mapping[str, Any]) -> PlainTable:
    """Losses of the spans, as metrics.json has them."""
    known = (name for name, value in metrics.items() if value is not None)
    baselines = list(dict.fromkeys(k.split("/")[1] for k in known if k.startswith("baseline/")))
    prefixes = ["val", "test", *(f"baseline/{name}" for name in baselines)]
    rows = []
    for name in _SPAN_ROWS:
        set_as = share if name.startswith("skill") else number
        rows.append([name, *(set_as(metrics.get(f"{prefix}/{name}")) for prefix in prefixes)])
    columns = ["", "net, val", "net, test", *(f"{spoken(one)}, test" for one in baselines)]
    return PlainTable("Losses, span by span (choices saw val alone)", columns, rows)


def group_sections(models: Models, found: Judgement, *, draws: int = DRAWS) -> list[Section]:
    """Rank IC by month and by hour.

    Args:
        models: labelled rows of each.
        found: of the same rows.
        draws: bootstrap samples.
    """
    trivial = models[CONSTANT]["score"].to_numpy(dtype=np.float64)
    made = {"months": by_month, "hours": by_hour}
    groups = {
        name: make(models[NET], trivial=trivial, draws=draws, block=found.net.block)
        for name, make in made.items()
    }
    return [
        group_section("months", "Rank IC by month", "month of the trading date", groups, found),
        group_section("hours", "Rank IC by hour", "hour in Chicago, from 17:00 on", groups, found),
    ]


def group_section(
    name: str,
    heading: str,
    along: str,
    groups: Mapping[str, Sequence[Group]],
    found: Judgement,
) -> Section:
    """The groups of one kind, drawn and in numbers."""
    own = groups[name]
    rows = [
        [one.name, f"{one.rows:,}", f"{one.dates:,}", plain(one.rank_ic), percent(one.skill)]
        for one in own
    ]
    table = PlainTable(
        f"{heading}, with 95 % intervals; none over fewer than {LEAST_DATES} dates",
        (along, "rows", "dates", "rank IC", "skill over the constant"),
        rows,
    )
    whole = found.net.rank_ic
    seen = f"{seen_groups(own)} All rows: {plain(whole)}."
    picture = Picture(
        name,
        heading,
        "Dots are estimates, strokes their 95 % intervals; the dashed line is the rank IC of all "
        "rows, its band the interval.",
        seen,
        table,
        partial(draw_groups, groups=own, whole=whole, along=along),
    )
    if all(math.isnan(one.rank_ic.estimate) for one in own):
        return Section(name, heading, (seen,), (table,))
    return Section(name, heading, (seen,), pictures=(picture,))


def seen_groups(groups: Sequence[Group]) -> str:
    """Where the rank ICs of groups lie, in numbers."""
    known = [one for one in groups if not math.isnan(one.rank_ic.estimate)]
    if not known:
        return "No group has a rank IC."
    low, *_, high = 2 * sorted(known, key=lambda one: one.rank_ic.estimate)
    judged = [one for one in known if not math.isnan(one.rank_ic.low)]
    above = sum(one.rank_ic.is_above(0) for one in judged)
    below = sum(one.rank_ic.is_below(0) for one in judged)
    return (
        f"From {low.rank_ic.estimate:.4f} ({low.name}) to {high.rank_ic.estimate:.4f} "
        f"({high.name}). Wholly above 0: {above} of {len(judged)} intervals; below: {below}."
    )


def calibration_section(found: Calibration) -> Section:
    """Whether forecasts mean what they say."""
    rows = [
        [
            str(place),
            f"{one.rows:,}",
            f"{one.score:.4f}",
            plain(one.target),
            plain(one.outcome_bp, digits=3),
        ]
        for place, one in enumerate(found.deciles, start=1)
    ]
    first, last = found.deciles[0], found.deciles[-1]
    seen = (
        f"From the lowest to the highest of {len(found.deciles)} groups the mean forecast goes "
        f"from {first.score:.4f} to {last.score:.4f}, the realised rank from "
        f"{plain(first.target)} to {plain(last.target)}; mean distance {found.error:.4f}."
    )
    table = PlainTable(
        "Deciles of the forecast, lowest first, with 95 % intervals",
        ("decile", "rows", "mean forecast", "mean realised rank", "mean outcome, bp"),
        rows,
    )
    picture = Picture(
        "calibration",
        "Calibration by decile of the forecast",
        "On the dashed diagonal forecasts mean what they say; flatter than it, they say too much.",
        seen,
        table,
        partial(draw_calibration, found=found),
    )
    return Section("calibration", "Calibration", (seen,), pictures=(picture,))


def path_section(models: Models) -> Section:
    """Skill over time."""
    path = skill_path(models)
    last = {name: float(saved[-1]) for name, saved in path.saved.items()}
    shown = drawn_models(path)
    left_out = [f"{spoken(name)} ({share(last[name])})" for name in last if name not in shown]
    ends = "; ".join(f"{spoken(name)} {share(value)}" for name, value in last.items())
    seen = f"Saved by the last date, {path.dates[-1].astype('datetime64[D]')}: {ends}."
    reading = "A line that rises saves loss against the constant; a flat one does not."
    if left_out:
        reading += f" Off the chart: {', '.join(left_out)}."
    rows = [
        [
            str(path.dates[place].astype("datetime64[D]")),
            *(share(float(saved[place])) for saved in path.saved.values()),
        ]
        for place in path.month_ends()
    ]
    table = PlainTable(
        "Share of the constant's loss saved up to the last date of each month",
        ("trading date", *(spoken(name) for name in path.saved)),
        rows,
    )
    picture = Picture(
        "path",
        "Skill over time",
        reading,
        seen,
        table,
        partial(draw_path, path=path, shown={name: spoken(name) for name in shown}),
    )
    return Section("path", "Skill over time", (seen,), pictures=(picture,))


def drawn_models(path: SkillPath) -> list[str]:
    """The net, and the baselines that do not flatten its line."""
    reach = {name: float(np.abs(saved).max()) for name, saved in path.saved.items()}
    least = max(_OFF_THE_CHART * reach[NET], 0.005)
    return [name for name in reach if name == NET or reach[name] <= least]


def edge_section(found: Edge) -> Section:
    """What the first and the last decile earn."""
    named = {
        "highest forecasts, bought": (found.top_bp, found.top_ticks),
        "lowest forecasts, bought": (found.bottom_bp, found.bottom_ticks),
        "a trade on either side": (found.trade_bp, found.trade_ticks),
    }
    rows = [
        [name, plain(bp, digits=3), plain(ticks, digits=3)] for name, (bp, ticks) in named.items()
    ]
    if math.isnan(found.half_spread_ticks):
        cost = "What a tick is and costs is not known of these contracts."
    else:
        cost = (
            f"A half-spread is {found.half_spread_ticks:g} ticks ({found.half_spread_bp:.3f} bp), "
            "paid on entry and on exit; a trade breaks even at "
            f"{found.break_even_ticks:.3f} ticks a side."
        )
    caption = f"Mean outcome of the first and last decile, {found.trades:,} rows, before costs"
    columns = ("", "basis points", "ticks")
    table = PlainTable(caption, columns, rows)
    return Section("edge", "What the edge is worth", (cost, "This is no backtest."), (table,))
