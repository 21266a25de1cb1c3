"""Console tables of a run's figures."""

import math
from collections.abc import Iterator, Mapping, Sequence

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
)
from robust_fin.metrics import excess_kurtosis

Figure = float | int | None
_SPAN_ROWS = ("loss", "loss_trivial", "skill", "skill_squared", "mae", "mae_trivial", "rank_ic")
_RUN_ROWS = (
    "parameters", "rows", "train_rows", "val_rows", "test_rows", "steps", "steps_per_second",
    "member_steps", "member_steps_per_second", "fit_seconds", "nonfinite_steps", "seed",
    "train/objective",
)  # fmt: skip


def target_table(outcome: Float[np.ndarray, " rows"], target: Float[np.ndarray, " rows"]) -> Table:
    """The training target before and after its transform."""
    table = Table(title=f"Target of {outcome.size:,} training rows", title_justify="left")
    for name in ("", "least", "greatest", "excess kurtosis", "share of zero returns"):
        table.add_column(name, justify="left" if not name else "right")
    zeros = f"{np.mean(outcome == 0):.1%}"
    for name, values, zero in (("forward return", outcome, zeros), ("rank target", target, zeros)):
        table.add_row(
            name,
            f"{values.min():.6f}",
            f"{values.max():.6f}",
            f"{excess_kurtosis(values):.2f}",
            zero,
        )
    return table


def metric_tables(metrics: Mapping[str, Figure], *, title: str) -> list[Table]:
    """Everything that metrics.json says of a run."""
    members = [member_table(metrics)] if "members_frozen" in metrics else []
    return [result_table(metrics, title=title), *members, run_table(metrics)]


def result_table(metrics: Mapping[str, Figure], *, title: str) -> Table:
    """The net beside its baselines, span by span."""
    known = (key for key, value in metrics.items() if value is not None)
    baselines = list(dict.fromkeys(k.split("/")[1] for k in known if k.startswith("baseline/")))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("net, val", "net, test", *(f"{name}, test" for name in baselines)):
        table.add_column(column, justify="right")
    for row in _SPAN_ROWS:
        cells = [metrics.get(f"val/{row}"), metrics.get(f"test/{row}")]
        cells += [metrics.get(f"baseline/{name}/{row}") for name in baselines]
        table.add_row(row, *(_text(row, cell) for cell in cells))
    return table


def judgement_tables(found: Judgement) -> list[Table]:
    """Figures with their intervals, differences to the baselines, and what the edge is worth."""
    rows = [(name, interval, name) for name, interval in found.net.intervals().items()]
    title = (
        f"net, test: 95 % intervals over {found.net.dates} trading dates, in blocks of "
        f"{found.net.block:.1f}; {found.net.tie_share:.1%} of rows are ties, half a hit each"
    )
    less = [
        (f"{name}, less {other}", interval, name)
        for other, one in found.against.items()
        for name, interval in (("skill", one.skill), ("rank_ic", one.rank_ic))
    ]
    tables = [interval_table(title, rows), interval_table("net less its baselines, paired", less)]
    return [*tables, edge_table(found.edge)]


def interval_table(title: str, rows: Sequence[tuple[str, Interval, str]]) -> Table:
    """An estimate a row, with the ends of its interval; those that are not numbers are left out."""
    table = Table(title=title, title_justify="left")
    for column in ("", "estimate", "2.5 %", "97.5 %"):
        table.add_column(column, justify="right" if column else "left")
    for name, one, form in rows:
        if not math.isnan(one.estimate):
            ends = (one.estimate, one.low, one.high)
            table.add_row(name, *(_text(form, end) for end in ends))
    return table


def edge_table(found: Edge) -> Table:
    """Mean outcome of the first and the last decile, beside the cost of a trade."""
    named = [
        ("highest forecasts, bought, bp", found.top_bp),
        ("lowest forecasts, bought, bp", found.bottom_bp),
        ("a trade on either side, bp", found.trade_bp),
        ("highest forecasts, bought, ticks", found.top_ticks),
        ("lowest forecasts, bought, ticks", found.bottom_ticks),
        ("a trade on either side, ticks", found.trade_ticks),
    ]
    rows = [(name, interval, "edge") for name, interval in named]
    cost = (
        "costs not known"
        if math.isnan(found.half_spread_ticks)
        else f"a half-spread is {found.half_spread_ticks:g} ticks ({found.half_spread_bp:.3f} bp); "
        f"it breaks even at {found.break_even_ticks:.3f} ticks a side"
    )
    title = (
        f"mean outcome of the first and last decile, {found.trades:,} rows, before costs; {cost}"
    )
    return interval_table(title, rows)


def run_table(metrics: Mapping[str, Figure]) -> Table:
    """What was trained, and how fast."""
    table = Table(show_header=False)
    for row in (name for name in _RUN_ROWS if name in metrics):
        table.add_row(row, _text(row, metrics.get(row)))
    return table


def member_table(metrics: Mapping[str, Figure]) -> Table:
    """Mean, spread and 95 % interval over the members of a population, span by span."""
    frozen = metrics.get("members_frozen") or 0
    title = f"{metrics['members']} members, {frozen} frozen"
    table = Table(title=title, title_justify="left")
    for column in ("", "mean", "std", "2.5 %", "97.5 %"):
        table.add_column(column, justify="right" if column else "left")
    for span in ("val", "test"):
        for row in ("loss", "skill", "skill_squared", "mae", "rank_ic"):
            name = f"members/{span}/{row}"
            if f"{name}_mean" in metrics:
                parts = (metrics[f"{name}_{part}"] for part in ("mean", "std", "low", "high"))
                table.add_row(f"{row}, {span}", *(_text(row, part) for part in parts))
    return table


def compare_table(runs: Mapping[str, Mapping[str, Figure]]) -> Table:
    """Runs side by side, their test spans only."""
    table = Table(title="test spans", title_justify="left")
    table.add_column("")
    for name in runs:
        table.add_column(name, justify="right")
    for row in ("test_rows", *(f"test/{name}" for name in _SPAN_ROWS)):
        table.add_row(row, *(_text(row.split("/")[-1], run.get(row)) for run in runs.values()))
    return table


def _text(row: str, value: Figure) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    if row.startswith("skill"):
        return f"{value:+.4%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


Row = tuple[str, str, str, str]


def summary_table(metrics: Mapping[str, Figure], found: Judgement, *, title: str) -> Table:
    """A row for the net on val and test, for each baseline, and for each paired difference.

    Args:
        metrics: what metrics.json holds.
        found: of the test span.
        title: what was trained, on what.
    """
    table = Table(
        title=Text(f"{title}\n{_size(metrics, found)}"),
        title_justify="left",
        title_style="bold",
        caption=Text(_more(found)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("test span, 95 % intervals", "loss", "skill over the constant", "rank IC"):
        table.add_column(name, justify="left" if "test" in name else "right")
    for section in (_models(metrics, found), _differences(found), _choices(metrics)):
        for row in section:
            table.add_row(*map(Text, row))
        table.add_section()
    return table


def _models(metrics: Mapping[str, Figure], found: Judgement) -> Iterator[Row]:
    yield "net", *_cells(metrics.get("test/loss"), found.net)
    if "members/test/skill_mean" in metrics:
        yield "one member: mean, 95 % range", *_member_cells(metrics)
    for name, one in found.baselines.items():
        yield model_label(name), *_cells(metrics.get(f"baseline/{name}/loss"), one)


def _differences(found: Judgement) -> Iterator[Row]:
    for name, apart in found.against.items():
        yield (
            f"net less {model_label(name)}",
            "",
            format_percent_interval(apart.skill),
            format_interval(apart.rank_ic),
        )


def _choices(metrics: Mapping[str, Figure]) -> Iterator[Row]:
    """What choices were made on; without an interval, because it was chosen."""
    if metrics.get("val/loss") is not None:
        ic = metrics.get("val/rank_ic")
        shown = NONE if ic is None else f"{ic:.4f}"
        yield (
            "net on val",
            format_number(metrics["val/loss"]),
            format_percent(metrics.get("val/skill")),
            shown,
        )


def _member_cells(metrics: Mapping[str, Figure]) -> tuple[str, str, str]:
    """Over the members of a population."""
    spread = {}
    for name in ("skill", "rank_ic"):
        ends = [metrics.get(f"members/test/{name}_{part}") for part in ("mean", "low", "high")]
        spread[name] = Interval(*(math.nan if one is None else float(one) for one in ends))
    loss = format_number(metrics.get("members/test/loss_mean"))
    return loss, format_percent_interval(spread["skill"]), format_interval(spread["rank_ic"])


def _cells(loss: Figure, found: Significance) -> tuple[str, str, str]:
    return format_number(loss), format_percent_interval(found.skill), format_interval(found.rank_ic)


def _size(metrics: Mapping[str, Figure], found: Judgement) -> str:
    """How much was trained, and what it is tested on."""
    members = metrics.get("members") or 1
    nets = f"{members:,} nets of " if members > 1 else ""
    seconds, rate = metrics.get("fit_seconds") or 0.0, metrics.get("steps_per_second") or 0.0
    return (
        f"{nets}{format_number(metrics.get('parameters'))} parameters, {format_number(metrics.get('steps'))} "  # noqa: E501
        f"steps in {seconds:.0f} s ({rate:,.0f} a second); {format_number(metrics.get('test_rows'))} test "  # noqa: E501
        f"rows on {found.net.dates} trading dates"
    )


def _more(found: Judgement) -> str:
    """The figures of the net that no baseline is shown with."""
    net = found.net
    parts = [
        f"daily rank IC {format_interval(net.daily_ic)}",
        f"ICIR {format_interval(net.icir, digits=3)}",
        f"hit rate {format_interval(net.hit_rate)}, where a coin has 0.5",
    ]
    return "net: " + "; ".join([*parts, *_edge(found.edge)])


def _edge(edge: Edge) -> list[str]:
    """What the outer deciles earn a trade, beside its cost."""
    found, unit = edge.trade_ticks, "ticks"
    if math.isnan(found.estimate):
        found, unit = edge.trade_bp, "bp"
    if math.isnan(found.estimate):
        return []
    cost = edge.half_spread_ticks
    beside = f", half-spread {cost:g}" if unit == "ticks" and not math.isnan(cost) else ""
    return [f"edge of a trade {format_interval(found, digits=2)} {unit}{beside}"]
