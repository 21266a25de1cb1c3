"""Compute the effect of a remedy, all else equal: paired differences with two intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student
from stability_jobs import Job

from robust_fin.evaluation.intervals import date_weights
from robust_fin.metrics import huber_terms
from robust_fin.runs.results import PREDICTIONS

Remedies = tuple[bool, ...]
Terms = Mapping[Remedies, pd.DataFrame]
Triple = tuple[float, float, float]
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Effect:
    """Difference with minus without a remedy, averaged over the settings of the other remedies.

    Attributes:
        over_seeds: difference of the members' skill, with its 95 % interval over seeds (Student-t);
            it covers other seeds on the same dates.
        over_dates: difference of the mean forecasts' skill, with its 95 % interval over trading
            dates (stationary bootstrap); it covers other periods.
        norm_ratio: geometric mean of the largest gradient norm with it over that without it.
        frozen_with: members frozen at a non-finite step, with the remedy.
        frozen_without: the same without it.
        members: number of members on each side.
    """

    over_seeds: Triple
    over_dates: Triple
    norm_ratio: float
    frozen_with: int
    frozen_without: int
    members: int

    @property
    def helps(self) -> bool:
        """True if both intervals lie above 0."""
        return self.over_seeds[1] > 0 and self.over_dates[1] > 0

    @property
    def hurts(self) -> bool:
        """True if both intervals lie below 0."""
        return self.over_seeds[2] < 0 and self.over_dates[2] < 0


def effect(
    found: Mapping[Remedies, Job],
    place: int,
    *,
    terms: Terms,
    given: Mapping[int, bool] | None = None,
) -> Effect:
    """Compare the jobs that differ in a single remedy.

    Args:
        found: jobs by their remedies.
        place: index of the remedy in the key.
        terms: result of `losses_by_date`.
        given: index of another remedy -> whether it is on in the compared jobs.
    """
    wanted = [k for k in found if all(k[at] == on for at, on in (given or {}).items())]
    keys = [(key, _without(key, place)) for key in wanted if key[place]]
    keys = [(on, off) for on, off in keys if off in found]
    pairs = [(found[on], found[off]) for on, off in keys]
    norms = [
        math.log(on.metrics["train/gradient_norm_max"] / off.metrics["train/gradient_norm_max"])
        for on, off in pairs
        if on.metrics and off.metrics
    ]
    both = [(terms[on], terms[off]) for on, off in keys if on in terms and off in terms]
    return Effect(
        over_seeds(pairs),
        over_dates(both),
        math.exp(float(np.mean(norms))) if norms else math.nan,
        sum(on.nonfinite for on, _ in pairs),
        sum(off.nonfinite for _, off in pairs),
        sum(on.config.population.members or 1 for on, _ in pairs),
    )


def over_seeds(pairs: list[tuple[Job, Job]]) -> Triple:
    """Return the mean over seeds of the mean over pairs, with a Student-t interval.

    Members frozen in either job of a pair are excluded.
    """
    apart: dict[int, list[float]] = {}
    for on, off in pairs:
        with_it, without = skills(on), skills(off)
        for seed in with_it.keys() & without.keys():
            apart.setdefault(seed, []).append(with_it[seed] - without[seed])
    values = np.array([np.mean(one) for one in apart.values()])
    if values.size == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if values.size == 1:
        return mean, math.nan, math.nan
    half = student.ppf(0.975, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size)
    return mean, mean - float(half), mean + float(half)


def skills(job: Job) -> dict[int, float]:
    """Return the test skill of every member that was not frozen, by seed."""
    return {
        int(one["seed"]): float(one["test/skill"])
        for one in job.members
        if one.get("test/skill") is not None
    }


def losses_by_date(found: Mapping[Remedies, Job]) -> dict[Remedies, pd.DataFrame]:
    """Sum the Huber loss of the mean forecast and of the constant by trading date.

    Args:
        found: jobs by their remedies; unfinished jobs are ignored.
    """
    return {key: _by_date(one) for key, one in found.items() if one.metrics}


def _by_date(job: Job) -> pd.DataFrame:
    columns = ["trading_date", "model", "score", "target"]
    rows = pd.read_parquet(job.folder / PREDICTIONS, columns=columns)
    score, target = (rows[name].to_numpy(dtype=np.float64) for name in ("score", "target"))
    rows = rows.assign(loss=huber_terms(score, target))
    sums = rows.groupby(["trading_date", "model"])["loss"].sum().unstack()
    return sums[["net", "constant"]]


def over_dates(pairs: list[tuple[pd.DataFrame, pd.DataFrame]]) -> Triple:
    """Return the mean skill difference over pairs, with its interval over trading dates."""
    if not pairs:
        return math.nan, math.nan, math.nan
    saved = np.mean([(off["net"] - on["net"]).to_numpy() for on, off in pairs], axis=0)
    trivial = pairs[0][0]["constant"].to_numpy()
    drawn = date_weights(trivial.size, draws=_DRAWS, seed=0)
    low, high = np.percentile((drawn @ saved) / (drawn @ trivial), [2.5, 97.5])
    return float(saved.sum() / trivial.sum()), float(low), float(high)


def _without(key: Remedies, place: int) -> Remedies:
    return (*key[:place], False, *key[place + 1 :])
