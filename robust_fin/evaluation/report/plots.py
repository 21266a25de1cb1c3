"""What the pictures of a report show: each function draws its data onto an empty figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from robust_fin.evaluation.breakdowns import Calibration, GroupMetrics
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.report.page import COLOURS, HEIGHT, INK, WIDTH, Figure
from robust_fin.evaluation.significance import SkillPath
from robust_fin.evaluation.tensorboard.event_files import Curve

BLUE, ORANGE, GREEN, PURPLE, GREY = (COLOURS[name] for name in COLOURS)
# colour is never the only difference
LOOKS = (
    {"color": BLUE, "linestyle": "-", "linewidth": 1.8},
    {"color": ORANGE, "linestyle": "--", "linewidth": 1.4},
    {"color": GREEN, "linestyle": ":", "linewidth": 1.8},
    {"color": PURPLE, "linestyle": "-.", "linewidth": 1.4},
    {"color": GREY, "linestyle": (0, (6, 1, 1, 1, 1, 1)), "linewidth": 1.2},
)
_LETTERS = 40  # of the labels of an axis, at most
_EDGES = {"left": 0.16, "right": 0.97, "top": 0.97, "bottom": 0.18}
_DATES_TICKED = 4
_HEADROOM = 0.12  # share of an axis that one line of a legend takes


def draw_groups(
    figure: Figure, groups: Sequence[GroupMetrics], *, whole: Interval, along: str
) -> None:
    """Rank IC of each group with its interval, and that of all rows as a band.

    Args:
        figure: to draw on.
        groups: in order.
        whole: the rank IC of all rows.
        along: what the groups are.
    """
    axes = _axes(figure)
    place = np.arange(len(groups))
    _zero(axes)
    axes.axhspan(whole.low, whole.high, color=ORANGE, alpha=0.18, linewidth=0)
    axes.axhline(whole.estimate, label="all rows", **LOOKS[1])
    value, ends = _ends([one.rank_ic for one in groups])
    axes.errorbar(
        place, value, yerr=ends, fmt="o", color=BLUE, markersize=4, linewidth=1.2, label="estimate"
    )
    every = -(-sum(len(one.name) for one in groups) // _LETTERS)
    axes.set_xticks(place[::every], [one.name for one in groups][::every])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(along)
    axes.set_ylabel("rank IC")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + _HEADROOM * (high - low))
    axes.legend(loc="upper right", ncols=2)


def draw_calibration(figure: Figure, found: Calibration) -> None:
    """Mean realised rank of each decile against its mean forecast, beside the diagonal."""
    axes = _axes(figure)
    forecast = np.array([one.score for one in found.deciles])
    value, ends = _ends([one.target for one in found.deciles])
    span = [min(forecast.min(), np.nanmin(value)), max(forecast.max(), np.nanmax(value))]
    axes.plot(span, span, label="as forecast", **LOOKS[1])
    axes.errorbar(
        forecast, value, yerr=ends, fmt="o", color=BLUE, markersize=4, linewidth=1.2,
        label="realised, by decile",
    )  # fmt: skip
    axes.set_xlabel("mean forecast, rank")
    axes.set_ylabel("mean realised rank")
    axes.legend(loc="upper left")


def draw_path(figure: Figure, path: SkillPath, *, shown: Mapping[str, str]) -> None:
    """The share of the constant's loss that was saved, date by date.

    Args:
        figure: to draw on.
        path: of every model.
        shown: models that are drawn, and their names.
    """
    axes = _axes(figure)
    _zero(axes)
    days = path.dates.astype("datetime64[D]")
    for look, (name, spoken) in zip(LOOKS, shown.items(), strict=False):
        axes.plot(days, 100 * path.saved[name], label=spoken, **look)
    first, last = days[[0, -1]].astype(np.int64).tolist()
    even = np.linspace(first, last, _DATES_TICKED).round()
    ticks = np.unique(even.astype("datetime64[D]"))
    axes.set_xticks(ticks, [f"{one:%y-%m-%d}" for one in ticks.tolist()])
    axes.set_xlabel("trading date (year-month-day)")
    axes.set_ylabel("loss saved, % of the constant's")
    axes.legend(loc="best")


def draw_members(
    figure: Figure,
    spread: Mapping[str, Float[np.ndarray, " members"]],
    *,
    mean: Mapping[str, float],
) -> None:
    """How members differ: a histogram a figure, a stroke a member, and the mean forecast.

    Args:
        figure: to draw on.
        spread: by heading of the axis, the members' figures.
        mean: likewise, the figure of their mean forecast.
    """
    figure.set_size_inches(WIDTH, 1.5 * HEIGHT)
    for axes, (name, values) in zip(figure.subplots(len(spread), 1), spread.items(), strict=True):
        bins = min(40, max(6, round(2 * values.size**0.5)))
        axes.hist(values, bins=bins, color=BLUE, alpha=0.45, label="members")
        axes.plot(values, np.zeros(values.size), "|", color=INK, markersize=9, clip_on=False)
        axes.axvline(mean[name], label="their mean forecast", **LOOKS[1])
        axes.set_xlabel(name)
        axes.set_ylabel("members")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.25)
        axes.legend(loc="upper left", ncols=2)
    figure.subplots_adjust(**{**_EDGES, "bottom": 0.12}, hspace=0.45)


def draw_losses(
    figure: Figure, curves: Mapping[str, Curve], *, trivial: Mapping[str, Curve]
) -> None:
    """Loss over training, each beside that of the constant.

    Args:
        figure: to draw on.
        curves: by heading of the axis.
        trivial: likewise, of the constant; absent where it is not known.
    """
    count = len(curves)
    figure.set_size_inches(WIDTH, HEIGHT if count == 1 else 1.6 * HEIGHT)
    every = np.atleast_1d(figure.subplots(count, 1))
    for axes, (name, curve) in zip(every, curves.items(), strict=True):
        marker = "o" if curve.steps.size < 20 else None
        axes.plot(curve.steps, curve.values, label="net", marker=marker, markersize=3, **LOOKS[0])
        if name in trivial:
            flat = trivial[name]
            axes.plot(flat.steps, flat.values, label="constant", **LOOKS[1])
        axes.set_ylabel(name)
        axes.legend(loc="best", ncols=2)
    every[-1].set_xlabel("optimizer step")
    edges = {**_EDGES, "left": 0.21, "bottom": 0.18 if count == 1 else 0.11}
    figure.subplots_adjust(**edges, hspace=0.3)


def draw_norms(figure: Figure, curves: Mapping[str, Curve], *, clip: float | None) -> None:
    """Gradient norms before clipping, on a logarithmic scale.

    Args:
        figure: to draw on.
        curves: by name.
        clip: norm above which a step is clipped; None where none is.
    """
    axes = _axes(figure)
    drawn = [
        axes.plot(curve.steps, curve.values, label=name, **look)[0]
        for look, (name, curve) in zip(LOOKS, curves.items(), strict=False)
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
    axes.legend(handles=drawn, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    figure.subplots_adjust(top=0.83)


def _minor_label(value: float, _place: int | None = None) -> str:
    """Between the powers of ten, two and five are named; a picture has at most a few decades."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _axes(figure: Figure) -> Figure:
    """One set of axes that fills the figure."""
    figure.subplots_adjust(**_EDGES)
    return figure.subplots()


def _zero(axes: Figure) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)


def _ends(
    found: Sequence[Interval],
) -> tuple[Float[np.ndarray, " values"], Float[np.ndarray, "2 values"]]:
    """Estimates, and how far their intervals reach below and above."""
    value = np.array([one.estimate for one in found])
    ends = np.array([[one.estimate - one.low, one.high - one.estimate] for one in found]).T
    return value, np.maximum(np.nan_to_num(ends, nan=0.0), 0.0)
