"""The judgement of a test span: figures with intervals and paired differences to the baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.errors import BundleError
from robust_fin.evaluation.breakdowns import Calibration, Edge, Instrument, calibration, edge
from robust_fin.evaluation.intervals import (
    COLUMNS,
    DateBootstrap,
    DatedRows,
    Interval,
    Statistic,
    Sums,
    column,
    daily_ic_of,
    hit_rate_of,
    icir_of,
    rank_ic_of,
    skill_of,
    tie_share_of,
)
from robust_fin.metrics import huber_terms, span_metrics
from robust_fin.runtime.terminal import progress_bar


def model_metrics(
    predictions: pd.DataFrame, *, train_median: Sequence[float], train_mean: Sequence[float]
) -> dict[str, dict[str, float]]:
    """`robust_fin.metrics.span_metrics` of every model in the table, on its labelled rows.

    Args:
        predictions: with fold, model, score, target, outcome.
        train_median: of the target over the training rows of each fold, in rank units.
        train_mean: likewise.
    """
    labelled = predictions[predictions["outcome"].notna()]
    median, mean = np.array(train_median), np.array(train_mean)
    return {
        str(model): span_metrics(
            rows["score"].to_numpy(dtype="float64"),
            rows["target"].to_numpy(),
            rows["outcome"].to_numpy(),
            train_median=median[rows["fold"].to_numpy()],
            train_mean=mean[rows["fold"].to_numpy()],
        )
        for model, rows in labelled.groupby("model", sort=False)
    }


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
class PairedDifference:
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
    against: Mapping[str, PairedDifference]
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
    rows = DatedRows.from_frame(predictions, trivial=trivial)
    sums = rows.sums(predictions["score"].to_numpy(dtype=np.float64))
    return significance_from_sums(sums, date_bootstrap(sums, draws=draws, seed=seed))


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
    models = rows_by_model(predictions[predictions["outcome"].notna()])
    shared = models[NET]
    rows = DatedRows.from_frame(
        shared, trivial=models[CONSTANT]["score"].to_numpy(dtype=np.float64)
    )
    scores = {name: one["score"].to_numpy(dtype=np.float64) for name, one in models.items()}
    sums = {name: rows.sums(score) for name, score in scores.items()}
    samples = date_bootstrap(sums[NET], draws=draws, seed=seed)
    others = [name for name in models if name != NET]
    figures, against = dict[str, Significance](), dict[str, PairedDifference]()
    with progress_bar("intervals", total=len(models) + len(others)) as advance:
        for name, one in sums.items():
            figures[name] = significance_from_sums(one, samples)
            advance(1)
        for name in others:
            against[name] = paired_difference(sums[NET], sums[name], samples)
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


def rows_by_model(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
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


def date_bootstrap(sums: Sums, *, draws: int, seed: int) -> DateBootstrap:
    """Samples with blocks as long as the losses saved and the ranks shared want them, by date."""
    saved = column(sums, "trivial") - column(sums, "loss")
    return DateBootstrap.for_series(saved, column(sums, "xy"), draws=draws, seed=seed)


def significance_from_sums(sums: Sums, samples: DateBootstrap) -> Significance:
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


def paired_difference(one: Sums, other: Sums, samples: DateBootstrap) -> PairedDifference:
    """A model less another, from their sums on the same dates."""
    width = len(COLUMNS)
    both = np.concatenate([one, other], axis=1)

    def difference(figure: Statistic) -> Interval:
        return samples.interval(
            both, lambda drawn: figure(drawn[:, :width]) - figure(drawn[:, width:])
        )

    return PairedDifference(skill=difference(skill_of), rank_ic=difference(rank_ic_of))


@dataclass(frozen=True, slots=True)
class SkillPath:
    """Where each model stands after each date; the last value is its skill.

    Attributes:
        dates: trading dates of the test span, increasing.
        saved: by model, loss saved up to and with the date over the constant's whole loss.
    """

    dates: np.ndarray
    saved: Mapping[str, Float[np.ndarray, " dates"]]

    def month_ends(self) -> list[int]:
        """Places of the last date of each month."""
        months = self.dates.astype("datetime64[M]")
        return [int(place) for place in np.flatnonzero(np.append(months[1:] != months[:-1], True))]


def skill_path(models: Mapping[str, pd.DataFrame]) -> SkillPath:
    """The path of every model but the constant.

    Args:
        models: labelled rows of each, as `robust_fin.evaluation.significance.models_of` has them.
    """
    trivial = models[CONSTANT]["score"].to_numpy(dtype=np.float64)
    rows = DatedRows.from_frame(models[NET], trivial=trivial)
    constant = rows.added(huber_terms(rows.trivial, rows.target))
    saved = {}
    for name in (one for one in models if one != CONSTANT):
        score = models[name]["score"].to_numpy(dtype=np.float64)
        loss = rows.added(huber_terms(score, rows.target))
        saved[name] = np.cumsum(constant - loss) / constant.sum()
    return SkillPath(rows.dates, saved)


def judgement_metrics(found: Judgement) -> dict[str, float]:
    """Intervals of the net, paired differences to each baseline, calibration and edge.

    Returns:
        test/NAME with test/NAME_low and test/NAME_high, the ends of the 95 % interval;
        against/BASELINE/NAME, the net less the baseline, likewise; edge/NAME.
    """
    figures = {
        "test/tie_share": found.net.tie_share,
        "test/dates": found.net.dates,
        "test/block_dates": found.net.block,
        "test/calibration_error": found.calibration.error,
    }
    for name, interval in found.net.intervals().items():
        figures |= interval_metrics(f"test/{name}", interval)
    for name, one in found.against.items():
        figures |= interval_metrics(f"against/{name}/skill", one.skill)
        figures |= interval_metrics(f"against/{name}/rank_ic", one.rank_ic)
    return figures | edge_metrics(found.edge)


def edge_metrics(found: Edge) -> dict[str, float]:
    """What the first and the last decile earn, and the cost beside it."""
    figures: dict[str, float] = {}
    for unit in ("bp", "ticks"):
        for side in ("top", "bottom", "trade"):
            figures |= interval_metrics(f"edge/{side}_{unit}", getattr(found, f"{side}_{unit}"))
    return figures | {
        "edge/half_spread_ticks": found.half_spread_ticks,
        "edge/half_spread_bp": found.half_spread_bp,
        "edge/break_even_ticks": found.break_even_ticks,
        "edge/trades": found.trades,
    }


def interval_metrics(name: str, interval: Interval) -> dict[str, float]:
    """An estimate and the ends of its 95 % interval."""
    ends = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: interval.estimate} | ends
