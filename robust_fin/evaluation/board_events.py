"""Parts of TensorBoard's event files: scalars, texts, pictures and histograms, framed.

Importing it takes a quarter of a second, so it is imported where something is written.
"""

import io
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from robust_fin.evaluation.pictures import Drawn

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


def image(tag: str, drawn: Drawn) -> Value:
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
