"""The TensorBoard folder of a run: its curves read back, and its settings, results and failures.

Event files written here end in ".report", so that they are told apart from those of the training.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.errors import ResumeError
from robust_fin.evaluation.report.page import RenderedPlot
from robust_fin.evaluation.report.plots import Curve, Curves
from robust_fin.evaluation.report.report import RunFiles, provenance_rows
from robust_fin.evaluation.significance import NET, Judgement
from robust_fin.evaluation.verdict import verdict
from robust_fin.runtime.rank_info import is_first
from robust_fin.runtime.records import read_words

FOLDER = "tensorboard"
SUFFIX = ".report"  # of event files that are not written by the training
# TensorBoard reads files in the order of their names: the session before the curves, results after
_SESSION = f"events.out.tfevents.0.session{SUFFIX}"
_NO_CURVES = "events.out.tfevents.1"
# the Trainer makes TensorBoard forget all points from step 0 on when it starts
_BEFORE_TRAINING = -1
_LOGGER = "TensorBoardLogger"
_FINISHED = "metrics.json"
_TEST = "test/"
_SPANS = ("train/", "val/", _TEST)
HIDDEN = (
    "A sweep shows the test span of its chosen trial only, once it is complete. The test figures "
    "of the others are in their own report.html and metrics.json."
)
_RUN_METRICS = ("fit_seconds", "steps_per_second", "nonfinite_steps", "rollbacks")


def start_session(run: Path, *, members: bool) -> None:
    """Write the chart layout and the settings of a run that starts or resumes.

    They are in a separate file, so that a run that fails or is killed is listed with its settings.
    Does nothing unless the run logs to TensorBoard.

    Args:
        run: the run folder, with its config.
        members: True for a population.
    """
    settings = RunFiles.read(run).config
    if not str(settings["logger"]["_target_"]).endswith(_LOGGER):
        return
    # imported here: slow, and needed only by runs that log to TensorBoard
    from robust_fin.evaluation.tensorboard import summaries

    overrides = read_overrides(run)
    hyperparameters = summaries.hyperparameters(settings, overrides)
    start = summaries.session_start(hyperparameters, overrides)
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    _remove_results(folder)
    values = [summaries.layout(members=members), *start]
    summaries.write_events(folder / _SESSION, {_BEFORE_TRAINING: values})


def read_overrides(run: Path) -> list[str]:
    """Read the command-line overrides that a run was started with; empty if not recorded."""
    path = run / ".hydra" / "overrides.yaml"
    return read_words(path)


def mark_failure(run: Path) -> contextlib.ExitStack:
    """Return a context that marks the run as failed in TensorBoard if its body raises.

    The error and the config are recorded. An interrupted run stays open, since it can be resumed.
    A rejected resume changes nothing.

    Args:
        run: the run folder.
    """
    context = contextlib.ExitStack()
    context.push(partial(_record_failure, run))
    return context


def _record_failure(run: Path, _: Any, error: BaseException | None, __: Any) -> None:
    if not isinstance(error, Exception) or isinstance(error, ResumeError):
        return
    if is_first() and not (run / _FINISHED).is_file():
        reason = f"{type(error).__name__}: {error}"
        texts = {"failure": reason, **_config_text(run)}
        write_results(run / FOLDER, texts=texts, failed=True)


def show_results(
    run: Path,
    predictions: pd.DataFrame,
    judgement: Judgement,
    *,
    metrics: Mapping[str, Any],
    curves: Curves,
    plots: Mapping[str, RenderedPlot],
    with_test: bool = True,
) -> None:
    """Write the results of a finished run next to its curves.

    Args:
        run: the run folder.
        predictions: its predictions table.
        judgement: of the run.
        metrics: contents of metrics.json.
        curves: logged during training.
        plots: of the report, by name.
        with_test: False leaves out everything that comes from the test span.
    """
    files = RunFiles.read(run)
    labelled = predictions[(predictions["model"] == NET) & predictions["outcome"].notna()]
    scores = labelled["score"].to_numpy(dtype=np.float64)
    scores = scores[np.isfinite(scores)]
    texts = {"verdict": verdict(judgement), **_config_text(run)}
    if files.provenance:
        texts["provenance"] = _provenance_text(files.provenance)
    levels = model_levels(judgement) | run_levels(metrics)
    histograms = {"test/score": scores} if scores.size else {}
    if not with_test:
        texts["verdict"], plots, histograms = HIDDEN, {}, {}
        levels = {k: value for k, value in levels.items() if k in metrics and _TEST not in k}
    write_results(
        run / FOLDER,
        levels=levels,
        last_step=max((int(curve.steps[-1]) for curve in curves.get("", {}).values()), default=0),
        texts=texts,
        plots=plots,
        histograms=histograms,
    )


def write_results(
    folder: Path,
    *,
    levels: Mapping[str, float] | None = None,
    last_step: int = 0,
    texts: Mapping[str, str] | None = None,
    plots: Mapping[str, RenderedPlot] | None = None,
    histograms: Mapping[str, Float[np.ndarray, " values"]] | None = None,
    failed: bool = False,
) -> None:
    """End the session of a run and write its results, in place of earlier results.

    Every tag starts with "report/".

    Args:
        folder: of the logger; nothing is written if it has no event files.
        levels: scalars, drawn as horizontal lines from step 0 to `last_step`.
        last_step: optimizer step.
        texts: Markdown.
        plots: of the report.
        histograms: values of each.
        failed: True if the run ended early.
    """
    after = _last_event_file(folder)
    if after is None:
        return
    # imported here: slow, and needed only by runs that log to TensorBoard
    from robust_fin.evaluation.tensorboard import summaries

    prefix = summaries.RESULTS
    values = [summaries.session_end(failed=failed)]
    values += [summaries.text(prefix + name, entry) for name, entry in (texts or {}).items()]
    values += [summaries.image(prefix + name, entry) for name, entry in (plots or {}).items()]
    values += [
        summaries.histogram(prefix + name, entry) for name, entry in (histograms or {}).items()
    ]
    lines = summaries.scalars({prefix + name: level for name, level in (levels or {}).items()})
    points = {0: [*values, *lines]} | ({last_step: lines} if last_step else {})
    _remove_results(folder)
    summaries.write_events(folder / f"{after}{SUFFIX}", points)


def _last_event_file(folder: Path) -> str | None:
    """Return the name of the last training file; a placeholder if only the session exists."""
    files = event_files(folder)
    if files:
        return files[-1].name
    return _NO_CURVES if (folder / _SESSION).exists() else None


def _remove_results(folder: Path) -> None:
    for path in folder.glob(f"*{SUFFIX}"):
        if path.name != _SESSION:
            path.unlink()


def model_levels(judgement: Judgement) -> dict[str, float]:
    """Return skill and rank IC of the net and of every baseline, without NaN."""
    levels = {}
    for name in ("skill", "rank_ic"):
        for model, result in {NET: judgement.net, **judgement.baselines}.items():
            estimate = result.intervals()[name].estimate
            if math.isfinite(estimate):
                levels[f"{name}/{model}"] = estimate
    return levels


def run_levels(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the spans and of the run, without null."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if value is not None and (name.startswith(_SPANS) or name in _RUN_METRICS)
    }


def _config_text(run: Path) -> dict[str, str]:
    path = run / "bundle" / "config.yaml"
    if not path.is_file():
        return {}
    return {"config": f"```yaml\n{path.read_text(encoding='utf-8')}```\n"}


def _provenance_text(provenance: Mapping[str, Any]) -> str:
    rows = (
        " | ".join(cell.replace("|", "\\|") for cell in row) for row in provenance_rows(provenance)
    )
    return "\n".join(["| data and code | |", "|---|---|", *rows]) + "\n"


def read_curves(folder: Path) -> Curves:
    """Read every scalar that the training logged; empty if there are no event files.

    If a resumed run logged a step again, the later value counts.

    Args:
        folder: of the logger, with one subfolder per further stage.
    """
    curves = {}
    for directory in [folder, *sorted(folder.glob("*/"))]:
        points: dict[str, dict[int, float]] = {}
        for path in event_files(directory):
            for tag, step, value in _read_scalars(path):
                points.setdefault(tag, {})[step] = value
        if points:
            stage = "" if directory == folder else directory.name
            curves[stage] = {tag: _curve(values) for tag, values in points.items()}
    return curves


def event_files(folder: Path) -> list[Path]:
    """Return the event files that the training wrote, oldest first."""
    paths = folder.glob("events.out.tfevents.*")
    return sorted(path for path in paths if not path.name.endswith(SUFFIX))


def _read_scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    # imported here: takes a second
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield value.tag, event.step, value.simple_value


def _curve(points: Mapping[int, float]) -> Curve:
    steps = sorted(points)
    values = [points[step] if math.isfinite(points[step]) else math.nan for step in steps]
    return Curve(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))
