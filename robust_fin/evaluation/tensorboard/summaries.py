"""TensorBoard event files: histograms, images, chart layout and hyperparameters of a run."""

import io
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Value as Setting  # type: ignore[import-untyped]
from jaxtyping import Float
from tensorboard.compat.proto.event_pb2 import Event
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
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from robust_fin.evaluation.report.page import RenderedPlot

Value = Any  # a Summary.Value: one point of one tag
RESULTS = "report/"  # prefix of the tags of a run's results
BUCKETS = 60  # of a histogram
_RGBA = 4  # colour channels of a PNG


def write_events(path: Path, points: Mapping[int, Iterable[Value]]) -> None:
    """Write an event file atomically.

    Args:
        path: of the file.
        points: values by optimizer step.
    """
    content, now = io.BytesIO(), time.time()
    records = RecordWriter(content)
    records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for step, values in points.items():
        event = Event(wall_time=now, step=step, summary=Summary(value=values))
        records.write(event.SerializeToString())
    # not write_atomic: TensorBoard would read its partial file, whose name has "tfevents" in it
    partial = path.with_name("report.part")
    partial.write_bytes(content.getvalue())
    partial.replace(path)


def scalars(values: Mapping[str, float]) -> list[Value]:
    """Build one point per tag."""
    return [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]


def text(tag: str, markdown: str) -> Value:
    """Build an entry of the Text page."""
    (value,) = summary.text(tag, markdown).value
    value.tag = tag  # without the suffix /text_summary
    return value


def image(tag: str, plot: RenderedPlot) -> Value:
    """Build an entry of the Images page."""
    # torch.utils.tensorboard's image() takes pixel arrays, and would compress the PNG again
    png = Summary.Image(
        height=plot.height, width=plot.width, colorspace=_RGBA, encoded_image_string=plot.png
    )
    return Summary.Value(tag=tag, image=png)


def histogram(tag: str, values: Float[np.ndarray, " values"]) -> Value:
    """Build a histogram with buckets of equal width.

    Args:
        tag: of the histogram.
        values: finite, at least one.
    """
    counts, edges = np.histogram(values, bins=BUCKETS)
    (value,) = summary.histogram_raw(
        tag,
        min=float(values.min()),
        max=float(values.max()),
        num=float(values.size),
        sum=float(values.sum()),
        sum_squares=float(values @ values),
        # a bucket is given by its right edge; an empty first bucket supplies the left-most edge
        bucket_limits=edges.tolist(),
        bucket_counts=[0.0, *counts.tolist()],
    ).value
    return value


Charts = dict[str, list[Any]]  # title -> kind and tags, in the form that custom_scalars() takes
# minus the last return is no forecast of a rank: its skill would set the scale of the chart
_COMPARED = {"skill": "(?!minus_last_return).*", "rank_ic": ".*"}


def layout(*, members: bool) -> Value:
    """Build the layout of the Custom Scalars page.

    Args:
        members: True for a population.
    """
    categories = _fit_charts(members=members) | ({} if members else _diagnosis_charts())
    (value,) = summary.custom_scalars(categories).value
    return value


def _fit_charts(*, members: bool) -> dict[str, Charts]:
    norms = "train/gradient_norm"
    objective = ("train/objective", "train/objective_trivial")
    norm_charts = {
        "of single steps, before clipping": _lines(
            norms, *([f"members/{norms}_max"] if members else [])
        )
    }
    if not members:
        norm_charts["between two diagnoses, and the clipping threshold"] = _lines(
            "stability/gradient_norm_(p50|p99|max)", "stability/gradient_clip"
        )
    return {
        "loss": {
            "loss on val, net and constant": _lines("val/loss", "val/loss_trivial"),
            "objective on train, net and constant": _lines(*objective),
            **(_member_range("objective on train", "train/objective") if members else {}),
        },
        "skill": _metric_charts("skill", "skill", members=members),
        "rank IC": _metric_charts("rank IC", "rank_ic", members=members),
        "gradient norm": norm_charts,
        "learning rate": {"learning rate": _lines("lr")},
    }


def _metric_charts(title: str, name: str, *, members: bool) -> Charts:
    test = f"{RESULTS}test/{name}"
    return {
        f"{title} on val": _lines(f"val/{name}"),
        **(_member_range(f"{title} on val", f"val/{name}") if members else {}),
        f"{title} on test, 95 % interval": ["Margin", [test, f"{test}_low", f"{test}_high"]],
        f"{title} on test, net and baselines": _lines(f"{RESULTS}{name}/{_COMPARED[name]}"),
    }


def _diagnosis_charts() -> dict[str, Charts]:
    return {
        "update ratios": {
            "size of the last update relative to the weights, by layer": _lines(
                "stability/update_ratio/.*"
            ),
            "share of steps clipped": _lines("stability/clipped_share"),
        },
        "units and forecasts": {
            "share of dead units": _lines("stability/dead/.*"),
            "share of saturated outputs": _lines("stability/saturated/.*"),
            "standard deviation of the forecasts": _lines("stability/forecast_std"),
        },
        "non-finite steps": {
            "rollbacks and non-finite steps": _lines("stability/(rollbacks|nonfinite_steps)"),
        },
    }


def _lines(*tags: str) -> list[Any]:
    """Chart of the curves whose full tag matches a regular expression."""
    return ["Multiline", [f"{tag}$" for tag in tags]]  # TensorBoard anchors only the start


def _member_range(title: str, tag: str) -> Charts:
    name = f"members/{tag}"
    return {
        f"{title}, 95 % of the members": ["Margin", [f"{name}_mean", f"{name}_low", f"{name}_high"]]
    }


Plain = bool | float | str
# columns of every run, overridden or not, so that runs of different commands can be compared
KEYS = (
    "seed", "batch_size", "model.hidden", "model.residual", "model.dropout", "loss.delta",
    "optimizer.lr", "optimizer.weight_decay", "schedule.warmup", "trainer.max_epochs",
    "trainer.gradient_clip_val", "split.refit", "population.members", "engine.name",
)  # fmt: skip
GROUPS = ("model", "loss", "schedule", "target_scale", "split")  # shown by their _target_
# val first, since models are selected on val and only then looked at on test
METRICS = (
    "val/skill", "val/rank_ic", "val/loss", "test/skill", "test/skill_low", "test/skill_high",
    "test/rank_ic", "test/loss", "train/objective", "fit_seconds", "nonfinite_steps",
)  # fmt: skip
# overrides of where a run is made and what it shows meanwhile
_HIDDEN = (
    "hydra.", "ledger", "cache", "logger", "report", "verbose", "sweep", "executor",
    "callbacks.progress", "trainer.enable_",
)  # fmt: skip
_SHARED = {"experiment"}  # the same in all runs of a sweep
_TYPES = {bool: DATA_TYPE_BOOL, float: DATA_TYPE_FLOAT64, str: DATA_TYPE_STRING}


def hyperparameters(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Plain]:
    """Return the main settings of a run and everything its command line set, without nulls.

    Args:
        settings: the resolved config as plain values.
        overrides: words of the command line, such as `optimizer.lr=0.01`.
    """
    values: dict[str, Any] = {name: _class_name(settings.get(name)) for name in GROUPS}
    values |= {key: _select(settings, key) for key in KEYS}
    for key, word in _parse_overrides(overrides).items():
        value = _select(settings, key)
        # for a group choice such as model=prenorm_mlp, the name of the choice says most
        values[key] = word if isinstance(value, Mapping) or value is None else value
    return {key: plain for key, value in values.items() if (plain := _plain(value)) is not None}


# torch.utils.tensorboard's hparams() is not used: it marks every run as successful at its start
def session_start(settings: Mapping[str, Plain], overrides: Sequence[str]) -> list[Value]:
    """Build the columns of the HParams page and the row of a run that starts.

    TensorBoard takes the columns from one of the runs shown. So every run lists the same metrics
    and, besides the main settings, those of its command line.

    Args:
        settings: of the run, from `hyperparameters`.
        overrides: words of the command line.
    """
    varied, now = set(_parse_overrides(overrides)) - _SHARED, time.time()
    infos = [
        HParamInfo(name=name, type=_TYPES[type(value)], differs=name in varied)
        for name, value in settings.items()
    ]
    missing = [name for name in (*GROUPS, *KEYS) if name not in settings]
    infos += [HParamInfo(name=name, type=DATA_TYPE_STRING) for name in missing]
    metrics = [
        MetricInfo(name=MetricName(group="", tag=RESULTS + name), display_name=name)
        for name in METRICS
    ]
    experiment = Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=now)
    start = SessionStartInfo(start_time_secs=now)
    for name, value in settings.items():
        start.hparams[name].CopyFrom(_setting(value))
    return [
        _hparams_value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        _hparams_value(
            metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)
        ),
    ]


def session_end(*, failed: bool) -> Value:
    """Build the status of a run that ended."""
    status = STATUS_FAILURE if failed else STATUS_SUCCESS
    end = SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams_value(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _hparams_value(tag: str, content: Any) -> Value:
    described = metadata.create_summary_metadata(content)
    return Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)


def _parse_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Map config keys to override words, without deletions and hidden keys."""
    pairs = (word.lstrip("+").partition("=") for word in overrides if not word.startswith("~"))
    words = {key.partition("@")[0].replace("/", "."): word for key, _, word in pairs}
    return {key: word for key, word in words.items() if not key.startswith(_HIDDEN)}


def _select(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _class_name(group: Any) -> str | None:
    """Return the name of the class or function that a config group instantiates."""
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
