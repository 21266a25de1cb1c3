"""Figures, hyperparameters and pictures of a run for TensorBoard."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from google.protobuf.struct_pb2 import Value as Setting  # type: ignore[import-untyped]
from jaxtyping import Float
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_FAILURE,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from robust_fin.evaluation.report.page import RenderedPlot
from robust_fin.evaluation.significance import NET, Judgement
from robust_fin.evaluation.tensorboard.event_files import OURS, Stages, Value, event_files
from robust_fin.evaluation.verdict import verdict

FOLDER = "tensorboard"
FIRST = "events.out.tfevents.0."  # a file of such a name is read before those of all curves
NO_CURVES = "events.out.tfevents.1"
FIGURES = "report/"  # what the tags of a run's figures begin with
_SPANS = ("train/", "val/", "test/")
_OTHERS = ("fit_seconds", "steps_per_second", "nonfinite_steps", "rollbacks")


@dataclass(frozen=True, slots=True)
class DashboardContent:
    """What goes beside the curves; every tag begins with report/.

    Attributes:
        levels: scalars, drawn as a line over all steps: a figure of the end beside the curves that
            led there.
        last_step: up to which they are drawn.
        texts: Markdown.
        drawings: pictures.
        spreads: histograms.
    """

    levels: Mapping[str, float] = field(default_factory=dict)
    last_step: int = 0
    texts: Mapping[str, str] = field(default_factory=dict)
    drawings: Mapping[str, RenderedPlot] = field(default_factory=dict)
    spreads: Mapping[str, Float[np.ndarray, " values"]] = field(default_factory=dict)


def write_dashboard(folder: Path, shown: DashboardContent, *, failed: bool = False) -> None:
    """Write beside the curves, in place of what was written there before, and end the session.

    Args:
        folder: of the logger; nothing is written where there was none.
        shown: what.
        failed: whether the run ended early.
    """
    name = _last_name(folder)
    if name is None:
        return
    # here, because the import takes a time that only a run with curves is to pay
    from robust_fin.evaluation.tensorboard.event_files import (
        histogram,
        image,
        scalars,
        text,
        write_events,
    )

    values = [session_end(failed=failed)]
    values += [text(tag, words) for tag, words in _tagged(shown.texts).items()]
    values += [image(tag, one) for tag, one in _tagged(shown.drawings).items()]
    values += [histogram(tag, one) for tag, one in _tagged(shown.spreads).items()]
    levels = scalars(_tagged(shown.levels))
    points = {0: [*values, *levels]} | ({shown.last_step: levels} if shown.last_step else {})
    forget_end(folder)
    # after the last of them in the order of names, which is the order TensorBoard reads in
    write_events(folder / f"{name}{OURS}", points)


def _last_name(folder: Path) -> str | None:
    """Of the last curves; of a run that failed before its first, one that comes before them."""
    curves = event_files(folder)
    if curves:
        return curves[-1].name
    return NO_CURVES if any(folder.glob(f"{FIRST}*")) else None


def forget_end(folder: Path) -> None:
    """Remove what was written beside the curves, which no longer holds of a run that goes on."""
    for before in folder.glob(f"*{OURS}"):
        if not before.name.startswith(FIRST):
            before.unlink()


def shown_of(
    found: Judgement,
    net: pd.DataFrame,
    *,
    metrics: Mapping[str, Any],
    drawings: Mapping[str, RenderedPlot],
    curves: Stages,
    texts: Mapping[str, str],
) -> DashboardContent:
    """What a finished run shows.

    Args:
        found: of its predictions.
        net: labelled test rows of the net.
        metrics: as metrics.json has them.
        drawings: pictures by name.
        curves: of the training, by stage and tag.
        texts: Markdown by name, beside the verdict.
    """
    own = curves.get("", {})
    scores = net["score"].to_numpy(dtype=np.float64)
    scores = scores[np.isfinite(scores)]
    return DashboardContent(
        levels={**model_figures(found), **run_figures(metrics)},
        last_step=max((int(one.steps[-1]) for one in own.values()), default=0),
        texts={"verdict": verdict(found), **texts},
        drawings=drawings,
        spreads={"test/score": scores} if scores.size else {},
    )


def model_figures(found: Judgement) -> dict[str, float]:
    """Skill and rank IC of the net and of every baseline; null is left out."""
    every = {NET: found.net, **found.baselines}
    return {
        f"{name}/{model}": interval.estimate
        for name in ("skill", "rank_ic")
        for model, one in every.items()
        if math.isfinite((interval := one.intervals()[name]).estimate)
    }


def run_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What metrics.json says of the spans and of the run; null is left out."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if value is not None and (name.startswith(_SPANS) or name in _OTHERS)
    }


def _tagged(named: Mapping[str, Any]) -> dict[str, Any]:
    return {FIGURES + name: one for name, one in named.items()}


Plain = bool | float | str
# of every run, whether they were overridden or not, so that runs of different commands compare
KEYS = (
    "seed", "batch_size", "model.hidden", "model.residual", "model.dropout", "loss.delta",
    "optimizer.lr", "optimizer.weight_decay", "schedule.warmup", "trainer.max_epochs",
    "trainer.gradient_clip_val", "split.refit", "population.members", "engine.name",
)  # fmt: skip
NAMED = ("model", "loss", "schedule", "target_scale", "split")  # by what they build
# val first: a choice is made there, and test is looked at for what was chosen
METRICS = (
    "val/skill", "val/rank_ic", "val/loss", "test/skill", "test/skill_low", "test/skill_high",
    "test/rank_ic", "test/loss", "train/objective", "fit_seconds", "nonfinite_steps",
)  # fmt: skip
_UNSEEN = (
    "hydra.", "ledger", "cache", "logger", "report", "verbose", "sweep", "executor",
    "callbacks.progress", "trainer.enable_",
)  # fmt: skip
_SHARED = {"experiment"}  # by the runs of a sweep
_TYPES = {bool: DATA_TYPE_BOOL, float: DATA_TYPE_FLOAT64, str: DATA_TYPE_STRING}


def hyperparameters(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Plain]:
    """The main settings of a run, and whatever its command line set; null is left out.

    Args:
        settings: its resolved config, as plain values.
        overrides: words of the command line, such as `optimizer.lr=0.01`.
    """
    found = {name: _built(settings.get(name)) for name in NAMED}
    found |= {key: _at(settings, key) for key in KEYS}
    for key, word in _overridden(overrides).items():
        value = _at(settings, key)
        # a word such as model=prenorm_mlp chooses a file of settings, whose name says most
        found[key] = word if isinstance(value, Mapping) or value is None else value
    plain = {key: _plain(value) for key, value in found.items()}
    return {key: value for key, value in plain.items() if value is not None}


def session_start(hparams: Mapping[str, Plain], overrides: Sequence[str]) -> list[Value]:
    """The columns of the table, and the line of a run that begins.

    TensorBoard takes the columns from one run of those it shows, so every run names the same
    figures and, beside the main settings, those that its command line set.

    Args:
        hparams: of the run.
        overrides: words of the command line.
    """
    changed, now = set(_overridden(overrides)), time.time()
    infos = [
        HParamInfo(name=name, type=_TYPES[type(value)], differs=name in changed - _SHARED)
        for name, value in hparams.items()
    ]
    missing = [name for name in (*NAMED, *KEYS) if name not in hparams]
    infos += [HParamInfo(name=name, type=DATA_TYPE_STRING) for name in missing]
    metrics = [
        MetricInfo(name=MetricName(group="", tag=FIGURES + name), display_name=name)
        for name in METRICS
    ]
    experiment = Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=now)
    start = SessionStartInfo(start_time_secs=now)
    for name, value in hparams.items():
        start.hparams[name].CopyFrom(_setting(value))
    return [
        _value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        _value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
    ]


def session_end(*, failed: bool) -> Value:
    """How a run ended."""
    status = STATUS_FAILURE if failed else STATUS_SUCCESS
    end = SessionEndInfo(status=status, end_time_secs=time.time())
    return _value(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _value(tag: str, content: Any) -> Value:
    described = metadata.create_summary_metadata(content)
    return Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)


def _overridden(overrides: Sequence[str]) -> dict[str, str]:
    """Key -> word, without where a run is made and what it shows meanwhile."""
    pairs = [word.lstrip("+").partition("=") for word in overrides if not word.startswith("~")]
    every = {key.partition("@")[0].replace("/", "."): word for key, _, word in pairs}
    return {key: word for key, word in every.items() if not key.startswith(_UNSEEN)}


def _at(settings: Mapping[str, Any], key: str) -> Any:
    found: Any = settings
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _built(group: Any) -> str | None:
    """The name of what a group of settings builds."""
    target = group.get("_target_") if isinstance(group, Mapping) else None
    return None if target is None else target.rpartition(".")[2]


def _plain(value: Any) -> Plain | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _setting(value: Plain) -> Setting:
    if isinstance(value, bool):
        return Setting(bool_value=value)
    return Setting(string_value=value) if isinstance(value, str) else Setting(number_value=value)
