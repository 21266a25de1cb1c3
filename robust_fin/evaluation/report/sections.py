"""Sections of the report on forecasts and training, each built from the run's results."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from robust_fin.evaluation.breakdowns import (
    MIN_DATES,
    Calibration,
    Edge,
    GroupMetrics,
    by_hour,
    by_month,
    path_metrics,
)
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.report.page import Plot, Section
from robust_fin.evaluation.report.plots import (
    Curve,
    Curves,
    draw_calibration,
    draw_groups,
    draw_losses,
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
from robust_fin.evaluation.tables import (
    PlainTable,
    differences_table,
    edge_cost,
    edge_table,
    run_table,
    spans_table,
    with_metric_labels,
)
from robust_fin.evaluation.verdict import (
    format_interval,
    format_percent,
    format_percent_interval,
    model_label,
)
from robust_fin.market.calendar import exchange_hours

Models = Mapping[str, pd.DataFrame]  # model -> its labelled rows
_MAX_REACH = 5.0  # a baseline further from 0 than this times the net would flatten the net's line
_GRADIENT_NORM, _LARGEST_NORM = "train/gradient_norm", "members/train/gradient_norm_max"
_POINTS_PER_CURVE = 8  # in a table


def models_section(judgement: Judgement, metrics: Mapping[str, Any]) -> Section:
    """Compare the net with its baselines.

    Args:
        judgement: of the run.
        metrics: contents of metrics.json.
    """
    net = judgement.net
    estimates = PlainTable(
        f"Test span, {net.dates:,} trading dates: estimates with 95 % intervals",
        ("model", "skill over the constant", "rank IC", "daily IC", "ICIR", "hit rate"),
        [
            [
                model_label(name),
                format_percent_interval(model.skill),
                format_interval(model.rank_ic),
                format_interval(model.daily_ic),
                format_interval(model.icir, digits=3),
                format_interval(model.hit_rate),
            ]
            for name, model in {NET: net, **judgement.baselines}.items()
        ],
    )
    explanation = (
        "Skill is the share of the constant forecast's Huber loss that a model saves. Rank IC is "
        "the rank correlation of forecast and outcome over all rows. Daily IC is the mean of the "
        "rank IC within a date. ICIR is that mean divided by its standard deviation.",
        f"Intervals come from a stationary bootstrap of whole trading dates, in blocks of "
        f"{net.block:.1f} dates on average. {net.tie_share:.1%} of rows have no direction and "
        "count as half a hit. Within a fold the constant ranks nothing, so it has no rank IC.",
    )
    spans = spans_table(metrics, caption="Metrics by span (model selection saw only val)")
    tables = (estimates, differences_table(judgement), with_metric_labels(spans))
    return Section("models", "Net and baselines", explanation, tables)


def group_sections(
    models: Models, judgement: Judgement, *, calendar: str, draws: int = DRAWS
) -> list[Section]:
    """Break the rank IC down by month and by hour of the exchange's clock.

    Args:
        models: labelled rows of each model.
        judgement: of the same rows.
        calendar: of the bars; its exchange gives the time zone.
        draws: bootstrap samples.
    """
    net, trivial = models[NET], models[CONSTANT]["score"].to_numpy(dtype=np.float64)
    block = judgement.net.block
    months = by_month(net, trivial=trivial, draws=draws, block=block)
    zone, first_hour = exchange_hours(calendar)
    hours = by_hour(
        net, trivial=trivial, draws=draws, block=block, zone=zone, first_hour=first_hour
    )
    overall = judgement.net.rank_ic
    month_axis = "month of the trading date"
    hour_axis = f"hour in {zone}, from {first_hour:02d}:00 on"
    return [
        _group_section("months", "Rank IC by month", month_axis, months, overall),
        _group_section("hours", "Rank IC by hour", hour_axis, hours, overall),
    ]


def paths_section(paths: Sequence[GroupMetrics]) -> Section | None:
    """Show the net on each backtest path, and the distribution over paths; None without paths.

    Args:
        paths: from `backtest_paths`.
    """
    if not paths:
        return None
    rows = [
        [
            path.name,
            f"{path.rows:,}",
            f"{path.dates:,}",
            format_interval(path.rank_ic),
            format_percent_interval(path.skill),
        ]
        for path in paths
    ]
    found = path_metrics(paths)
    words = (
        f"Every row is tested once on each of {len(paths)} backtest paths, by folds that did not "
        f"train on it. Over the paths, the rank IC goes from {found['paths/rank_ic_min']:.4f} to "
        f"{found['paths/rank_ic_max']:.4f}, mean {found['paths/rank_ic_mean']:.4f}, and the skill "
        f"from {format_percent(found['paths/skill_min'])} to "
        f"{format_percent(found['paths/skill_max'])}, mean "
        f"{format_percent(found['paths/skill_mean'])}.",
        "The paths share rows, outcomes and training data. Their spread shows how much the choice "
        "of the training rows matters; it is not a confidence interval. The intervals of each path "
        "come from its trading dates.",
    )
    table = PlainTable(
        "Net by backtest path, with 95 % intervals over trading dates",
        ("path", "rows", "dates", "rank IC", "skill over the constant"),
        rows,
    )
    return Section("paths", "Backtest paths", words, (table,))


def _group_section(
    name: str, heading: str, axis_label: str, groups: Sequence[GroupMetrics], overall: Interval
) -> Section:
    rows = [
        [
            group.name,
            f"{group.rows:,}",
            f"{group.dates:,}",
            format_interval(group.rank_ic),
            format_percent_interval(group.skill),
        ]
        for group in groups
    ]
    table = PlainTable(
        f"{heading}, with 95 % intervals; no interval for fewer than {MIN_DATES} dates",
        (axis_label, "rows", "dates", "rank IC", "skill over the constant"),
        rows,
    )
    description = f"{describe_groups(groups)} All rows: {format_interval(overall)}."
    if all(math.isnan(group.rank_ic.estimate) for group in groups):
        return Section(name, heading, (description,), (table,))
    plot = Plot(
        name,
        heading,
        "Dots are estimates, bars their 95 % intervals. The dashed line is the rank IC of all "
        "rows, the band its interval.",
        description,
        table,
        partial(draw_groups, groups=groups, overall=overall, axis_label=axis_label),
    )
    return Section(name, heading, (description,), plots=(plot,))


def describe_groups(groups: Sequence[GroupMetrics]) -> str:
    """Describe in words the range of the groups' rank ICs."""
    known = [group for group in groups if not math.isnan(group.rank_ic.estimate)]
    if not known:
        return "No group has a rank IC."
    low, *_, high = 2 * sorted(known, key=lambda group: group.rank_ic.estimate)
    intervals = [group.rank_ic for group in known if not math.isnan(group.rank_ic.low)]
    above = sum(interval.is_above(0) for interval in intervals)
    below = sum(interval.is_below(0) for interval in intervals)
    return (
        f"From {low.rank_ic.estimate:.4f} ({low.name}) to {high.rank_ic.estimate:.4f} "
        f"({high.name}). Of {len(intervals)} intervals, {above} lie entirely above 0 and {below} "
        "entirely below."
    )


def calibration_section(calibration: Calibration) -> Section:
    """Compare forecasts with realised ranks by decile of the forecast."""
    deciles = calibration.deciles
    rows = [
        [
            str(number),
            f"{decile.rows:,}",
            f"{decile.score:.4f}",
            format_interval(decile.target),
            format_interval(decile.outcome_bp, digits=3),
        ]
        for number, decile in enumerate(deciles, start=1)
    ]
    first, last = deciles[0], deciles[-1]
    description = (
        f"From the lowest to the highest of {len(deciles)} groups, the mean forecast goes from "
        f"{first.score:.4f} to {last.score:.4f} and the mean realised rank from "
        f"{format_interval(first.target)} to {format_interval(last.target)}. They differ by "
        f"{calibration.error:.4f} on average."
    )
    table = PlainTable(
        "Deciles of the forecast, lowest first, with 95 % intervals",
        ("decile", "rows", "mean forecast", "mean realised rank", "mean outcome, bp"),
        rows,
    )
    plot = Plot(
        "calibration",
        "Calibration by decile of the forecast",
        "On the dashed diagonal, realised ranks match the forecasts. A flatter slope means that "
        "the forecasts are overconfident.",
        description,
        table,
        partial(draw_calibration, calibration=calibration),
    )
    return Section("calibration", "Calibration", (description,), plots=(plot,))


def path_section(models: Models) -> Section:
    """Show the loss saved by each model over time."""
    path = skill_path(models)
    final = {name: float(saved[-1]) for name, saved in path.saved.items()}
    drawn = _models_to_draw(path)
    hidden = [
        f"{model_label(name)} ({format_percent(final[name])})"
        for name in final
        if name not in drawn
    ]
    ends = "; ".join(
        f"{model_label(name)} {format_percent(value)}" for name, value in final.items()
    )
    description = f"Saved by the last date, {path.dates[-1].astype('datetime64[D]')}: {ends}."
    how_to_read = "A rising line saves loss compared with the constant; a flat line does not."
    if hidden:
        how_to_read += f" Not drawn, off the scale: {', '.join(hidden)}."
    rows = [
        [
            str(path.dates[index].astype("datetime64[D]")),
            *(format_percent(float(saved[index])) for saved in path.saved.values()),
        ]
        for index in path.month_ends()
    ]
    table = PlainTable(
        "Share of the constant's loss saved up to the last date of each month",
        ("trading date", *(model_label(name) for name in path.saved)),
        rows,
    )
    labels = {name: model_label(name) for name in drawn}
    draw = partial(draw_path, path=path, labels=labels)
    plot = Plot("path", "Skill over time", how_to_read, description, table, draw)
    return Section("path", "Skill over time", (description,), plots=(plot,))


def _models_to_draw(path: SkillPath) -> list[str]:
    """Return the net and the baselines that do not flatten the net's line."""
    reach = {name: float(np.abs(saved).max()) for name, saved in path.saved.items()}
    limit = max(_MAX_REACH * reach[NET], 0.005)
    return [name for name in reach if name == NET or reach[name] <= limit]


def edge_section(edge: Edge) -> Section:
    """Show what the lowest and the highest decile earn, next to the cost of a trade."""
    words = (edge_cost(edge), "This is not a backtest.")
    return Section("edge", "Edge before costs", words, (edge_table(edge),))


def training_section(curves: Curves, metrics: Mapping[str, Any], *, clip: float | None) -> Section:
    """Show losses and gradient norms over training.

    Args:
        curves: logged by the run.
        metrics: contents of metrics.json.
        clip: gradient norm above which a step is clipped; None without clipping by norm.
    """
    plots = tuple(
        plot for plot in (_loss_plot(curves, metrics), _norm_plot(curves, clip)) if plot is not None
    )
    words = tuple(plot.description for plot in plots)
    missing = ("The run has no training curves: it used no TensorBoard logger.",)
    return Section(
        "training", "Training", words or missing, (with_metric_labels(run_table(metrics)),), plots
    )


def _loss_plot(curves: Curves, metrics: Mapping[str, Any]) -> Plot | None:
    """Plot train objective and val loss of the first fit, which models are selected by."""
    logged = curves.get("", {})
    losses, trivial = {}, {}
    if "train/objective" in logged:
        losses["objective on train"] = logged["train/objective"]
        constant = metrics.get("train/objective_trivial")
        if constant is not None:
            steps = logged["train/objective"].steps
            trivial["objective on train"] = Curve(steps, np.full(steps.size, float(constant)))
    if "val/loss" in logged:
        losses["loss on val"] = logged["val/loss"]
        if "val/loss_trivial" in logged:
            trivial["loss on val"] = logged["val/loss_trivial"]
    if not losses:
        return None
    sentences = (_describe_loss(name, curve, trivial.get(name)) for name, curve in losses.items())
    tabulated = losses | {f"{name}, constant": curve for name, curve in trivial.items()}
    return Plot(
        "losses",
        "Loss compared with a constant forecast",
        "Below the dashed line the net beats a constant: on train the better of median and mean, "
        "on val the training median. The objective is what training minimises, with dropout; the "
        "loss on val is the Huber loss.",
        " ".join(sentences),
        curve_table("Loss over training", tabulated),
        partial(draw_losses, curves=losses, trivial=trivial),
    )


def _describe_loss(name: str, curve: Curve, trivial: Curve | None) -> str:
    first, last = curve.values[0], curve.values[-1]
    change = f"{name.capitalize()} goes from {first:.6g} to {last:.6g}"
    constant = "" if trivial is None else f"; a constant has {trivial.values[-1]:.6g}"
    return f"{change} in {curve.steps[-1] + 1:,} steps{constant}."


def _norm_plot(curves: Curves, clip: float | None) -> Plot | None:
    """Plot the gradient norms of every stage; for a population the mean and the largest."""
    norms = {
        f"{label}, {stage or 'first fit'}": logged[tag]
        for stage, logged in curves.items()
        for tag, label in ((_GRADIENT_NORM, "norm"), (_LARGEST_NORM, "largest"))
        if tag in logged
    }
    if not norms:
        return None
    values = np.concatenate([curve.values for curve in norms.values()])
    clipped = "steps were not clipped by norm" if clip is None else f"clipped above {clip:g}"
    return Plot(
        "norms",
        "Gradient norms",
        "Norm of the full gradient before clipping, on a logarithmic scale. For a population: the "
        "mean and the largest over its members.",
        f"Gradient norms at the logged steps: median {np.nanmedian(values):.4g}, largest "
        f"{np.nanmax(values):.4g}; {clipped}.",
        curve_table("Gradient norms over training", norms),
        partial(draw_norms, curves=norms, clip=clip),
    )


def curve_table(caption: str, curves: Mapping[str, Curve]) -> PlainTable:
    """Tabulate a few evenly spaced points of each curve."""
    rows = []
    for name, curve in curves.items():
        spaced = np.linspace(0, curve.steps.size - 1, _POINTS_PER_CURVE).round()
        rows += [
            [name, f"{curve.steps[at] + 1:,}", f"{curve.values[at]:.6g}"]
            for at in np.unique(spaced.astype(int))
        ]
    caption = f"{caption}, up to {_POINTS_PER_CURVE} points per curve"
    return PlainTable(caption, ("curve", "step", "value"), rows)
