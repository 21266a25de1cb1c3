"""What a run was worth, among its curves in TensorBoard: figures, verdict and pictures."""

import io
import time
from collections.abc import Mapping
from pathlib import Path

from robust_fin.evaluation.pictures import Drawn
from robust_fin.evaluation.scalars import OURS, event_files


def show_in_tensorboard(
    folder: Path, drawings: Mapping[str, Drawn], *, figures: Mapping[str, float], verdict: str
) -> None:
    """Write beside the curves, in place of what a report before has written.

    Args:
        folder: of the logger; nothing is written where training wrote no curves into it.
        drawings: by name; the tag is report/NAME.
        figures: scalars by tag.
        verdict: text under report/verdict.
    """
    curves = event_files(folder)
    if not curves:
        return
    for before in folder.glob(f"*{OURS}"):
        before.unlink()
    # after the last of them in the order of names, which is the order TensorBoard reads in
    path = folder / f"{curves[-1].name}{OURS}"
    path.write_bytes(events_of(drawings, figures=figures, verdict=verdict))


def events_of(
    drawings: Mapping[str, Drawn], *, figures: Mapping[str, float], verdict: str
) -> bytes:
    """An event file with a text, a scalar a figure and an image a picture."""
    # here, because the import takes a second that only the report is to pay
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.summary.writer.record_writer import RecordWriter

    text = Summary.Value(
        tag="report/verdict",
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        tensor=TensorProto(
            dtype=DT_STRING,
            string_val=[verdict.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        ),
    )
    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
    images = [
        Summary.Value(
            tag=f"report/{name}",
            image=Summary.Image(
                height=one.height, width=one.width, colorspace=4, encoded_image_string=one.png
            ),
        )
        for name, one in drawings.items()
    ]
    now = time.time()
    written = io.BytesIO()
    records = RecordWriter(written)
    records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    records.write(
        Event(wall_time=now, summary=Summary(value=[text, *scalars, *images])).SerializeToString()
    )
    return written.getvalue()
