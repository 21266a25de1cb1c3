"""The one table that a run ends with: the net beside its baselines, and what it has over them."""

import math
from collections.abc import Iterator, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from robust_fin.evaluation.bootstrap import Interval
from robust_fin.evaluation.cells import NONE, number, percent, plain, share, spoken
from robust_fin.evaluation.console import Figure
from robust_fin.evaluation.edge import Edge
from robust_fin.evaluation.significance import Judgement, Significance

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
        yield spoken(name), *_cells(metrics.get(f"baseline/{name}/loss"), one)


def _differences(found: Judgement) -> Iterator[Row]:
    for name, apart in found.against.items():
        yield f"net less {spoken(name)}", "", percent(apart.skill), plain(apart.rank_ic)


def _choices(metrics: Mapping[str, Figure]) -> Iterator[Row]:
    """What choices were made on; without an interval, because it was chosen."""
    if metrics.get("val/loss") is not None:
        ic = metrics.get("val/rank_ic")
        shown = NONE if ic is None else f"{ic:.4f}"
        yield "net on val", number(metrics["val/loss"]), share(metrics.get("val/skill")), shown


def _member_cells(metrics: Mapping[str, Figure]) -> tuple[str, str, str]:
    """Over the members of a population."""
    spread = {}
    for name in ("skill", "rank_ic"):
        ends = [metrics.get(f"members/test/{name}_{part}") for part in ("mean", "low", "high")]
        spread[name] = Interval(*(math.nan if one is None else float(one) for one in ends))
    loss = number(metrics.get("members/test/loss_mean"))
    return loss, percent(spread["skill"]), plain(spread["rank_ic"])


def _cells(loss: Figure, found: Significance) -> tuple[str, str, str]:
    return number(loss), percent(found.skill), plain(found.rank_ic)


def _size(metrics: Mapping[str, Figure], found: Judgement) -> str:
    """How much was trained, and what it is tested on."""
    members = metrics.get("members") or 1
    nets = f"{members:,} nets of " if members > 1 else ""
    seconds, rate = metrics.get("fit_seconds") or 0.0, metrics.get("steps_per_second") or 0.0
    return (
        f"{nets}{number(metrics.get('parameters'))} parameters, {number(metrics.get('steps'))} "
        f"steps in {seconds:.0f} s ({rate:,.0f} a second); {number(metrics.get('test_rows'))} test "
        f"rows on {found.net.dates} trading dates"
    )


def _more(found: Judgement) -> str:
    """The figures of the net that no baseline is shown with."""
    net = found.net
    parts = [
        f"daily rank IC {plain(net.daily_ic)}",
        f"ICIR {plain(net.icir, digits=3)}",
        f"hit rate {plain(net.hit_rate)}, where a coin has 0.5",
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
    return [f"edge of a trade {plain(found, digits=2)} {unit}{beside}"]
