"""What a report says of the training: curves, gradient norms and members."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from robust_fin.evaluation.cells import number, share
from robust_fin.evaluation.markup import PlainTable
from robust_fin.evaluation.pictures import Picture
from robust_fin.evaluation.plots import draw_losses, draw_members, draw_norms
from robust_fin.evaluation.scalars import Curve, Stages
from robust_fin.evaluation.section import Section

_RUN_ROWS = (
    "parameters", "rows", "train_rows", "val_rows", "test_rows", "folds", "members",
    "members_frozen", "steps", "steps_per_second", "member_steps", "member_steps_per_second",
    "fit_seconds", "nonfinite_steps", "rollbacks", "train/objective", "train/objective_trivial",
    "train/gradient_norm_max", "seed",
)  # fmt: skip
_NORM, _LARGEST_NORM = "train/gradient_norm", "members/train/gradient_norm_max"
_HEADINGS = {"skill": "skill on test, %", "rank_ic": "rank IC on test"}
_POINTS = 8  # of a curve, in its table
Spread = Mapping[str, Float[np.ndarray, " members"]]


def training_section(stages: Stages, metrics: Mapping[str, Any], *, clip: float | None) -> Section:
    """Loss against the constant's, and gradient norms.

    Args:
        stages: curves of the run.
        metrics: of the run.
        clip: gradient norm above which a step is clipped; None where none is.
    """
    rows = [[name, number(metrics[name])] for name in _RUN_ROWS if name in metrics]
    facts = PlainTable("The training in figures", ("", "value"), rows)
    parts = [_losses(stages, metrics), _norms(stages, clip)]
    made = [one for one in parts if one is not None]
    said = tuple(one.seen for one in made)
    return Section(
        "training",
        "Training",
        said or ("The run kept no curves: it had no TensorBoard logger.",),
        (facts,),
        tuple(made),
    )


def _losses(stages: Stages, metrics: Mapping[str, Any]) -> Picture | None:
    """Objective and val loss of the fit that choices were made on."""
    own = stages.get("", {})
    curves, trivial = {}, {}
    if "train/objective" in own:
        curves["objective on train"] = own["train/objective"]
        flat = metrics.get("train/objective_trivial")
        if flat is not None:
            steps = own["train/objective"].steps
            trivial["objective on train"] = Curve(steps, np.full(steps.size, float(flat)))
    if "val/loss" in own:
        curves["loss on val"] = own["val/loss"]
        if "val/loss_trivial" in own:
            trivial["loss on val"] = own["val/loss_trivial"]
    if not curves:
        return None
    seen = " ".join(_seen_loss(name, curve, trivial.get(name)) for name, curve in curves.items())
    named = curves | {f"{name}, constant": curve for name, curve in trivial.items()}
    return Picture(
        "losses",
        "Loss against the constant's",
        "Below the dashed line the net is better than a constant: on train the better of median "
        "and mean, on val the training median. The objective is what was minimised, with dropout; "
        "the loss on val is Huber's.",
        seen,
        curve_table("Loss over training", named),
        partial(draw_losses, curves=curves, trivial=trivial),
    )


def _seen_loss(name: str, curve: Curve, trivial: Curve | None) -> str:
    first, last = curve.values[0], curve.values[-1]
    words = (
        f"{name.capitalize()} goes from {first:.6g} to {last:.6g} in {curve.steps[-1] + 1:,} steps"
    )
    return (
        f"{words}." if trivial is None else f"{words}; the constant's is {trivial.values[-1]:.6g}."
    )


def _norms(stages: Stages, clip: float | None) -> Picture | None:
    """Gradient norms of every stage; of a population the mean and the largest member's."""
    curves = {}
    for stage, own in stages.items():
        for tag, spoken in ((_NORM, "norm"), (_LARGEST_NORM, "largest")):
            if tag in own:
                curves[f"{spoken}, {stage or 'first fit'}"] = own[tag]
    if not curves:
        return None
    values = np.concatenate([one.values for one in curves.values()])
    seen = (
        f"Gradient norms at the logged steps: median {np.nanmedian(values):.4g}, largest "
        f"{np.nanmax(values):.4g}"
        + ("; none was clipped by norm." if clip is None else f"; clipped above {clip:g}.")
    )
    return Picture(
        "norms",
        "Gradient norms",
        "Norm of the whole gradient before clipping, on a logarithmic scale; of a population the "
        "mean, and the largest of the members.",
        seen,
        curve_table("Gradient norms over training", curves),
        partial(draw_norms, curves=curves, clip=clip),
    )


def curve_table(caption: str, curves: Mapping[str, Curve]) -> PlainTable:
    """A few points of each curve, evenly spread."""
    rows = []
    for name, curve in curves.items():
        places = np.unique(np.linspace(0, curve.steps.size - 1, _POINTS).round().astype(int))
        rows += [[name, f"{curve.steps[at] + 1:,}", f"{curve.values[at]:.6g}"] for at in places]
    return PlainTable(
        f"{caption}, up to {_POINTS} points a curve", ("curve", "step", "value"), rows
    )


def members_section(
    members: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]
) -> Section | None:
    """How much of the result is the seed; None for a single net.

    Args:
        members: as members.json has them.
        metrics: of the run.
    """
    spread = {name: member_values(members, f"test/{name}") for name in _HEADINGS}
    if len(members) < 2 or not all(values.size > 1 for values in spread.values()):
        return None
    frozen = sum(one.get("frozen_at") is not None for one in members)
    skills, ics = spread["skill"], spread["rank_ic"]
    seen = (
        f"{len(members)} members, {frozen} frozen. Skill on test from {share(float(skills.min()))} "
        f"to {share(float(skills.max()))}, of their mean forecast {share(metrics['test/skill'])}; "
        f"rank IC from {ics.min():.4f} to {ics.max():.4f}, of the mean forecast "
        f"{number(metrics['test/rank_ic'])}."
    )
    scaled = {"skill": 100.0, "rank_ic": 1.0}
    picture = Picture(
        "members",
        "Spread of the members",
        "Bars count members, each stroke below is one; the dashed line is their mean forecast.",
        seen,
        spread_table(members),
        partial(
            draw_members,
            spread={_HEADINGS[k]: scaled[k] * values for k, values in spread.items()},
            mean={_HEADINGS[k]: scaled[k] * float(metrics[f"test/{k}"] or 0.0) for k in spread},
        ),
    )
    return Section("members", "Members", (seen,), pictures=(picture,))


def spread_table(members: Sequence[Mapping[str, Any]]) -> PlainTable:
    """Where the members' figures lie, span by span."""
    rows = []
    for span in ("val", "test"):
        for name in ("skill", "rank_ic"):
            values = member_values(members, f"{span}/{name}")
            if values.size < 2:
                continue
            set_as = share if name == "skill" else number
            low, middle, high = np.percentile(values, [2.5, 50, 97.5])
            shown = (
                values.mean(),
                values.std(ddof=1),
                values.min(),
                low,
                middle,
                high,
                values.max(),
            )
            rows.append([f"{name}, {span}", *(set_as(float(one)) for one in shown)])
    columns = ("", "mean", "std", "least", "2.5 %", "median", "97.5 %", "greatest")
    return PlainTable("Figures of the single members", columns, rows)


def member_values(members: Sequence[Mapping[str, Any]], name: str) -> Float[np.ndarray, " members"]:
    """One figure of every member that has it."""
    return np.array([one[name] for one in members if one.get(name) is not None], dtype=np.float64)
