"""Format the ablation: a table of all jobs, the effects of its four remedies, and a summary."""

from collections.abc import Mapping, Sequence

from remedy_effects import Effect, Remedies, effect, losses_by_date
from stability_jobs import Job, described, percent

TARGET, LOSS, WARMUP, BLOCKS = "rank target", "Huber loss", "warmup", "LayerNorm and residual"
REMEDIES = (TARGET, LOSS, WARMUP, BLOCKS)
ON_RANKS, ON_RETURNS = f"{LOSS}, on ranks", f"{LOSS}, on raw returns"
OFF = {
    TARGET: "the raw return",
    LOSS: "squared error",
    WARMUP: "none",
    BLOCKS: "neither",
    ON_RANKS: "squared error",
    ON_RETURNS: "squared error",
}


def remedies_of(job: Job) -> Remedies:
    """Return for each of REMEDIES whether the job uses it."""
    config = job.config
    return (
        config.target_scale["_target_"].endswith(".RankScale"),
        config.loss["_target_"].endswith(".huber"),
        config.schedule.warmup > 0,
        bool(config.model.layer_norm and config.model.residual),
    )


def ablation(jobs: Sequence[Job]) -> str:
    """Return the Markdown section of one data set."""
    found = {remedies_of(one): one for one in jobs}
    lines = [described(jobs), "", *table(found), ""]
    terms = losses_by_date(found)
    effects: dict[str, Effect] = {}
    for place, name in enumerate(REMEDIES):
        effects[name] = effect(found, place, terms=terms)
    for on, name in ((True, ON_RANKS), (False, ON_RETURNS)):
        given = {REMEDIES.index(TARGET): on}
        effects[name] = effect(found, REMEDIES.index(LOSS), terms=terms, given=given)
    effects = {name: one for name, one in effects.items() if one.members}
    lines += [*effect_table(effects), "", *words(found, effects)]
    return "\n".join(lines)


def table(found: Mapping[Remedies, Job]) -> list[str]:
    """Return a table with one row per combination, the one with all remedies first."""
    lines = [
        "| target | loss | warmup | blocks | members not finite | largest gradient norm "
        "| skill, mean of the members [2.5 %, 97.5 %] | skill of their mean forecast [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(found, reverse=True):
        target, loss, warmup, blocks = key
        names = (
            "rank" if target else "return",
            "Huber" if loss else "squared",
            f"{found[key].config.schedule.warmup}" if warmup else "none",
            "LayerNorm, residual" if blocks else "neither",
        )
        lines.append(f"| {' | '.join((*names, *_figures(found[key])))} |")
    return lines


def _figures(job: Job) -> list[str]:
    members = job.config.population.members or 1
    frozen = f"{job.nonfinite} of {members}"
    if not job.metrics:
        return [frozen, "-", f"all stopped by step {job.stopped_at}", "-"]
    norm = job.metrics["train/gradient_norm_max"]
    spread = (f"members/test/skill_{part}" for part in ("mean", "low", "high"))
    whole = (f"test/skill{part}" for part in ("", "_low", "_high"))
    skills = [_interval(*(job.metrics[name] for name in names)) for names in (spread, whole)]
    return [frozen, f"{norm:.3g}", *skills]


def effect_table(effects: Mapping[str, Effect]) -> list[str]:
    """Return a table with one row per remedy: with it minus without it, all else equal."""
    lines = [
        "| with | instead of | members not finite, with / without | largest gradient norm, ratio "
        "| skill, members [95 % over seeds] | skill of the mean forecast [95 % over dates] |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in effects.items():
        norm = (
            "-" if name == TARGET else f"{one.norm_ratio:.2f}"
        )  # the two targets have different units
        seeds, dates = _interval(*one.over_seeds), _interval(*one.over_dates)
        frozen = f"{one.frozen_with} / {one.frozen_without} of {one.members}"
        lines.append(f"| {name} | {OFF[name]} | {frozen} | {norm} | {seeds} | {dates} |")
    return lines


def words(found: Mapping[Remedies, Job], effects: Mapping[str, Effect]) -> list[str]:
    """Summarise the tables, one paragraph per finding."""
    frozen = sum(one.nonfinite for one in found.values())
    members = sum(one.config.population.members or 1 for one in found.values())
    lines = [_finite_words(effects, frozen=frozen, members=members), ""]
    lines += [f"- {_remedy_words(name, one)}" for name, one in effects.items() if name != LOSS]
    lines += [f"- job {job.folder.name}: {job.reason}" for job in found.values() if job.reason]
    return [*lines, "", _surprise(effects[ON_RANKS])] if ON_RANKS in effects else lines


def _finite_words(effects: Mapping[str, Effect], *, frozen: int, members: int) -> str:
    if not frozen:
        return (
            f"None of the {members} members met a step that was not finite, with or without any of "
            "the four: they are not what keeps these nets finite."
        )
    parts = [
        f"{effects[name].frozen_with} with and {effects[name].frozen_without} without {name}"
        for name in REMEDIES
        if name in effects
    ]
    return f"{frozen} of {members} members met a step that was not finite: {'; '.join(parts)}."


def _remedy_words(name: str, one: Effect) -> str:
    seeds, dates = _interval(*one.over_seeds), _interval(*one.over_dates)
    said = f"{name[0].upper()}{name[1:]} {verdict(one)}"
    return f"{said}: {seeds} of skill over seeds, {dates} over dates."


def verdict(one: Effect) -> str:
    """Say whether both intervals exclude 0, or only the one over seeds."""
    if one.helps or one.hurts:
        return "helps" if one.helps else "hurts"
    _, low, high = one.over_seeds
    if low > 0 or high < 0:
        return f"{'helps' if low > 0 else 'hurts'} on these dates, which others might not repeat"
    return "makes no difference that these runs can show"


def _surprise(one: Effect) -> str:
    """Compare Huber loss and squared error on ranks; Huber loss scores both."""
    size = f"{_interval(*one.over_seeds)} over seeds, {_interval(*one.over_dates)} over dates"
    given = f"the skill with Huber loss minus that with squared error is {size}"
    if one.hurts:
        return f"On ranks, squared error beats Huber loss, though Huber loss scores both: {given}."
    if one.helps:
        return f"On ranks, Huber loss beats squared error: {given}."
    return f"On ranks, neither of squared error and Huber loss is clearly better: {given}."


def _interval(value: float, low: float, high: float) -> str:
    return f"{percent(value)} [{100 * low:+.3f}, {100 * high:+.3f}]"
