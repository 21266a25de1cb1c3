import re

import pytest
from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, Layout

from robust_fin.evaluation.tensorboard.event_files import layout

TAGS = (
    "train/objective", "train/objective_trivial", "val/loss", "val/loss_trivial", "val/skill",
    "val/skill_squared", "val/rank_ic", "lr", "train/gradient_norm", "stability/gradient_norm_p50",
    "stability/gradient_norm_p99", "stability/gradient_norm_max", "stability/gradient_clip",
    "stability/update_ratio/head", "stability/dead/blocks.0.2", "report/skill/net",
    "report/skill/ridge", "report/skill/minus_last_return", "report/rank_ic/minus_last_return",
)  # fmt: skip


def charts(*, members: bool) -> dict[str, dict[str, Chart]]:
    found = Layout.FromString(layout(members=members).tensor.string_val[0])
    return {one.title: {chart.title: chart for chart in one.chart} for one in found.category}


def drawn(chart: Chart) -> list[str]:
    """The tags that TensorBoard draws into it: those that an expression matches from the start."""
    return [tag for tag in TAGS if any(re.match(one, tag) for one in chart.multiline.tag)]


@pytest.mark.parametrize(
    ("category", "title", "tags"),
    [
        ("loss", "loss on val, and the constant's", ["val/loss", "val/loss_trivial"]),
        ("loss", "objective on train, and the constant's",
         ["train/objective", "train/objective_trivial"]),
        ("skill", "skill on val", ["val/skill"]),
        ("skill", "skill on test, net and baselines", ["report/skill/net", "report/skill/ridge"]),
        ("rank IC", "rank IC on val", ["val/rank_ic"]),
        ("rank IC", "rank IC on test, net and baselines", ["report/rank_ic/minus_last_return"]),
        ("gradient norm", "of single steps, before clipping", ["train/gradient_norm"]),
        ("gradient norm", "between two diagnoses, and where it is clipped",
         [f"stability/gradient_{name}" for name in ("norm_p50", "norm_p99", "norm_max", "clip")]),
        ("learning rate", "learning rate", ["lr"]),
        ("update ratios", "last update over weights, by layer", ["stability/update_ratio/head"]),
        ("units and forecasts", "dead units, share", ["stability/dead/blocks.0.2"]),
    ],
)  # fmt: skip
def test_a_chart_draws_these_curves(category: str, title: str, tags: list[str]) -> None:
    assert drawn(charts(members=False)[category][title]) == tags


def test_the_test_figure_has_its_interval_around_it() -> None:
    for name, spoken in (("skill", "skill"), ("rank_ic", "rank IC")):
        (series,) = charts(members=False)[spoken][f"{spoken} on test, 95 % interval"].margin.series
        assert (series.value, series.lower, series.upper) == (
            f"report/test/{name}", f"report/test/{name}_low", f"report/test/{name}_high",
        )  # fmt: skip


def test_the_members_are_a_band() -> None:
    found = charts(members=True)
    for category, title, tag in (
        ("loss", "objective on train, of the members, 95 %", "train/objective"),
        ("skill", "skill on val, of the members, 95 %", "val/skill"),
        ("rank IC", "rank IC on val, of the members, 95 %", "val/rank_ic"),
    ):
        (series,) = found[category][title].margin.series
        assert (series.value, series.lower, series.upper) == tuple(
            f"members/{tag}_{part}" for part in ("mean", "low", "high")
        )
        assert title not in charts(members=False)[category]
    assert "members/train/gradient_norm_max$" in (
        found["gradient norm"]["of single steps, before clipping"].multiline.tag
    )
    assert "update ratios" not in found
