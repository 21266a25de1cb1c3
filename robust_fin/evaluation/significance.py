"""What forecasts of a span carry: each figure with its interval, each baseline with its difference.

Every interval of a run rests on the same samples of whole trading dates, so that differences are
paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.errors import BundleError
from robust_fin.evaluation.bootstrap import DateDraws, Interval, Statistic
from robust_fin.evaluation.calibration import Calibration, calibration
from robust_fin.evaluation.date_sums import (
    COLUMNS,
    DatedRows,
    Sums,
    column,
    daily_ic_of,
    hit_rate_of,
    icir_of,
    rank_ic_of,
    skill_of,
    tie_share_of,
)
from robust_fin.evaluation.edge import Edge, Instrument, edge
from robust_fin.progress import shown_progress

DRAWS = 2000
NET, CONSTANT = "net", "constant"
_KEYS = ("fold", "time", "contract")


@dataclass(frozen=True, slots=True)
class Significance:
    """What one model's forecasts of a span carry.

    Attributes:
        skill: Huber skill over the constant.
        rank_ic: Spearman correlation with the outcome, over all rows.
        daily_ic: the same within a trading date, mean over dates.
        icir: mean over standard deviation of the daily one.
        hit_rate: share of rows whose direction was right, against the constant's; a row where the
            forecast or the outcome has none counts half, so that a coin scores 0.5.
        tie_share: share of such rows.
        dates: trading dates the intervals rest on.
        block: mean length of the resampled blocks, in dates.
    """

    skill: Interval
    rank_ic: Interval
    daily_ic: Interval
    icir: Interval
    hit_rate: Interval
    tie_share: float
    dates: int
    block: float

    def intervals(self) -> dict[str, Interval]:
        """Figures by name."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Interval)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model less another, on the same rows and samples.

    Attributes:
        skill: difference of the Huber skills over the constant.
        rank_ic: difference of the rank ICs; NaN against a model that ranks nothing.
    """

    skill: Interval
    rank_ic: Interval


@dataclass(frozen=True, slots=True)
class Judgement:
    """All that a predictions table says of a net.

    Attributes:
        net: what its forecasts carry.
        baselines: the same of each baseline.
        against: the net less each baseline.
        calibration: of the net, by decile of its forecasts.
        edge: what the net's first and last decile earn.
    """

    net: Significance
    baselines: Mapping[str, Significance]
    against: Mapping[str, Comparison]
    calibration: Calibration
    edge: Edge


def significance(
    predictions: pd.DataFrame,
    *,
    trivial: float | Float[np.ndarray, " rows"],
    draws: int = DRAWS,
    seed: int = 0,
) -> Significance:
    """Every figure of one model, with intervals.

    Args:
        predictions: labelled rows of one model and span, with trading_date, score, target, outcome.
        trivial: the constant forecast skill is measured against, in rank units; one a row where
            rows are of several folds.
        draws: bootstrap samples.
        seed: of the resampling.
    """
    rows = DatedRows.of(predictions, trivial=trivial)
    sums = rows.sums(predictions["score"].to_numpy(dtype=np.float64))
    return figures_of(sums, date_draws(sums, draws=draws, seed=seed))


def judge(
    predictions: pd.DataFrame,
    *,
    instrument: Instrument | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Judgement:
    """Judge the net of a predictions table against its baselines.

    Args:
        predictions: the table of a run; rows whose outcome is not known yet are left out.
        instrument: what a tick is, and what trading costs; None gives basis points alone.
        draws: bootstrap samples.
        seed: of the resampling.

    Raises:
        BundleError: the table has no net or no constant, or its models differ in their rows.
    """
    models = models_of(predictions[predictions["outcome"].notna()])
    shared = models[NET]
    rows = DatedRows.of(shared, trivial=models[CONSTANT]["score"].to_numpy(dtype=np.float64))
    scores = {name: one["score"].to_numpy(dtype=np.float64) for name, one in models.items()}
    sums = {name: rows.sums(score) for name, score in scores.items()}
    samples = date_draws(sums[NET], draws=draws, seed=seed)
    others = [name for name in models if name != NET]
    figures, against = dict[str, Significance](), dict[str, Comparison]()
    with shown_progress("intervals", total=len(models) + len(others)) as advance:
        for name, one in sums.items():
            figures[name] = figures_of(one, samples)
            advance(1)
        for name in others:
            against[name] = less(sums[NET], sums[name], samples)
            advance(1)
    close = shared["close"].to_numpy(dtype=np.float64) if "close" in shared else None
    return Judgement(
        net=figures[NET],
        baselines={name: figures[name] for name in others},
        against=against,
        calibration=calibration(rows, scores[NET], samples),
        edge=edge(rows, scores[NET], samples, close=close, instrument=_traded(instrument, shared)),
    )


def _traded(instrument: Instrument | None, rows: pd.DataFrame) -> Instrument | None:
    """The instrument, where the rows are of its contracts."""
    if instrument is None or "contract" not in rows:
        return None
    codes = [str(code) for code in rows["contract"].unique()]
    return instrument if instrument.trades(codes) else None


def models_of(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each model.

    Raises:
        BundleError: there is no net or no constant, or the models differ in their rows.
    """
    models = {str(name): rows for name, rows in predictions.groupby("model", sort=False)}
    for needed in (NET, CONSTANT):
        if needed not in models:
            raise BundleError(
                f"the predictions table has no rows of model {needed}, only of "
                f"{', '.join(models) or 'none'}; a figure without its baseline is not shown"
            )
    keys = models[NET][[name for name in _KEYS if name in predictions]].reset_index(drop=True)
    for name, rows in models.items():
        if not rows[keys.columns].reset_index(drop=True).equals(keys):
            raise BundleError(
                f"the predictions table has other rows of {name} ({len(rows)}) than of the net "
                f"({len(keys)}); write it anew with python -m robust_fin.train"
            )
    return models


def date_draws(sums: Sums, *, draws: int, seed: int) -> DateDraws:
    """Samples with blocks as long as the losses saved and the ranks shared want them, by date."""
    saved = column(sums, "trivial") - column(sums, "loss")
    return DateDraws.of(saved, column(sums, "xy"), draws=draws, seed=seed)


def figures_of(sums: Sums, samples: DateDraws) -> Significance:
    """Every figure of one model, from its sums."""
    return Significance(
        skill=samples.interval(sums, skill_of),
        rank_ic=samples.interval(sums, rank_ic_of),
        daily_ic=samples.interval(sums, daily_ic_of),
        icir=samples.interval(sums, icir_of),
        hit_rate=samples.interval(sums, hit_rate_of),
        tie_share=float(tie_share_of(sums.sum(axis=0, keepdims=True))[0]),
        dates=len(sums),
        block=samples.block,
    )


def less(one: Sums, other: Sums, samples: DateDraws) -> Comparison:
    """A model less another, from their sums on the same dates."""
    width = len(COLUMNS)
    both = np.concatenate([one, other], axis=1)

    def difference(figure: Statistic) -> Interval:
        return samples.interval(
            both, lambda drawn: figure(drawn[:, :width]) - figure(drawn[:, width:])
        )

    return Comparison(skill=difference(skill_of), rank_ic=difference(rank_ic_of))
