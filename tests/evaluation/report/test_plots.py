import re
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from robust_fin.evaluation.breakdowns import Calibration, Decile, GroupMetrics
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.report.page import STYLE, Plot
from robust_fin.evaluation.report.plots import (
    COLOURS,
    HEIGHT,
    INK,
    LINE,
    WIDTH,
    Curve,
    draw_calibration,
    draw_groups,
    draw_losses,
    draw_members,
    draw_norms,
    draw_path,
    render_plot,
)
from robust_fin.evaluation.significance import SkillPath
from robust_fin.evaluation.tables import PlainTable

NAN = float("nan")
SKILL = Interval(0.0, 0.0, 0.0)
GROUPS = [
    GroupMetrics("2024-01", 10, 9, Interval(0.03, 0.01, 0.06), SKILL),
    GroupMetrics("2024-02", 10, 2, Interval(-0.02, NAN, NAN), SKILL),
]
OVERALL = Interval(0.01, 0.005, 0.02)


def curve(*values: float) -> Curve:
    return Curve(np.arange(len(values)), np.array(values, dtype=np.float64))


def picture(name: str = "months") -> Plot:
    draw = partial(draw_groups, groups=GROUPS, overall=OVERALL, axis_label="month <&>")
    return Plot(name, "By & by", "", "0.03 < 0.06", PlainTable("", ("",), []), draw)


def lines(figure: Figure, panel: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    """Return the points of the labelled lines of a panel."""
    shown = [one for one in figure.axes[panel].lines if not one.get_label().startswith("_")]
    return {one.get_label(): (list(one.get_xdata()), list(one.get_ydata())) for one in shown}


def strokes(figure: Figure) -> list[tuple[float, float]]:
    """Return the ends of the vertical error bars."""
    segments = figure.axes[0].containers[0].lines[2][0].get_segments()
    return [(float(one[0][1]), float(one[1][1])) for one in segments]


def test_groups_are_drawn_at_their_estimates_with_intervals() -> None:
    figure = Figure()
    draw_groups(figure, GROUPS, overall=OVERALL, axis_label="month")
    container = figure.axes[0].containers[0]
    assert list(container.lines[0].get_ydata()) == [0.03, -0.02]
    assert strokes(figure)[0] == pytest.approx((0.01, 0.06))
    assert strokes(figure)[1] == pytest.approx((-0.02, -0.02))  # no interval, no stroke
    assert [one.get_text() for one in figure.axes[0].get_xticklabels()] == ["2024-01", "2024-02"]
    assert lines(figure)["all rows"][1] == [0.01, 0.01]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom < -0.02
    assert top > 0.06


def test_many_groups_get_fewer_labels() -> None:
    figure = Figure()
    many = [GroupMetrics(f"{2000 + k}-01", 1, 9, OVERALL, SKILL) for k in range(40)]
    draw_groups(figure, many, overall=OVERALL, axis_label="month")
    assert len(figure.axes[0].get_xticklabels()) == 6
    assert figure.axes[0].containers[0].lines[0].get_ydata().size == 40


def test_calibration_is_drawn_against_the_diagonal() -> None:
    deciles = [
        Decile(5, 0.45, Interval(0.48, 0.46, 0.5), SKILL),
        Decile(5, 0.55, Interval(0.52, 0.5, 0.56), SKILL),
    ]
    figure = Figure()
    draw_calibration(figure, Calibration(tuple(deciles), 0.03))
    assert lines(figure)["as forecast"] == ([0.45, 0.55], [0.45, 0.55])
    assert list(figure.axes[0].containers[0].lines[0].get_xdata()) == [0.45, 0.55]
    assert strokes(figure)[1] == pytest.approx((0.5, 0.56))


def test_path_is_drawn_in_percent_for_the_given_models() -> None:
    dates = np.array(["2024-01-02", "2024-01-03", "2024-03-01"], dtype="datetime64[s]")
    saved = {"net": np.array([0.001, 0.002, 0.004]), "ridge": np.zeros(3)}
    figure = Figure()
    draw_path(figure, SkillPath(dates, saved), labels={"net": "the net"})
    assert list(lines(figure)) == ["the net"]
    assert lines(figure)["the net"][1] == pytest.approx([0.1, 0.2, 0.4])
    labels = [one.get_text() for one in figure.axes[0].get_xticklabels()]
    assert (labels[0], labels[-1]) == ("24-01-02", "24-03-01")


def test_every_member_is_counted_and_marked() -> None:
    figure = Figure()
    values = np.random.default_rng(0).normal(size=50)
    draw_members(figure, {"skill": values, "IC": values[:20]}, mean={"skill": 0.5, "IC": 0.0})
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 50
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 20
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx(values)
    assert lines(figure)["their mean forecast"][0] == [0.5, 0.5]


def test_each_loss_is_drawn_with_its_constant() -> None:
    figure = Figure()
    curves = {"objective on train": curve(3, 2), "loss on val": curve(2, 1)}
    draw_losses(figure, curves, trivial={"loss on val": curve(1.5, 1.5)})
    assert list(lines(figure, 0)) == ["net"]
    assert lines(figure, 1) == {"net": ([0, 1], [2, 1]), "constant": ([0, 1], [1.5, 1.5])}


def test_gradient_norms_have_a_log_scale_and_the_clip_threshold() -> None:
    figure = Figure()
    draw_norms(figure, {"norm": curve(0.1, 10)}, clip=1.0)
    assert figure.axes[0].get_yscale() == "log"
    assert lines(figure)["clipped above 1"][1] == [1.0, 1.0]
    label = figure.axes[0].yaxis.get_minor_formatter()
    assert [label(one, 0) for one in (0.2, 0.3, 0.5, 2, 40)] == ["0.2", "", "0.5", "2", ""]
    figure = Figure()
    draw_norms(figure, {"norm": curve(0.1, 10)}, clip=None)
    assert list(lines(figure)) == ["norm"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_legend_stands_above_the_lines(count: int) -> None:
    curves = {f"norm of a long name {number}": curve(1.0, 2.0, 3.0) for number in range(count)}
    saved = {name: np.array([0.0, 0.1, 0.2]) for name in curves}
    days = np.array(["2024-01-02", "2024-01-03", "2024-01-04"], dtype="datetime64[D]")
    figures = [Figure(figsize=(WIDTH, HEIGHT)) for _ in range(4)]
    draw_norms(figures[0], curves, clip=1.0)
    draw_path(figures[1], SkillPath(days, saved), labels={name: name[:12] for name in saved})
    draw_losses(figures[2], dict(list(curves.items())[:2]), trivial=curves)
    draw_groups(figures[3], GROUPS, overall=OVERALL, axis_label="month")
    for figure in figures:
        figure.canvas.draw()
        axes = figure.axes[0]
        legend = axes.get_legend().get_window_extent()
        assert legend.y0 >= axes.get_window_extent().y1
        assert legend.y1 <= figure.bbox.y1


def test_svg_is_a_single_page_element() -> None:
    svg = render_plot(picture()).svg
    assert svg.startswith('<svg role="img" aria-labelledby="months-title" aria-describedby="')
    assert svg.endswith("</svg>\n")
    assert '<title id="months-title">By &amp; by</title>' in svg
    assert '<desc id="months-description">0.03 &lt; 0.06</desc>' in svg
    assert "month &lt;&amp;&gt;" in svg
    assert "http" not in svg
    ids, named = re.findall(r'\bid="([^"]*)"', svg), re.findall(r'(?:href="|url\()#([^")]*)', svg)
    assert len(ids) == len(set(ids))
    assert set(named) <= set(ids)
    assert all(one.startswith("months-") for one in ids)


def test_svg_uses_the_colours_and_font_of_the_page() -> None:
    svg = render_plot(picture()).svg
    assert re.findall(r"#[0-9a-fA-F]{6}\b", svg) == []
    assert {"var(--blue)", "var(--orange)", "var(--line)", "currentColor"} <= set(
        re.findall(r"var\(--\w+\)|currentColor", svg)
    )
    assert "DejaVu" not in svg
    assert "sans-serif" in svg


def test_rendering_is_deterministic_and_ids_are_unique() -> None:
    one, again, other = (
        render_plot(picture()),
        render_plot(picture()),
        render_plot(picture("hours")),
    )
    assert one == again
    assert one.png.startswith(b"\x89PNG")
    assert int.from_bytes(one.png[16:20]) == one.width
    assert int.from_bytes(one.png[20:24]) == one.height
    ids = [set(re.findall(r'\bid="([^"]*)"', part.svg)) for part in (one, other)]
    assert ids[0].isdisjoint(ids[1])


def palettes() -> list[dict[str, str]]:
    """Read the colours of the page in light mode, dark mode and print."""
    text = STYLE.read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Compute the relative luminance of WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_aa_in_light_dark_and_print() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    result = palettes()
    assert len(result) == 3
    for palette in result:
        for name in ("ink", "soft", *COLOURS):
            assert contrast(palette[name], palette["page"]) >= 4.5, name
        assert contrast(palette["ink"], palette["box"]) >= 4.5
    assert {name: result[0][name] for name in COLOURS} == COLOURS
    assert (result[0]["ink"], result[0]["line"]) == (INK, LINE)
