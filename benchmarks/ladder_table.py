"""Format the ladder: a table of all jobs and a summary."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from stability_jobs import AS_IT_IS, SPIKED, UNSCALED, Job, described, percent

STRESSES = (AS_IT_IS, SPIKED, UNSCALED)
HEADS = {
    AS_IT_IS: "unchanged",
    SPIKED: "0.1 % of bars spiked tenfold",
    UNSCALED: "features unscaled",
}


def ladder(jobs: Sequence[Job]) -> str:
    """Return the Markdown section of the ladder."""
    lines = [described(jobs), "", *table(jobs), "", *words(jobs)]
    return "\n".join(lines)


def table(jobs: Sequence[Job]) -> list[str]:
    """Return a table: a row per net and learning rate, a column per data set and precision."""
    columns = sorted({(STRESSES.index(one.stress), precision(one)) for one in jobs})
    heads = [f"{HEADS[STRESSES[stress]]}, {name}" for stress, name in columns]
    lines = [f"| hidden | parameters | lr | {' | '.join(heads)} |"]
    lines.append("|---|---|---|" + "---|" * len(heads))
    cells = {(*row_of(one), STRESSES.index(one.stress), precision(one)): one for one in jobs}
    for row in sorted({row_of(one) for one in jobs}):
        here = [cells.get((*row, *column)) for column in columns]
        parameters = {one.metrics["parameters"] for one in here if one and one.metrics}
        texts = [cell(one) if one else "" for one in here]
        count = f"{parameters.pop():,}" if parameters else "?"
        lines.append(f"| {list(row[1])} | {count} | {row[2]:g} | {' | '.join(texts)} |")
    return lines


def row_of(job: Job) -> tuple[int, tuple[int, ...], float]:
    """Return size, widths and learning rate, by which the rows are sorted."""
    hidden = tuple(job.config.model.hidden)
    size = sum(a * b for a, b in pairwise(hidden)) + sum(hidden)
    return size, hidden, float(job.config.optimizer.lr)


def precision(job: Job) -> str:
    """Return the precision of the Trainer."""
    return str(job.config.trainer.precision)


def cell(job: Job) -> str:
    """Format the number of non-finite steps and the skill."""
    if job.metrics:
        return f"{job.nonfinite}; {percent(job.metrics['test/skill'])}"
    return f"{job.nonfinite}; stopped at step {job.stopped_at}" if job.nonfinite else "failed"


def words(jobs: Sequence[Job]) -> list[str]:
    """Summarise the table, one paragraph per finding."""
    finished = [one for one in jobs if one.metrics]
    total = sum(one.nonfinite for one in jobs)
    lines = [
        f"{len(finished)} of {len(jobs)} runs finished. Steps that were not finite, in all runs "
        f"together: {total}."
    ]
    for one in jobs:
        if one.reason:
            lines.append(f"- job {one.folder.name}, {net_name(one)}: {first_sentence(one.reason)}")
    said = [_stress_words(finished, name) for name in (SPIKED, UNSCALED)]
    said += [_precision_words(finished), _rate_words(finished)]
    return [*lines, *(text for one in said if one for text in ("", one))]


def first_sentence(text: str) -> str:
    """Return the first sentence of a reason, without the remedy."""
    return text.split(". ")[0].rstrip(".") + "."


def net_name(job: Job) -> str:
    """Describe net, learning rate, precision and data."""
    hidden, rate = list(job.config.model.hidden), job.config.optimizer.lr
    return f"{hidden} at lr {rate:g} in {precision(job)}, {HEADS[job.stress]}"


def _stress_words(jobs: Sequence[Job], stress: str) -> str:
    pairs = paired(jobs, lambda one: one.stress, AS_IT_IS, stress)
    if not pairs:
        return ""
    before, after = (np.array([skill(one[side]) for one in pairs]) for side in (0, 1))
    what = {SPIKED: "With spiked bars", UNSCALED: "With unscaled features"}[stress]
    return (
        f"{what}, {int((after > 0).sum())} of {len(pairs)} runs have skill above 0; on unchanged "
        f"bars {int((before > 0).sum())} do. The median skill is "
        f"{percent(float(np.median(after)))}, compared with {percent(float(np.median(before)))}."
    )


def _precision_words(jobs: Sequence[Job]) -> str:
    names = sorted({precision(one) for one in jobs})
    if "32-true" not in names or len(names) != 2:
        return ""
    other = next(one for one in names if one != "32-true")
    pairs = paired(jobs, precision, "32-true", other)
    if not pairs:
        return ""
    apart = np.array([skill(b) - skill(a) for a, b in pairs])
    return (
        f"{other} instead of 32-true changes the skill by {percent(float(np.median(apart)))} in "
        f"the median, {percent(float(apart.min()))} to {percent(float(apart.max()))}."
    )


def _rate_words(jobs: Sequence[Job]) -> str:
    rates = sorted({float(one.config.optimizer.lr) for one in jobs})
    plain = [one for one in jobs if one.stress == AS_IT_IS]
    if not plain or len(rates) < 2:
        return ""
    parts = []
    for rate in rates:
        found = [skill(one) for one in plain if float(one.config.optimizer.lr) == rate]
        if found:
            parts.append(f"{percent(float(np.median(found)))} at lr {rate:g}")
    return f"On unchanged bars the median skill is {', '.join(parts)}."


def skill(job: Job) -> float:
    """Return the skill over the constant on test."""
    return float(job.metrics["test/skill"])


def paired(
    jobs: Sequence[Job], key: Callable[[Job], str], first: str, second: str
) -> list[tuple[Job, Job]]:
    """Return pairs of jobs that differ in a single property.

    Args:
        jobs: finished jobs.
        key: returns the property of a job.
        first: its value in the first job of each pair.
        second: its value in the second job.
    """

    def rest(job: Job) -> tuple[object, ...]:
        every = {"stress": job.stress, "precision": precision(job)}
        return (*row_of(job), *(v for v in every.values() if v != key(job)))

    seconds = {rest(one): one for one in jobs if key(one) == second}
    return [(a, seconds[rest(a)]) for a in jobs if key(a) == first and rest(a) in seconds]
