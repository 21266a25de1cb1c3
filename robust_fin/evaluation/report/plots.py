"""Plots of the report: each draws its data onto a matplotlib figure, rendered as SVG and PNG."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from robust_fin.evaluation.breakdowns import Calibration, GroupMetrics
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.report.page import Plot, RenderedPlot
from robust_fin.evaluation.significance import SkillPath

Figure = Any  # matplotlib.figure.Figure; matplotlib is an optional dependency

WIDTH, HEIGHT = 4.2, 2.7  # inches; small enough for readable labels on a phone
DPI = 160
# in the SVG these colours become CSS variables of the page, which differ in light and dark mode
INK, LINE = "#1b1f24", "#d3d8df"
COLOURS = {
    "blue": "#1b66b0",
    "orange": "#b04a08",
    "green": "#14724a",
    "purple": "#7b3fa0",
    "grey": "#5b626b",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
BLUE, ORANGE, GREEN, PURPLE, GREY = COLOURS.values()
# lines differ in dash pattern as well, for readers who cannot tell the colours apart
LINE_STYLES = (
    {"color": BLUE, "linestyle": "-", "linewidth": 1.8},
    {"color": ORANGE, "linestyle": "--", "linewidth": 1.4},
    {"color": GREEN, "linestyle": ":", "linewidth": 1.8},
    {"color": PURPLE, "linestyle": "-.", "linewidth": 1.4},
    {"color": GREY, "linestyle": (0, (6, 1, 1, 1, 1, 1)), "linewidth": 1.2},
)
_LABEL_LETTERS = 40  # most letters in the tick labels of one axis
_MARGINS = {"left": 0.16, "right": 0.97, "top": 0.97, "bottom": 0.18}
_DATE_TICKS = 4
_LEGEND_LINE = 0.075  # share of a figure of height HEIGHT that one line of a legend takes


@dataclass(frozen=True, slots=True)
class Curve:
    """A scalar over training.

    Attributes:
        steps: optimizer steps, increasing.
        values: NaN where the logged value was not finite.
    """

    steps: Int[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]


Curves = Mapping[str, Mapping[str, Curve]]  # training stage ("" or "refit") -> tag -> curve


def has_matplotlib() -> bool:
    """Return True if matplotlib is installed (pip install 'robust-fin[report]')."""
    return find_spec("matplotlib") is not None


def render_plot(plot: Plot) -> RenderedPlot:
    """Render a plot as SVG and PNG; equal data give equal bytes."""
    # imported here: optional, and slow to import
    from matplotlib import rc_context
    from matplotlib.figure import Figure as MatplotlibFigure

    svg, png = io.BytesIO(), io.BytesIO()
    with rc_context({**_STYLE, "svg.hashsalt": plot.name}):
        figure = MatplotlibFigure(figsize=(WIDTH, HEIGHT))
        plot.draw(figure)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", facecolor="white", dpi=DPI, metadata={"Software": None})
        width, height = (round(DPI * side) for side in figure.get_size_inches())
    return RenderedPlot(_embed_svg(svg.getvalue().decode(), plot), png.getvalue(), width, height)


def _embed_svg(svg: str, plot: Plot) -> Markup:
    """Turn matplotlib's SVG file into a page element: unique ids, CSS colours, title and text."""
    element = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', element)
    assert view_box is not None
    inner = element[element.index(">") + 1 :]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'\bid="', f'id="{plot.name}-', inner)
    inner = re.sub(r'(?:xlink:)?href="#', f'href="#{plot.name}-', inner)
    inner = inner.replace("url(#", f"url(#{plot.name}-")
    inner = re.sub(r"(font(?:-family)?:[^;\"]*?)'?DejaVu Sans'?[^;\"]*", r"\1sans-serif", inner)
    inner = inner.replace(INK, "currentColor").replace(LINE, "var(--line)")
    for name, colour in COLOURS.items():
        inner = inner.replace(colour, f"var(--{name})")
    start = Markup(
        '<svg role="img" aria-labelledby="{name}-title" aria-describedby="{name}-description" '
        '{box}><title id="{name}-title">{title}</title>'
        '<desc id="{name}-description">{description}</desc>'
    )
    return start.format(
        name=plot.name, box=Markup(view_box.group()), title=plot.title, description=plot.description
    ) + Markup(inner)


def draw_groups(
    figure: Figure, groups: Sequence[GroupMetrics], *, overall: Interval, axis_label: str
) -> None:
    """Draw the rank IC of each group with its interval, and that of all rows as a band.

    Args:
        figure: an empty figure.
        groups: in the order of the axis.
        overall: rank IC of all rows.
        axis_label: what the groups are.
    """
    axes = _axes(figure)
    position = np.arange(len(groups))
    _draw_zero_line(axes)
    axes.axhspan(overall.low, overall.high, color=ORANGE, alpha=0.18, linewidth=0)
    axes.axhline(overall.estimate, label="all rows", **LINE_STYLES[1])
    value, ends = _error_bars([group.rank_ic for group in groups])
    axes.errorbar(
        position,
        value,
        yerr=ends,
        fmt="o",
        color=BLUE,
        markersize=4,
        linewidth=1.2,
        label="estimate",
    )
    stride = -(-sum(len(group.name) for group in groups) // _LABEL_LETTERS)
    axes.set_xticks(position[::stride], [group.name for group in groups][::stride])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(axis_label)
    axes.set_ylabel("rank IC")
    _draw_legend(axes)


def draw_calibration(figure: Figure, calibration: Calibration) -> None:
    """Draw the mean realised rank of each decile against its mean forecast, and the diagonal."""
    axes = _axes(figure)
    forecast = np.array([decile.score for decile in calibration.deciles])
    value, ends = _error_bars([decile.target for decile in calibration.deciles])
    span = [min(forecast.min(), np.nanmin(value)), max(forecast.max(), np.nanmax(value))]
    axes.plot(span, span, label="as forecast", **LINE_STYLES[1])
    axes.errorbar(
        forecast, value, yerr=ends, fmt="o", color=BLUE, markersize=4, linewidth=1.2,
        label="realised, by decile",
    )  # fmt: skip
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("mean forecast, rank")
    axes.set_ylabel("mean realised rank")
    _draw_legend(axes)


def draw_path(figure: Figure, path: SkillPath, *, labels: Mapping[str, str]) -> None:
    """Draw the share of the constant's loss that each model saved, date by date.

    Args:
        figure: an empty figure.
        path: of every model.
        labels: legend label of each model to draw.
    """
    axes = _axes(figure)
    _draw_zero_line(axes)
    days = path.dates.astype("datetime64[D]")
    for style, (name, label) in zip(LINE_STYLES, labels.items(), strict=False):
        axes.plot(days, 100 * path.saved[name], label=label, **style)
    first, last = days[[0, -1]].astype(np.int64).tolist()
    ticks = np.linspace(first, last, _DATE_TICKS).round().astype("datetime64[D]")
    ticks = np.unique(ticks)
    axes.set_xticks(ticks, [f"{day:%y-%m-%d}" for day in ticks.tolist()])
    axes.set_xlabel("trading date (year-month-day)")
    axes.set_ylabel("loss saved, %")
    _draw_legend(axes)


def draw_members(
    figure: Figure,
    spread: Mapping[str, Float[np.ndarray, " members"]],
    *,
    mean: Mapping[str, float],
) -> None:
    """Draw a histogram per metric over the members, and a line for their mean forecast.

    Args:
        figure: an empty figure.
        spread: axis label -> metric of each member.
        mean: axis label -> metric of the members' mean forecast.
    """
    figure.set_size_inches(WIDTH, 1.5 * HEIGHT)
    panels = figure.subplots(len(spread), 1)
    figure.subplots_adjust(**{**_MARGINS, "bottom": 0.12}, hspace=0.45)
    for axes, (name, values) in zip(panels, spread.items(), strict=True):
        bins = min(40, max(6, round(2 * values.size**0.5)))
        axes.hist(values, bins=bins, color=BLUE, alpha=0.45, label="members")
        axes.plot(values, np.zeros(values.size), "|", color=INK, markersize=9, clip_on=False)
        axes.axvline(mean[name], label="their mean forecast", **LINE_STYLES[1])
        axes.set_xlabel(name)
        axes.set_ylabel("members")
        axes.yaxis.get_major_locator().set_params(integer=True)
    _draw_legend(panels[0])


def draw_losses(
    figure: Figure, curves: Mapping[str, Curve], *, trivial: Mapping[str, Curve]
) -> None:
    """Draw each loss over training next to the loss of a constant forecast.

    Args:
        figure: an empty figure.
        curves: axis label -> loss of the net.
        trivial: axis label -> loss of the constant, where known.
    """
    count = len(curves)
    figure.set_size_inches(WIDTH, HEIGHT if count == 1 else 1.6 * HEIGHT)
    panels = np.atleast_1d(figure.subplots(count, 1))
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        marker = "o" if curve.steps.size < 20 else None
        axes.plot(
            curve.steps, curve.values, label="net", marker=marker, markersize=3, **LINE_STYLES[0]
        )
        if name in trivial:
            constant = trivial[name]
            axes.plot(constant.steps, constant.values, label="constant", **LINE_STYLES[1])
        axes.set_ylabel(name)
    panels[-1].set_xlabel("optimizer step")
    edges = {**_MARGINS, "left": 0.21, "bottom": 0.18 if count == 1 else 0.11}
    figure.subplots_adjust(**edges, hspace=0.3)
    _draw_legend(panels[0])


def draw_norms(figure: Figure, curves: Mapping[str, Curve], *, clip: float | None) -> None:
    """Draw gradient norms before clipping, on a logarithmic scale.

    Args:
        figure: an empty figure.
        curves: legend label -> norm.
        clip: norm above which a step is clipped; None without clipping by norm.
    """
    axes = _axes(figure)
    drawn_lines = [
        axes.plot(curve.steps, curve.values, label=name, **style)[0]
        for style, (name, curve) in zip(LINE_STYLES, curves.items(), strict=False)
    ]
    if clip is not None:
        label = f"clipped above {clip:g}"
        axes.axhline(clip, label=label, color=INK, linestyle=":", linewidth=1)
        axes.annotate(label, (1, clip), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(_minor_label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("gradient norm")
    _draw_legend(axes, handles=drawn_lines)


def _draw_legend(axes: Figure, *, handles: Sequence[Any] | None = None) -> None:
    """Draw the legend above the axes, where it covers nothing, and make room for it.

    Args:
        axes: the topmost of its figure.
        handles: what the legend names; None for everything that has a label.
    """
    shown = axes.get_legend_handles_labels()[0] if handles is None else list(handles)
    columns = 2
    axes.legend(
        handles=shown,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        columnspacing=1.2,
        ncols=columns,
    )
    lines = -(-len(shown) // columns)
    room = _LEGEND_LINE * (lines + 0.5) * HEIGHT / axes.figure.get_figheight()
    axes.figure.subplots_adjust(top=_MARGINS["top"] - room)


def _minor_label(value: float, _position: int | None = None) -> str:
    """Label only 2 and 5 between powers of ten; a plot spans few decades."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _axes(figure: Figure) -> Figure:
    """Add one set of axes that fills the figure."""
    figure.subplots_adjust(**_MARGINS)
    return figure.subplots()


def _draw_zero_line(axes: Figure) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)


def _error_bars(
    intervals: Sequence[Interval],
) -> tuple[Float[np.ndarray, " values"], Float[np.ndarray, "2 values"]]:
    """Return the estimates and the distances to the lower and upper ends, 0 where NaN."""
    value = np.array([interval.estimate for interval in intervals])
    ends = np.array([[x.estimate - x.low, x.high - x.estimate] for x in intervals]).T
    return value, np.maximum(np.nan_to_num(ends, nan=0.0), 0.0)
