"""Sections of the report about forecasts and training."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.evaluation.breakdowns import (
    LEAST_DATES,
    Calibration,
    Edge,
    GroupMetrics,
    by_hour,
    by_month,
)
from robust_fin.evaluation.report.page import PlainTable, Plot, Section
from robust_fin.evaluation.report.plots import (
    draw_calibration,
    draw_groups,
    draw_losses,
    draw_members,
    draw_norms,
    draw_path,
)
from robust_fin.evaluation.significance import (
    CONSTANT,
    DRAWS,
    NET,
    Judgement,
    SkillPath,
    skill_path,
)
from robust_fin.evaluation.tensorboard.event_files import Curve, Stages
from robust_fin.evaluation.verdict import (
    format_interval,
    format_number,
    format_percent,
    format_percent_interval,
    model_label,
)

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
            model_label(name),
            format_percent_interval(one.skill),
            format_interval(one.rank_ic),
            format_interval(one.daily_ic),
            format_interval(one.icir, digits=3),
            format_interval(one.hit_rate),
        ]
        for name, one in every.items()
    ]
    columns = ("model", "skill over the constant", "rank IC", "daily IC", "ICIR", "hit rate")
    caption = f"Test span, {found.net.dates:,} trading dates: estimates with 95 % intervals"
    less = [
        [
            f"net less {model_label(name)}",
            format_percent_interval(one.skill),
            format_interval(one.rank_ic),
        ]
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
        set_as = format_percent if name.startswith("skill") else format_number
        rows.append([name, *(set_as(metrics.get(f"{prefix}/{name}")) for prefix in prefixes)])
    columns = ["", "net, val", "net, test", *(f"{model_label(one)}, test" for one in baselines)]
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
    groups: Mapping[str, Sequence[GroupMetrics]],
    found: Judgement,
) -> Section:
    """The groups of one kind, drawn and in numbers."""
    own = groups[name]
    rows = [
        [
            one.name,
            f"{one.rows:,}",
            f"{one.dates:,}",
            format_interval(one.rank_ic),
            format_percent_interval(one.skill),
        ]
        for one in own
    ]
    table = PlainTable(
        f"{heading}, with 95 % intervals; none over fewer than {LEAST_DATES} dates",
        (along, "rows", "dates", "rank IC", "skill over the constant"),
        rows,
    )
    whole = found.net.rank_ic
    seen = f"{seen_groups(own)} All rows: {format_interval(whole)}."
    picture = Plot(
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


def seen_groups(groups: Sequence[GroupMetrics]) -> str:
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
            format_interval(one.target),
            format_interval(one.outcome_bp, digits=3),
        ]
        for place, one in enumerate(found.deciles, start=1)
    ]
    first, last = found.deciles[0], found.deciles[-1]
    seen = (
        f"From the lowest to the highest of {len(found.deciles)} groups the mean forecast goes "
        f"from {first.score:.4f} to {last.score:.4f}, the realised rank from "
        f"{format_interval(first.target)} to {format_interval(last.target)}; mean distance {found.error:.4f}."  # noqa: E501
    )
    table = PlainTable(
        "Deciles of the forecast, lowest first, with 95 % intervals",
        ("decile", "rows", "mean forecast", "mean realised rank", "mean outcome, bp"),
        rows,
    )
    picture = Plot(
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
    left_out = [
        f"{model_label(name)} ({format_percent(last[name])})" for name in last if name not in shown
    ]
    ends = "; ".join(f"{model_label(name)} {format_percent(value)}" for name, value in last.items())
    seen = f"Saved by the last date, {path.dates[-1].astype('datetime64[D]')}: {ends}."
    reading = "A line that rises saves loss against the constant; a flat one does not."
    if left_out:
        reading += f" Off the chart: {', '.join(left_out)}."
    rows = [
        [
            str(path.dates[place].astype("datetime64[D]")),
            *(format_percent(float(saved[place])) for saved in path.saved.values()),
        ]
        for place in path.month_ends()
    ]
    table = PlainTable(
        "Share of the constant's loss saved up to the last date of each month",
        ("trading date", *(model_label(name) for name in path.saved)),
        rows,
    )
    picture = Plot(
        "path",
        "Skill over time",
        reading,
        seen,
        table,
        partial(draw_path, path=path, shown={name: model_label(name) for name in shown}),
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
        [name, format_interval(bp, digits=3), format_interval(ticks, digits=3)]
        for name, (bp, ticks) in named.items()
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


_RUN_ROWS = (
    "parameters", "rows", "train_rows", "val_rows", "test_rows", "folds", "members",
    "members_frozen", "steps", "steps_per_second", "member_steps", "member_steps_per_second",
    "fit_seconds", "nonfinite_steps", "rollbacks", "train/objective", "train/objective_trivial",
    "train/gradient_norm_max", "seed",
)  # fmt: skip
_NORM, _LARGEST_NORM = "train/gradient_norm", "members/train/gradient_norm_max"
_HEADINGS = {"skill": "skill on test, %", "rank_ic": "rank IC on test"}
_POINTS = 8  # of a curve, in its table
Spread = Mapping[str, Float[np.ndarray, " members"]]


def training_section(stages: Stages, metrics: Mapping[str, Any], *, clip: float | None) -> Section:
    """Loss against the constant's, and gradient norms.

    Args:
        stages: curves of the run.
        metrics: of the run.
        clip: gradient norm above which a step is clipped; None where none is.
    """
    rows = [[name, format_number(metrics[name])] for name in _RUN_ROWS if name in metrics]
    facts = PlainTable("The training in figures", ("", "value"), rows)
    parts = [_losses(stages, metrics), _norms(stages, clip)]
    made = [one for one in parts if one is not None]
    said = tuple(one.seen for one in made)
    return Section(
        "training",
        "Training",
        said or ("The run kept no curves: it had no TensorBoard logger.",),
        (facts,),
        tuple(made),
    )


def _losses(stages: Stages, metrics: Mapping[str, Any]) -> Plot | None:
    """Objective and val loss of the fit that choices were made on."""
    own = stages.get("", {})
    curves, trivial = {}, {}
    if "train/objective" in own:
        curves["objective on train"] = own["train/objective"]
        flat = metrics.get("train/objective_trivial")
        if flat is not None:
            steps = own["train/objective"].steps
            trivial["objective on train"] = Curve(steps, np.full(steps.size, float(flat)))
    if "val/loss" in own:
        curves["loss on val"] = own["val/loss"]
        if "val/loss_trivial" in own:
            trivial["loss on val"] = own["val/loss_trivial"]
    if not curves:
        return None
    seen = " ".join(_seen_loss(name, curve, trivial.get(name)) for name, curve in curves.items())
    named = curves | {f"{name}, constant": curve for name, curve in trivial.items()}
    return Plot(
        "losses",
        "Loss against the constant's",
        "Below the dashed line the net is better than a constant: on train the better of median "
        "and mean, on val the training median. The objective is what was minimised, with dropout; "
        "the loss on val is Huber's.",
        seen,
        curve_table("Loss over training", named),
        partial(draw_losses, curves=curves, trivial=trivial),
    )


def _seen_loss(name: str, curve: Curve, trivial: Curve | None) -> str:
    first, last = curve.values[0], curve.values[-1]
    words = (
        f"{name.capitalize()} goes from {first:.6g} to {last:.6g} in {curve.steps[-1] + 1:,} steps"
    )
    return (
        f"{words}." if trivial is None else f"{words}; the constant's is {trivial.values[-1]:.6g}."
    )


def _norms(stages: Stages, clip: float | None) -> Plot | None:
    """Gradient norms of every stage; of a population the mean and the largest member's."""
    curves = {}
    for stage, own in stages.items():
        for tag, label in ((_NORM, "norm"), (_LARGEST_NORM, "largest")):
            if tag in own:
                curves[f"{label}, {stage or 'first fit'}"] = own[tag]
    if not curves:
        return None
    values = np.concatenate([one.values for one in curves.values()])
    seen = (
        f"Gradient norms at the logged steps: median {np.nanmedian(values):.4g}, largest "
        f"{np.nanmax(values):.4g}"
        + ("; none was clipped by norm." if clip is None else f"; clipped above {clip:g}.")
    )
    return Plot(
        "norms",
        "Gradient norms",
        "Norm of the whole gradient before clipping, on a logarithmic scale; of a population the "
        "mean, and the largest of the members.",
        seen,
        curve_table("Gradient norms over training", curves),
        partial(draw_norms, curves=curves, clip=clip),
    )


def curve_table(caption: str, curves: Mapping[str, Curve]) -> PlainTable:
    """A few points of each curve, evenly spread."""
    rows = []
    for name, curve in curves.items():
        places = np.unique(np.linspace(0, curve.steps.size - 1, _POINTS).round().astype(int))
        rows += [[name, f"{curve.steps[at] + 1:,}", f"{curve.values[at]:.6g}"] for at in places]
    return PlainTable(
        f"{caption}, up to {_POINTS} points a curve", ("curve", "step", "value"), rows
    )


def members_section(
    members: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]
) -> Section | None:
    """How much of the result is the seed; None for a single net.

    Args:
        members: as members.json has them.
        metrics: of the run.
    """
    spread = {name: member_values(members, f"test/{name}") for name in _HEADINGS}
    if len(members) < 2 or not all(values.size > 1 for values in spread.values()):
        return None
    frozen = sum(one.get("frozen_at") is not None for one in members)
    skills, ics = spread["skill"], spread["rank_ic"]
    seen = (
        f"{len(members)} members, {frozen} frozen. Skill on test from {format_percent(float(skills.min()))} "  # noqa: E501
        f"to {format_percent(float(skills.max()))}, of their mean forecast {format_percent(metrics['test/skill'])}; "  # noqa: E501
        f"rank IC from {ics.min():.4f} to {ics.max():.4f}, of the mean forecast "
        f"{format_number(metrics['test/rank_ic'])}."
    )
    scaled = {"skill": 100.0, "rank_ic": 1.0}
    picture = Plot(
        "members",
        "Spread of the members",
        "Bars count members, each stroke below is one; the dashed line is their mean forecast.",
        seen,
        spread_table(members),
        partial(
            draw_members,
            spread={_HEADINGS[k]: scaled[k] * values for k, values in spread.items()},
            mean={_HEADINGS[k]: scaled[k] * float(metrics[f"test/{k}"] or 0.0) for k in spread},
        ),
    )
    return Section("members", "Members", (seen,), pictures=(picture,))


def spread_table(members: Sequence[Mapping[str, Any]]) -> PlainTable:
    """Where the members' figures lie, span by span."""
    rows = []
    for span in ("val", "test"):
        for name in ("skill", "rank_ic"):
            values = member_values(members, f"{span}/{name}")
            if values.size < 2:
                continue
            set_as = format_percent if name == "skill" else format_number
            low, middle, high = np.percentile(values, [2.5, 50, 97.5])
            shown = (
                values.mean(),
                values.std(ddof=1),
                values.min(),
                low,
                middle,
                high,
                values.max(),
            )
            rows.append([f"{name}, {span}", *(set_as(float(one)) for one in shown)])
    columns = ("", "mean", "std", "least", "2.5 %", "median", "97.5 %", "greatest")
    return PlainTable("Figures of the single members", columns, rows)


def member_values(members: Sequence[Mapping[str, Any]], name: str) -> Float[np.ndarray, " members"]:
    """One figure of every member that has it."""
    return np.array([one[name] for one in members if one.get(name) is not None], dtype=np.float64)
