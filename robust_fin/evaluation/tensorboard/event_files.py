"""TensorBoard event files: written, read back, and the layout of their charts."""

import io
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.summary.writer.record_writer import RecordWriter

from robust_fin.evaluation.report.page import RenderedPlot

Value = Any  # a Summary.Value: one point of one tag
BUCKETS = 60  # of a histogram
_RGBA = 4  # colour channels


def write_events(path: Path, points: Mapping[int, Iterable[Value]]) -> None:
    """Write an event file, whole or not at all.

    Args:
        path: of the file.
        points: by optimizer step.
    """
    written, now = io.BytesIO(), time.time()
    records = RecordWriter(written)
    records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for step, values in points.items():
        event = Event(wall_time=now, step=step, summary=Summary(value=values))
        records.write(event.SerializeToString())
    unfinished = path.with_name("report.part")  # TensorBoard reads whatever is called tfevents
    unfinished.write_bytes(written.getvalue())
    unfinished.replace(path)


def scalars(values: Mapping[str, float]) -> list[Value]:
    """A point of each curve, by tag."""
    return [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]


def text(tag: str, words: str) -> Value:
    """Markdown on the Text page."""
    return Summary.Value(tag=tag, metadata=_of_plugin("text"), tensor=_string(words.encode(), 1))


def layout_value(tag: str, layout: bytes) -> Value:
    """A layout of the Custom Scalars page.

    Args:
        tag: where the page looks for it.
        layout: serialized.
    """
    return Summary.Value(tag=tag, metadata=_of_plugin("custom_scalars"), tensor=_string(layout))


def image(tag: str, drawn: RenderedPlot) -> Value:
    """A picture."""
    return Summary.Value(
        tag=tag,
        image=Summary.Image(
            height=drawn.height,
            width=drawn.width,
            colorspace=_RGBA,
            encoded_image_string=drawn.png,
        ),
    )


def histogram(tag: str, values: Float[np.ndarray, " values"]) -> Value:
    """How numbers are spread, in buckets of one width.

    Args:
        tag: of the histogram.
        values: finite, at least one.
    """
    counts, edges = np.histogram(values, bins=BUCKETS)
    return Summary.Value(
        tag=tag,
        histo=HistogramProto(
            min=float(values.min()),
            max=float(values.max()),
            num=float(values.size),
            sum=float(values.sum()),
            sum_squares=float(values @ values),
            # a bucket is known by its right end: an empty one gives the first its left end
            bucket_limit=edges.tolist(),
            bucket=[0.0, *counts.tolist()],
        ),
    )


def _of_plugin(name: str) -> Value:
    return SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=name))


def _string(content: bytes, *shape: int) -> Value:
    sizes = [TensorShapeProto.Dim(size=size) for size in shape]
    return TensorProto(
        dtype=DT_STRING, string_val=[content], tensor_shape=TensorShapeProto(dim=sizes)
    )


OURS = ".report"  # what the name of the event file ends in that holds the report's pictures


@dataclass(frozen=True, slots=True)
class Curve:
    """A scalar over training.

    Attributes:
        steps: optimizer steps, increasing.
        values: NaN where it was not a number.
    """

    steps: Int[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]


Stages = Mapping[str, Mapping[str, Curve]]  # stage ("" or refit) -> tag -> curve


def read_curves(folder: Path) -> Stages:
    """Every scalar that the run wrote; nothing where it kept no event files.

    Where a resumed run wrote a step again, the later value counts.

    Args:
        folder: of the logger, with one subfolder a further stage.
    """
    found: dict[str, dict[str, Curve]] = {}
    for place in [folder, *sorted(folder.glob("*/"))]:
        points: dict[str, dict[int, float]] = {}
        for path in event_files(place):
            for tag, step, value in _scalars(path):
                points.setdefault(tag, {})[step] = value
        if points:
            stage = "" if place == folder else place.name
            found[stage] = {tag: _curve(one) for tag, one in points.items()}
    return found


def event_files(folder: Path) -> list[Path]:
    """Those that training wrote, in the order of time."""
    paths = folder.glob("events.out.tfevents.*")
    return sorted(path for path in paths if not path.name.endswith(OURS))


def _scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    # here, because the import takes a second that only the report is to pay
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield value.tag, event.step, value.simple_value


def _curve(points: Mapping[int, float]) -> Curve:
    steps = sorted(points)
    values = [points[step] if math.isfinite(points[step]) else math.nan for step in steps]
    return Curve(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))


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
