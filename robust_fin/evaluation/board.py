"""The report's pictures among the curves in TensorBoard."""

import io
import time
from collections.abc import Mapping
from pathlib import Path

from robust_fin.evaluation.pictures import Drawn
from robust_fin.evaluation.scalars import OURS, event_files


def show_in_tensorboard(folder: Path, drawings: Mapping[str, Drawn]) -> None:
    """Write the pictures beside the curves, in place of those of a report before.

    Args:
        folder: of the logger; nothing is written where training wrote no curves into it.
        drawings: by name; the tag is report/NAME.
    """
    curves = event_files(folder)
    if not curves or not drawings:
        return
    for before in folder.glob(f"*{OURS}"):
        before.unlink()
    # after the last of them in the order of names, which is the order TensorBoard reads in
    path = folder / f"{curves[-1].name}{OURS}"
    path.write_bytes(events_of(drawings))


def events_of(drawings: Mapping[str, Drawn]) -> bytes:
    """An event file with an image each."""
    # here, because the import takes a second that only the report is to pay
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

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
    records.write(Event(wall_time=now, summary=Summary(value=images)).SerializeToString())
    return written.getvalue()
