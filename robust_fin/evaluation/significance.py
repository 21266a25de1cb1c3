"""Judge a test span: metrics with intervals, and paired differences to the baselines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

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

DRAWS = 2000
NET, CONSTANT = "net", "constant"
_MINUTE_LABEL = 3.0  # minutes; the next one-minute bar, entered at its close or its open
_KEYS = ("fold", "time", "contract")


def model_metrics(
    predictions: pd.DataFrame, *, train_median: Sequence[float], train_mean: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Compute `robust_fin.metrics.span_metrics` of every model on its labelled rows.

    Args:
        predictions: with columns fold, model, score, target and outcome.
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


@dataclass(frozen=True, slots=True)
class Significance:
    """Metrics of one model on a span, with intervals.

    Attributes:
        skill: Huber skill over the constant.
        rank_ic: Spearman correlation with the outcome, over all rows.
        daily_ic: the same within a trading date, mean over dates.
        icir: mean / standard deviation of the daily rank IC.
        hit_rate: share of rows with the right direction relative to the constant; rows whose
            forecast or outcome has no direction count half, so chance is 0.5.
        tie_share: share of rows without direction.
        dates: number of trading dates, without short dates.
        block: mean length of a bootstrap block, in dates.
        short_dates: number of short dates, see `robust_fin.evaluation.intervals.DatedRows`.
    """

    skill: Interval
    rank_ic: Interval
    daily_ic: Interval
    icir: Interval
    hit_rate: Interval
    tie_share: float
    dates: int
    block: float
    short_dates: int = 0

    def intervals(self) -> dict[str, Interval]:
        """Return the metrics that have an interval, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Interval)}


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Metrics of one model minus those of another, on the same rows and bootstrap samples.

    Attributes:
        skill: difference of the Huber skills over the constant.
        rank_ic: difference of the rank ICs; NaN if one of them ranks nothing.
    """

    skill: Interval
    rank_ic: Interval


@dataclass(frozen=True, slots=True)
class PlausibleLimits:
    """Figures beyond which a leak is more likely than skill.

    Attributes:
        rank_ic: about twice the largest rank IC measured without a leak on futures bars: 0.070 at
            one minute, 0.039 at 5 to 60 minutes.
        skill: several times the largest Huber skill, 0.34 % at one minute.
    """

    rank_ic: float
    skill: float

    @classmethod
    def for_labels(
        cls, label_minutes: float = math.nan, *, planted: float = 0.0
    ) -> "PlausibleLimits":
        """Return the limits for labels of some length.

        Args:
            label_minutes: from the start of a bar to the end of its label; NaN, where unknown,
                takes the wider limits.
            planted: rank IC planted in synthetic bars, by which the limit is raised; 0 for a
                market.
        """
        is_long = label_minutes > _MINUTE_LABEL
        rank_ic, skill = (0.1, 0.01) if is_long else (0.15, 0.015)
        return cls(rank_ic + planted, skill + (rank_ic + planted) ** 2 - rank_ic**2)

    def exceeded_by(self, net: Significance) -> bool:
        """Return True if an estimate is above its limit, and its interval not across 0."""
        pairs = ((net.rank_ic, self.rank_ic), (net.skill, self.skill))
        return any(figure.estimate > limit and not figure.low <= 0 for figure, limit in pairs)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Results of a net on its test span.

    Attributes:
        net: metrics of the net.
        baselines: metrics of each baseline.
        against: difference of the net to each baseline.
        calibration: of the net, by decile of its forecasts.
        edge: mean outcome of the net's highest and lowest decile.
        accepted: disagreements of the bars with their settings that the user accepted.
        limits: figures beyond which a leak is suspected.
    """

    net: Significance
    baselines: Mapping[str, Significance]
    against: Mapping[str, PairedDifference]
    calibration: Calibration
    edge: Edge
    accepted: tuple[str, ...] = ()
    limits: PlausibleLimits = field(default_factory=PlausibleLimits.for_labels)


def significance(
    predictions: pd.DataFrame,
    *,
    trivial: float | Float[np.ndarray, " rows"],
    draws: int = DRAWS,
    seed: int = 0,
) -> Significance:
    """Compute the metrics of one model, with intervals.

    Args:
        predictions: labelled rows of one model and span, with columns trading_date, score, target
            and outcome.
        trivial: constant forecast that skill is measured against, in rank units; one per row if
            rows come from several folds.
        draws: bootstrap samples.
        seed: of the bootstrap.
    """
    rows = DatedRows.from_frame(predictions, trivial=trivial)
    sums = rows.sums(predictions["score"].to_numpy(dtype=np.float64))
    samples = date_bootstrap(sums, draws=draws, seed=seed)
    return significance_from_sums(sums, samples, short_dates=rows.short_dates)


def judge(
    predictions: pd.DataFrame,
    *,
    instrument: Instrument | None = None,
    accepted: Sequence[str] = (),
    planted: float = 0.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> Judgement:
    """Judge the net of a predictions table against its baselines.

    Args:
        predictions: of a run; rows without outcome are left out.
        instrument: provides tick size and costs; None gives basis points only.
        accepted: disagreements of the bars with their settings that the user accepted; the verdict
            names them.
        planted: rank IC planted in synthetic bars, beyond which a leak is suspected; 0 for the bars
            of a market.
        draws: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        BundleError: the net or the constant is missing, or the models have different rows.
    """
    models = rows_by_model(predictions[predictions["outcome"].notna()])
    shared = models[NET]
    rows = DatedRows.from_frame(
        shared, trivial=models[CONSTANT]["score"].to_numpy(dtype=np.float64)
    )
    scores = {name: table["score"].to_numpy(dtype=np.float64) for name, table in models.items()}
    sums = {name: rows.sums(score) for name, score in scores.items()}
    samples = date_bootstrap(sums[NET], draws=draws, seed=seed)
    baselines = [name for name in models if name != NET]
    metrics, against = dict[str, Significance](), dict[str, PairedDifference]()
    with progress_bar("intervals", total=len(models) + len(baselines)) as advance:
        for name in models:
            metrics[name] = significance_from_sums(
                sums[name], samples, short_dates=rows.short_dates
            )
            advance(1)
        for name in baselines:
            against[name] = paired_difference(sums[NET], sums[name], samples)
            advance(1)
    close = shared["close"].to_numpy(dtype=np.float64) if "close" in shared else None
    codes = [str(code) for code in shared["contract"].unique()] if "contract" in shared else []
    traded = instrument if instrument is not None and instrument.trades(codes) else None
    return Judgement(
        net=metrics[NET],
        baselines={name: metrics[name] for name in baselines},
        against=against,
        calibration=calibration(rows, scores[NET], samples),
        edge=edge(rows, scores[NET], samples, close=close, instrument=traded, contracts=codes),
        accepted=tuple(accepted),
        limits=PlausibleLimits.for_labels(_label_minutes(shared), planted=planted),
    )


def _label_minutes(rows: pd.DataFrame) -> float:
    """Return the median time from the start of a bar to the end of its label; NaN if unknown."""
    if "label_end" not in rows:
        return math.nan
    return float((rows["label_end"] - rows["time"]).dt.total_seconds().median()) / 60


def rows_by_model(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split a predictions table by model.

    Raises:
        BundleError: the net or the constant is missing, or the models have different rows.
    """
    models = {str(name): rows for name, rows in predictions.groupby("model", sort=False)}
    for required in (NET, CONSTANT):
        if required not in models:
            raise BundleError(
                f"the predictions table has no rows of model {required}, only of "
                f"{', '.join(models) or 'none'}; results are not shown without their baseline"
            )
    keys = models[NET][[name for name in _KEYS if name in predictions]].reset_index(drop=True)
    for name, rows in models.items():
        if not rows[keys.columns].reset_index(drop=True).equals(keys):
            raise BundleError(
                f"the predictions table has other rows of {name} ({len(rows)}) than of the net "
                f"({len(keys)}); write it again with python -m robust_fin.train"
            )
    return models


def date_bootstrap(sums: Sums, *, draws: int, seed: int) -> DateBootstrap:
    """Draw samples with the block length of the daily loss savings and rank products."""
    saved = column(sums, "trivial") - column(sums, "loss")
    return DateBootstrap.for_series(saved, column(sums, "xy"), draws=draws, seed=seed)


def significance_from_sums(sums: Sums, samples: DateBootstrap, *, short_dates: int) -> Significance:
    """Compute the metrics of one model from its sums per date.

    Args:
        sums: per date, from `DatedRows.sums`.
        samples: of the same dates.
        short_dates: number of short dates, whose rows are in the sums of another date.
    """
    return Significance(
        skill=samples.interval(sums, skill_of),
        rank_ic=samples.interval(sums, rank_ic_of),
        daily_ic=samples.interval(sums, daily_ic_of),
        icir=samples.interval(sums, icir_of),
        hit_rate=samples.interval(sums, hit_rate_of),
        tie_share=float(tie_share_of(sums.sum(axis=0, keepdims=True))[0]),
        dates=len(sums),
        block=samples.block,
        short_dates=short_dates,
    )


def paired_difference(model: Sums, other: Sums, samples: DateBootstrap) -> PairedDifference:
    """Compute a model's metrics minus another's, from their sums on the same dates."""
    width = len(COLUMNS)
    both = np.concatenate([model, other], axis=1)

    def difference(metric: Statistic) -> Interval:
        return samples.interval(
            both, lambda drawn: metric(drawn[:, :width]) - metric(drawn[:, width:])
        )

    return PairedDifference(skill=difference(skill_of), rank_ic=difference(rank_ic_of))


@dataclass(frozen=True, slots=True)
class SkillPath:
    """Cumulative skill of each model by date; the last value is its skill.

    Attributes:
        dates: trading dates of the test span, increasing.
        saved: by model, loss saved up to and including each date / total loss of the constant.
    """

    dates: np.ndarray
    saved: Mapping[str, Float[np.ndarray, " dates"]]

    def month_ends(self) -> Int[np.ndarray, " months"]:
        """Return the index of the last date of each month."""
        months = self.dates.astype("datetime64[M]")
        return np.flatnonzero(np.append(months[1:] != months[:-1], True))


def skill_path(models: Mapping[str, pd.DataFrame]) -> SkillPath:
    """Compute the path of every model except the constant.

    Args:
        models: labelled rows of each model, from `rows_by_model`.
    """
    trivial = models[CONSTANT]["score"].to_numpy(dtype=np.float64)
    rows = DatedRows.from_frame(models[NET], trivial=trivial)
    constant = rows.sum_by_date(huber_terms(rows.trivial, rows.target))
    saved = {}
    for name in (name for name in models if name != CONSTANT):
        score = models[name]["score"].to_numpy(dtype=np.float64)
        loss = rows.sum_by_date(huber_terms(score, rows.target))
        saved[name] = np.cumsum(constant - loss) / constant.sum()
    return SkillPath(rows.dates, saved)


def judgement_metrics(judgement: Judgement) -> dict[str, float]:
    """Flatten a judgement for metrics.json.

    Returns:
        test/NAME with test/NAME_low and test/NAME_high, the ends of the 95 % interval;
        against/BASELINE/NAME, the net minus the baseline, likewise; edge/NAME.
    """
    net = judgement.net
    metrics = {
        "test/tie_share": net.tie_share,
        "test/dates": net.dates,
        "test/short_dates": net.short_dates,
        "test/block_dates": net.block,
        "test/calibration_error": judgement.calibration.error,
    }
    for name, interval in net.intervals().items():
        metrics |= interval_metrics(f"test/{name}", interval)
    for name, difference in judgement.against.items():
        metrics |= interval_metrics(f"against/{name}/skill", difference.skill)
        metrics |= interval_metrics(f"against/{name}/rank_ic", difference.rank_ic)
    edge = judgement.edge
    for name in (
        f"{side}_{unit}" for unit in ("bp", "ticks") for side in ("top", "bottom", "trade")
    ):
        metrics |= interval_metrics(f"edge/{name}", getattr(edge, name))
    return metrics | {
        "edge/half_spread_ticks": edge.half_spread_ticks,
        "edge/half_spread_bp": edge.half_spread_bp,
        "edge/round_trip_ticks": edge.round_trip_ticks,
        "edge/round_trip_bp": edge.round_trip_bp,
        "edge/break_even_ticks": edge.break_even_ticks,
        "edge/trades": edge.trades,
    }


def interval_metrics(name: str, interval: Interval) -> dict[str, float]:
    """Return the estimate as NAME and the ends of the interval as NAME_low and NAME_high."""
    ends = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: interval.estimate} | ends
