"""Intervals of skill and rank IC from a stationary bootstrap of whole trading dates."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from robust_fin.metrics import huber_terms

_DATE_SUMS = ("loss", "trivial", "n", "x", "y", "xx", "yy", "xy")


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; NaN where it could not be computed."""

    estimate: float
    low: float
    high: float

    def is_above(self, value: float) -> bool:
        """Whether the whole interval lies above `value`; False where it is NaN."""
        return self.low > value


@dataclass(frozen=True, slots=True)
class Significance:
    """What one model's forecasts of a span carry.

    Attributes:
        skill: Huber skill over the constant.
        rank_ic: Spearman correlation with the outcome.
        dates: trading dates the intervals rest on.
    """

    skill: Interval
    rank_ic: Interval
    dates: int


def significance(
    predictions: pd.DataFrame,
    *,
    trivial: float | Float[np.ndarray, " rows"],
    draws: int = 2000,
    seed: int = 0,
) -> Significance:
    """Skill and rank IC of one model, with intervals.

    Ranks are taken once and sums kept per trading date, so that a draw costs a weighted sum over
    dates. The resampling repeats runs of consecutive dates, because days are not independent.

    Args:
        predictions: rows of one model and span, with trading_date, score, target, outcome.
        trivial: the constant forecast skill is measured against, in rank units; one a row where
            rows are of several folds.
        draws: bootstrap samples.
        seed: of the resampling.

    Source: Politis and Romano (1994), The stationary bootstrap.
    """
    sums = _sums_by_date(predictions, trivial)
    weights = date_weights(len(sums), draws=draws, seed=seed)
    drawn = weights @ sums
    whole = sums.sum(axis=0, keepdims=True)
    return Significance(
        _interval(_skill(whole)[0], _skill(drawn)),
        _interval(_rank_ic(whole)[0], _rank_ic(drawn)),
        len(sums),
    )


def judged_table(predictions: pd.DataFrame) -> Significance:
    """Intervals of the net in a predictions table, skill against its constant, fold by fold."""
    trivial = predictions.loc[predictions["model"] == "constant", "score"].to_numpy("float64")
    return significance(predictions[predictions["model"] == "net"], trivial=trivial)


def date_weights(
    dates: int, *, draws: int, seed: int, block: float | None = None
) -> Float[np.ndarray, "draws dates"]:
    """How often each date occurs in each stationary-bootstrap sample.

    Args:
        dates: number of trading dates.
        draws: number of samples.
        seed: of the draws.
        block: mean length of a block in dates; None takes dates^(1/3).
    """
    rng = np.random.default_rng(seed)
    restart = rng.random((draws, dates)) < 1 / (block or max(1.0, dates ** (1 / 3)))
    restart[:, 0] = True
    start = rng.integers(dates, size=(draws, dates))
    place = np.arange(dates)
    began = np.maximum.accumulate(np.where(restart, place, 0), axis=1)
    picked = (np.take_along_axis(start, began, axis=1) + place - began) % dates
    flat = (picked + dates * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * dates).reshape(draws, dates).astype(np.float64)


def _sums_by_date(
    predictions: pd.DataFrame, trivial: float | Float[np.ndarray, " rows"]
) -> Float[np.ndarray, "dates 8"]:
    score = predictions["score"].to_numpy(dtype=np.float64)
    target = predictions["target"].to_numpy(dtype=np.float64)
    x = rankdata(score) - (score.size + 1) / 2
    y = rankdata(predictions["outcome"].to_numpy()) - (score.size + 1) / 2
    terms = (huber_terms(score, target), huber_terms(trivial, target), np.ones_like(x))
    moments = (x, y, x * x, y * y, x * y)
    table = pd.DataFrame(dict(zip(_DATE_SUMS, (*terms, *moments), strict=True)))
    return table.groupby(predictions["trading_date"].to_numpy()).sum().to_numpy()


def _skill(sums: Float[np.ndarray, "draws 8"]) -> Float[np.ndarray, " draws"]:
    return 1 - sums[:, 0] / sums[:, 1]


def _rank_ic(sums: Float[np.ndarray, "draws 8"]) -> Float[np.ndarray, " draws"]:
    n, x, y, xx, yy, xy = sums[:, 2:].T
    scale = (xx - x * x / n) * (yy - y * y / n)
    safe = np.where(scale > 0, scale, np.nan)
    return (xy - x * y / n) / np.sqrt(safe)


def _interval(estimate: float, drawn: Float[np.ndarray, " draws"]) -> Interval:
    if not np.isfinite(drawn).all():
        return Interval(float(estimate), np.nan, np.nan)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(estimate), float(low), float(high))


def verdict(found: Significance) -> str:
    """One sentence that says whether there was skill, from the intervals.

    Skill is claimed only where the whole interval of the skill over the constant is above 0.
    """
    skill, ic = found.skill, found.rank_ic
    skill_text = f"{_percent(skill.estimate)} [{_percent(skill.low)}, {_percent(skill.high)}]"
    ic_text = f"rank IC {ic.estimate:.4f} [{ic.low:.4f}, {ic.high:.4f}]"
    if found.dates < 2:
        return f"No skill can be claimed: the test span has {found.dates} trading date."
    if skill.is_above(0):
        return f"Skill {skill_text} over the constant, {ic_text}."
    if ic.is_above(0):
        return (
            f"No skill over the constant: {skill_text}; the forecasts do order the outcomes, "
            f"{ic_text}."
        )
    if np.isnan(ic.estimate):
        return f"No skill: {skill_text} over the constant; the forecast is constant."
    return f"No skill: {skill_text} over the constant, {ic_text}."


def _percent(share: float) -> str:
    return f"{100 * share:.3f} %"
