"""Compare two run folders: weights bit for bit, metrics and TensorBoard curves."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.small_runs import read_metrics

Curves = dict[tuple[str, str], list[tuple[int, float]]]


def figures(run: Path) -> dict[str, Any]:
    """Read metrics.json without the timings."""
    return {name: value for name, value in read_metrics(run).items() if "second" not in name}


def curves(run: Path) -> Curves:
    """Read all TensorBoard scalars except timings, by (stage, tag)."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every purge
    found: Curves = {}
    for folder in (run / "tensorboard", run / "tensorboard" / "refit"):
        if folder.is_dir():
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
            for tag in (one for one in events.Tags()["scalars"] if "second" not in one):
                points = [(event.step, event.value) for event in events.Scalars(tag)]
                found[folder.name, tag] = points
    return found


def assert_equal_runs(one: Path, other: Path, *, but: str | None = None) -> None:
    """Assert equal weights, metrics and curves, and that no partial file is left.

    Args:
        one: a run folder.
        other: a run folder.
        but: prefix of the tags of curves that are not compared.
    """
    ours, theirs = (load_file(run / "bundle" / "model.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert figures(one) == figures(other)
    first, second = (
        {
            key: points
            for key, points in curves(run).items()
            if not but or not key[1].startswith(but)
        }
        for run in (one, other)
    )
    assert first.keys() == second.keys()
    changed = {key: (first[key], second[key]) for key in first if first[key] != second[key]}
    assert not changed, changed
    assert list(one.rglob("*.part")) == list(other.rglob("*.part")) == []
