"""The curves of a training run, read back from TensorBoard's event files."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

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
