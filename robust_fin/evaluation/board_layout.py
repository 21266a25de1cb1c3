"""Which curves share a chart on TensorBoard's Custom Scalars page.

| category | what stands together |
|---|---|
| loss | the loss on val and the constant's, the objective on train and the constant's |
| skill | on val over training, on test with its interval, of net and baselines |
| rank IC | likewise |
| gradient norm | of single steps; p50, p99 and largest between diagnoses, and the clip |
| learning rate | of every step drawn |
| update ratios | last update over weights, layer by layer |
| units and forecasts | saturated and dead shares, spread of the forecasts |
| refused steps | rollbacks and steps that were not finite |

Of a population, objective, skill and rank IC are a band that holds 95 % of the members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

from robust_fin.evaluation.board_events import Value, layout_value

_MEMBERS = "of the members, 95 %"
# a return is no forecast of a rank: its skill is so far below zero that it would hide the others
_COMPARED = {"skill": "(?!minus_last_return).*", "rank_ic": ".*"}


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves in one chart.

    Attributes:
        title: of the chart.
        tags: regular expressions that whole tags match.
    """

    title: str
    tags: tuple[str, ...]

    def chart(self) -> Any:
        """For TensorBoard, which looks for a match at a tag's start alone."""
        tags = [f"{tag}$" for tag in self.tags]
        return Chart(title=self.title, multiline=MultilineChartContent(tag=tags))


@dataclass(frozen=True, slots=True)
class Band:
    """A curve between two others.

    Attributes:
        title: of the chart.
        value: tag of the curve.
        ends: what the tags of the others begin with; _low and _high follow.
    """

    title: str
    value: str
    ends: str

    def chart(self) -> Any:
        """For TensorBoard, which takes these tags as they are."""
        low, high = f"{self.ends}_low", f"{self.ends}_high"
        series = MarginChartContent.Series(value=self.value, lower=low, upper=high)
        return Chart(title=self.title, margin=MarginChartContent(series=[series]))


Charts = Sequence[Lines | Band]


def layout(*, members: bool) -> Value:
    """What a run writes once.

    Args:
        members: whether it is a population.
    """
    categories = {**_fit(members), **({} if members else _DIAGNOSES)}
    found = Layout(
        category=[
            Category(title=title, chart=[one.chart() for one in charts])
            for title, charts in categories.items()
        ]
    )
    return layout_value(CONFIG_SUMMARY_TAG, found.SerializeToString())


def _fit(members: bool) -> dict[str, Charts]:
    """The categories of every run."""
    norms = "train/gradient_norm"
    of_steps = (norms, f"members/{norms}_max") if members else (norms,)
    diagnosed = Lines(
        "between two diagnoses, and where it is clipped",
        ("stability/gradient_norm_(p50|p99|max)", "stability/gradient_clip"),
    )
    objective = Lines(
        "objective on train, and the constant's", ("train/objective", "train/objective_trivial")
    )
    return {
        "loss": (
            Lines("loss on val, and the constant's", ("val/loss", "val/loss_trivial")),
            objective,
            *_members("objective on train", "train/objective", members),
        ),
        "skill": _judged("skill", "skill", members),
        "rank IC": _judged("rank IC", "rank_ic", members),
        "gradient norm": (
            Lines("of single steps, before clipping", of_steps),
            *(() if members else (diagnosed,)),
        ),
        "learning rate": (Lines("learning rate", ("lr",)),),
    }


def _judged(title: str, name: str, members: bool) -> Charts:
    test = f"report/test/{name}"
    return (
        Lines(f"{title} on val", (f"val/{name}",)),
        *_members(f"{title} on val", f"val/{name}", members),
        Band(f"{title} on test, 95 % interval", test, test),
        Lines(f"{title} on test, net and baselines", (f"report/{name}/{_COMPARED[name]}",)),
    )


def _members(title: str, tag: str, members: bool) -> Charts:
    band = Band(f"{title}, {_MEMBERS}", f"members/{tag}_mean", f"members/{tag}")
    return (band,) if members else ()


_DIAGNOSES: dict[str, Charts] = {
    "update ratios": (
        Lines("last update over weights, by layer", ("stability/update_ratio/.*",)),
        Lines("share of steps clipped", ("stability/clipped_share",)),
    ),
    "units and forecasts": (
        Lines("dead units, share", ("stability/dead/.*",)),
        Lines("saturated outputs, share", ("stability/saturated/.*",)),
        Lines("spread of the forecasts", ("stability/forecast_std",)),
    ),
    "refused steps": (
        Lines("rollbacks, steps not finite", ("stability/(rollbacks|nonfinite_steps)",)),
    ),
}
