"""Run folders with known numbers, written without training."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from robust_fin.evaluation.significance import Judgement, judge, judgement_metrics, model_metrics
from robust_fin.runs.results import publish
from robust_fin.runtime.files import null_for_nan
from tests.evaluation.tables import predictions, with_models

CONFIG = """\
name: planted
trainer:
  gradient_clip_val: 1.0
  gradient_clip_algorithm: norm
debug:
  labels: kept
"""
LEDGER = {
    "rows_in": 9700,
    "dropped": {"vwap <undefined>": 100},
    "spans": {"train": 0, "val": 0, "test": 9600},
    "reports": {"bars outside every session": 0.0},
}
PROVENANCE = {"data": "bars.csv", "data_sha256": "ab12", "versions": {"torch": "2.13.0"}}


def write_events(folder: Path, curves: Mapping[str, Mapping[int, float]], *, name: str) -> None:
    """Write an event file with scalars: tag -> step -> value."""
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    records = RecordWriter(written)
    records.write(Event(file_version="brain.Event:2").SerializeToString())
    for tag, points in curves.items():
        for step, value in points.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            records.write(Event(step=step, summary=summary).SerializeToString())
    (folder / f"events.out.tfevents.{name}").write_bytes(written.getvalue())


def scored(*, strength: float, seed: int = 0) -> pd.DataFrame:
    """Build the table of a run with two baselines; strength 0 is pure noise."""
    table = predictions(strength=strength, seed=seed)
    noise = np.random.default_rng(seed + 1).normal(size=(2, len(table)))
    if not strength:
        table["score"] = 0.5 + 0.01 * noise[0]
    ridge = 0.5 + 0.8 * (table["score"].to_numpy() - 0.5) + 0.01 * noise[1]
    return with_models(table, {"minus_last_return": 0.5 + 0.3 * noise[1], "ridge": ridge})


def write_run(
    run: Path, table: pd.DataFrame, *, members: int = 0, pictures: bool = True
) -> tuple[Judgement, dict[str, Any]]:
    """Write a run folder and its report; return the judgement and metrics it shows."""
    (run / "bundle").mkdir(parents=True)
    (run / "bundle" / "config.yaml").write_text(CONFIG)
    (run / "bundle" / "provenance.json").write_text(json.dumps(PROVENANCE))
    (run / "rows.json").write_text(json.dumps(LEDGER))
    steps = range(9, 200, 10)
    curves = {
        "train/objective": {step: 0.08 - 0.0001 * step for step in steps},
        "train/gradient_norm": {step: 0.2 + 0.001 * step for step in steps},
        "val/loss": {99: 0.016, 199: 0.015},
        "val/loss_trivial": {99: 0.0158, 199: 0.0158},
    }
    write_events(run / "tensorboard", curves, name="1.host")
    write_events(run / "tensorboard" / "refit", {"train/gradient_norm": {9: 0.5}}, name="2.host")
    result = judge(table, planted=0.2)
    spans = model_metrics(table, train_median=[0.5], train_mean=[0.5])
    metrics: dict[str, Any] = judgement_metrics(result) | {"train/objective_trivial": 0.0833}
    for name, figures in spans.items():
        prefix = "test" if name == "net" else f"baseline/{name}"
        metrics |= {f"{prefix}/{key}": value for key, value in figures.items()}
    metrics = null_for_nan(metrics | {"parameters": 289, "steps": 200})
    if members:
        _write_members(run, metrics, members)
    publish(run, table, result, metrics=metrics, pictures=pictures)
    return result, metrics


def _write_members(run: Path, metrics: Mapping[str, Any], count: int) -> None:
    """Write members with metrics around those of the run; the first is frozen."""
    entries: list[dict[str, Any]] = [{"frozen_at": 3}]
    for number in range(1, count):
        apart = number / count - 0.6
        entries.append(
            {
                "frozen_at": None,
                "test/skill": metrics["test/skill"] + 0.001 * apart,
                "test/rank_ic": metrics["test/rank_ic"] + 0.01 * apart,
            }
        )
    (run / "members.json").write_text(json.dumps({"members": entries}))
