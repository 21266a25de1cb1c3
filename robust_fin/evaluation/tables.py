"""Tables of a run's metrics, for console and report."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from rich import box
from rich.table import Table
from rich.text import Text

from robust_fin.evaluation.breakdowns import Edge
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.significance import Judgement, Significance
from robust_fin.evaluation.verdict import (
    NONE,
    format_interval,
    format_number,
    format_percent,
    format_percent_interval,
    model_label,
    unknown_costs,
)
from robust_fin.metrics import excess_kurtosis

Metric = float | int | None
SPAN_METRICS = ("loss", "loss_trivial", "skill", "skill_squared", "mae", "mae_trivial", "rank_ic")
_EDGE_ROWS = {
    "top": "highest forecasts, bought",
    "bottom": "lowest forecasts, bought",
    "trade": "a trade on either side",
}
_RUN_ROWS = (
    "parameters", "rows", "train_rows", "val_rows", "test_rows", "folds", "members",
    "members_frozen", "steps", "steps_per_second", "member_steps", "member_steps_per_second",
    "fit_seconds", "nonfinite_steps", "rollbacks", "train/objective", "train/objective_trivial",
    "train/gradient_norm_max", "seed",
)  # fmt: skip


_METRIC_LABELS = {
    "loss": "Huber loss",
    "loss_trivial": "Huber loss of the constant",
    "skill": "skill over the constant",
    "skill_squared": "skill in squared error",
    "mae": "mean absolute error",
    "mae_trivial": "mean absolute error of the constant",
    "rank_ic": "rank IC",
    "train_rows": "training rows",
    "fit_seconds": "seconds of training",
    "nonfinite_steps": "steps that were not finite",
    "train/objective": "training objective",
    "train/objective_trivial": "training objective of a constant",
    "train/gradient_norm_max": "largest gradient norm",
}


def metric_label(name: str) -> str:
    """Return the name of a metric as shown to readers of the report."""
    return _METRIC_LABELS.get(name, name.replace("/", ", ").replace("_", " "))


@dataclass(frozen=True, slots=True)
class PlainTable:
    """A table of text, for console and report.

    Attributes:
        caption: shown above the table.
        columns: headings; the first column holds the row names.
        rows: one list of cells per row.
        numbers: align cells to the right.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True

    def for_console(self, *, note: str | None = None) -> Table:
        """Convert to a rich table, with a note below."""
        title, caption = Text(self.caption), None if note is None else Text(note)
        table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
        for position, name in enumerate(self.columns):
            table.add_column(name, justify="right" if position else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def target_table(outcome: Float[np.ndarray, " rows"], target: Float[np.ndarray, " rows"]) -> Table:
    """Describe the training target before and after its transform."""
    columns = ("", "min", "max", "excess kurtosis", "share of zero returns")
    zeros = f"{np.mean(outcome == 0):.1%}"
    rows = [
        [name, f"{x.min():.6f}", f"{x.max():.6f}", f"{excess_kurtosis(x):.2f}", zeros]
        for name, x in (("forward return", outcome), ("rank target", target))
    ]
    return PlainTable(f"Target of {outcome.size:,} training rows", columns, rows).for_console()


def metric_tables(metrics: Mapping[str, Metric], *, title: str) -> list[Table]:
    """Tabulate metrics.json for the console: results by span, members, and the run itself."""
    tables = [spans_table(metrics, caption=title), run_table(metrics)]
    if "members_frozen" in metrics:
        tables.insert(1, member_table(metrics))
    return [table.for_console() for table in tables]


def spans_table(metrics: Mapping[str, Metric], *, caption: str) -> PlainTable:
    """Compare the net on val and test with its baselines on test."""
    known = (key.split("/") for key, value in metrics.items() if value is not None)
    baselines = list(dict.fromkeys(parts[1] for parts in known if parts[0] == "baseline"))
    prefixes = ["val", "test", *(f"baseline/{name}" for name in baselines)]
    rows = [
        [name, *(_format(name, metrics.get(f"{prefix}/{name}")) for prefix in prefixes)]
        for name in SPAN_METRICS
    ]
    labels = (f"{model_label(name)}, test" for name in baselines)
    return PlainTable(caption, ("", "net, val", "net, test", *labels), rows)


def with_metric_labels(table: PlainTable) -> PlainTable:
    """Return a table whose rows are named in words, not by the keys of metrics.json."""
    rows = [[metric_label(name), *cells] for name, *cells in table.rows]
    return replace(table, rows=rows)


def judgement_tables(judgement: Judgement) -> list[Table]:
    """Tabulate for the console the net's intervals, its differences to baselines and its edge."""
    net = judgement.net
    caption = (
        f"Net on test: 95 % intervals over {net.dates} trading dates, in blocks of {net.block:.1f} "
        f"dates; {net.tie_share:.1%} of rows have no direction and count as half a hit"
    )
    rows = [
        [name, (format_percent_interval if name == "skill" else format_interval)(interval)]
        for name, interval in net.intervals().items()
    ]
    return [
        PlainTable(caption, ("", "estimate and interval"), rows).for_console(),
        differences_table(judgement).for_console(),
        edge_table(judgement.edge).for_console(note=edge_cost(judgement.edge)),
    ]


def differences_table(judgement: Judgement) -> PlainTable:
    """Tabulate the paired differences of the net to its baselines."""
    rows = [
        [
            f"net vs {model_label(name)}",
            format_percent_interval(difference.skill),
            format_interval(difference.rank_ic),
        ]
        for name, difference in judgement.against.items()
    ]
    caption = "Paired differences on the same rows and dates, with 95 % intervals"
    return PlainTable(caption, ("", "skill", "rank IC"), rows)


def edge_table(edge: Edge) -> PlainTable:
    """Tabulate the mean outcome of the lowest and the highest decile."""
    rows = [
        [
            label,
            *(
                format_interval(getattr(edge, f"{side}_{unit}"), digits=3)
                for unit in ("bp", "ticks")
            ),
        ]
        for side, label in _EDGE_ROWS.items()
    ]
    caption = f"Mean outcome of the lowest and highest decile, {edge.trades:,} rows, before costs"
    return PlainTable(caption, ("", "basis points", "ticks"), rows)


def edge_cost(edge: Edge) -> str:
    """State the cost of a round trip and the cost at which a trade breaks even."""
    if math.isnan(edge.round_trip_ticks):
        return unknown_costs(edge)
    return (
        f"A round trip costs {edge.round_trip_ticks:.2f} ticks ({edge.round_trip_bp:.3f} bp): two "
        f"half-spreads of {edge.half_spread_ticks:g} and two fees. A trade breaks even at "
        f"{edge.break_even_ticks:.3f} ticks per side."
    )


def run_table(metrics: Mapping[str, Metric]) -> PlainTable:
    """Tabulate sizes, speed and stability of the training."""
    rows = [[name, format_number(metrics[name])] for name in _RUN_ROWS if name in metrics]
    return PlainTable("Training in numbers", ("", "value"), rows)


def member_table(metrics: Mapping[str, Metric]) -> PlainTable:
    """Tabulate mean, spread and 95 % range over the members of a population."""
    shown = [name for name in SPAN_METRICS if not name.endswith("_trivial")]
    names = (f"{span}/{name}" for span in ("val", "test") for name in shown)
    rows = []
    for key in (name for name in names if f"members/{name}_mean" in metrics):
        span, name = key.split("/")
        cells = (metrics[f"members/{key}_{part}"] for part in ("mean", "std", "low", "high"))
        rows.append([f"{name}, {span}", *(_format(name, cell) for cell in cells)])
    caption = f"{metrics['members']} members, {metrics.get('members_frozen') or 0} frozen"
    return PlainTable(caption, ("", "mean", "std", "2.5 %", "97.5 %"), rows)


def compare_table(runs: Mapping[str, Mapping[str, Metric]]) -> Table:
    """Compare the test metrics of runs side by side, for the console.

    Args:
        runs: metrics.json of each run, by its name.
    """
    rows = [
        [key, *(_format(key.split("/")[-1], run.get(key)) for run in runs.values())]
        for key in ("test_rows", *(f"test/{name}" for name in SPAN_METRICS))
    ]
    return PlainTable("test spans", ("", *runs), rows).for_console()


def summary_table(metrics: Mapping[str, Metric], judgement: Judgement, *, title: str) -> Table:
    """Summarise a run: rows for the net, each baseline, each paired difference, and val.

    Args:
        metrics: contents of metrics.json.
        judgement: of the test span.
        title: experiment and data.
    """
    table = Table(
        title=Text(f"{title}\n{_describe_size(metrics, judgement)}"),
        title_justify="left",
        title_style="bold",
        caption=Text(_describe_net(judgement)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("test span, 95 % intervals", "loss", "skill over the constant", "rank IC"):
        table.add_column(name, justify="left" if "test" in name else "right")
    for rows in (_model_rows, _difference_rows, _val_row):
        for row in rows(metrics, judgement):
            table.add_row(*map(Text, row))
        table.add_section()
    return table


def _model_rows(metrics: Mapping[str, Metric], judgement: Judgement) -> Iterator[Sequence[str]]:
    yield "net", *_model_cells(metrics.get("test/loss"), judgement.net)
    if "members/test/skill_mean" in metrics:
        yield "single members: mean, 95 % range", *_member_cells(metrics)
    for name, baseline in judgement.baselines.items():
        loss = metrics.get(f"baseline/{name}/loss")
        yield model_label(name), *_model_cells(loss, baseline)


def _model_cells(loss: Metric, model: Significance) -> Sequence[str]:
    skill, rank_ic = format_percent_interval(model.skill), format_interval(model.rank_ic)
    return format_number(loss), skill, rank_ic


def _member_cells(metrics: Mapping[str, Metric]) -> Sequence[str]:
    ranges = []
    for name in ("skill", "rank_ic"):
        ends = (metrics.get(f"members/test/{name}_{part}") for part in ("mean", "low", "high"))
        ranges.append(Interval(*(math.nan if end is None else float(end) for end in ends)))
    skill, rank_ic = ranges
    loss = format_number(metrics.get("members/test/loss_mean"))
    return loss, format_percent_interval(skill), format_interval(rank_ic)


def _difference_rows(_: Mapping[str, Metric], judgement: Judgement) -> Iterator[Sequence[str]]:
    for name, difference in judgement.against.items():
        skill, rank_ic = difference.skill, difference.rank_ic
        cells = (format_percent_interval(skill), format_interval(rank_ic))
        yield f"net vs {model_label(name)}", "", *cells


def _val_row(metrics: Mapping[str, Metric], _: Judgement) -> Iterator[Sequence[str]]:
    """Yield the net on val, without an interval: the net was selected there."""
    if metrics.get("val/loss") is not None:
        skill, rank_ic = metrics.get("val/skill"), metrics.get("val/rank_ic")
        shown = NONE if rank_ic is None else f"{rank_ic:.4f}"
        yield "net on val", format_number(metrics["val/loss"]), format_percent(skill), shown


def _describe_size(metrics: Mapping[str, Metric], judgement: Judgement) -> str:
    members = metrics.get("members") or 1
    nets = f"{members:,} nets of " if members > 1 else ""
    seconds, rate = metrics.get("fit_seconds") or 0.0, metrics.get("steps_per_second") or 0.0
    parameters, steps, rows = (
        format_number(metrics.get(name)) for name in ("parameters", "steps", "test_rows")
    )
    return (
        f"{nets}{parameters} parameters, {steps} steps in {seconds:.0f} s "
        f"({rate:,.0f} per second); {rows} test rows on {judgement.net.dates} trading dates"
    )


def _describe_net(judgement: Judgement) -> str:
    """Return the metrics of the net that are not shown for baselines."""
    net, edge = judgement.net, judgement.edge
    parts = [
        f"daily rank IC {format_interval(net.daily_ic)}",
        f"ICIR {format_interval(net.icir, digits=3)}",
        f"hit rate {format_interval(net.hit_rate)} (chance: 0.5)",
    ]
    ticks, cost = edge.trade_ticks, edge.round_trip_ticks
    costs = "costs unknown" if math.isnan(cost) else f"round trip {cost:.2f}"
    if not math.isnan(ticks.estimate):
        parts.append(f"edge per trade {format_interval(ticks, digits=2)} ticks ({costs})")
    elif not math.isnan(edge.trade_bp.estimate):
        parts.append(f"edge per trade {format_interval(edge.trade_bp, digits=2)} bp ({costs})")
    return f"net: {'; '.join(parts)}"


def _format(name: str, value: Metric) -> str:
    return format_percent(value) if name.startswith("skill") else format_number(value)
