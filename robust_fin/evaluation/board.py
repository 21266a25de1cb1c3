"""What a run was worth, among its curves in TensorBoard: figures, verdict, pictures and spread."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.evaluation.pictures import Drawn
from robust_fin.evaluation.scalars import OURS, Stages, event_files
from robust_fin.evaluation.significance import NET, Judgement
from robust_fin.evaluation.verdict import verdict

FOLDER = "tensorboard"
FIRST = "events.out.tfevents.0."  # a file of such a name is read before those of all curves
NO_CURVES = "events.out.tfevents.1"
FIGURES = "report/"  # what the tags of a run's figures begin with
_SPANS = ("train/", "val/", "test/")
_OTHERS = ("fit_seconds", "steps_per_second", "nonfinite_steps", "rollbacks")


@dataclass(frozen=True, slots=True)
class Shown:
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
    drawings: Mapping[str, Drawn] = field(default_factory=dict)
    spreads: Mapping[str, Float[np.ndarray, " values"]] = field(default_factory=dict)


def show_in_tensorboard(folder: Path, shown: Shown, *, failed: bool = False) -> None:
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
    from robust_fin.evaluation.board_events import histogram, image, scalars, text, write_events
    from robust_fin.evaluation.board_hparams import session_end

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
    drawings: Mapping[str, Drawn],
    curves: Stages,
    texts: Mapping[str, str],
) -> Shown:
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
    return Shown(
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
