"""Results that a training writes into its run folder, metrics.json last."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.numpy import save_file

from robust_fin.bundle.config import planted_rank_ic
from robust_fin.bundle.folder import finish_bundle
from robust_fin.bundle.predictions import (
    DailyLosses,
    Forecast,
    SpanForecast,
    member_spread,
    predictions_table,
)
from robust_fin.data.datamodule import BarDataModule
from robust_fin.evaluation.breakdowns import backtest_paths, path_metrics
from robust_fin.evaluation.report.report import REPORT, write_report
from robust_fin.evaluation.significance import Judgement, judge, judgement_metrics, model_metrics
from robust_fin.evaluation.tensorboard.dashboard import FOLDER, read_curves, show_results
from robust_fin.metrics import Yardstick, excess_kurtosis
from robust_fin.runtime.files import null_for_nan, replacing, write_json
from robust_fin.runtime.records import read_table
from robust_fin.training.baselines import BASELINE_NAMES, TRIVIAL_TAG, Baselines, trivial_objective
from robust_fin.training.fitting import Fit
from robust_fin.training.module import parameter_count
from robust_fin.training.settings import FitSettings

METRICS, PREDICTIONS, ROWS = "metrics.json", "predictions.parquet", "rows.json"
MEMBERS, MEMBER_SCORES = "members.json", "member_scores.safetensors"
VAL_LOSSES = "val_losses.parquet"
SWEEP, SWEEP_TABLE = "sweep.json", "sweep.parquet"  # in the folder of a sweep


@dataclass(frozen=True, slots=True)
class FoldRun:
    """One fold and its fits.

    Attributes:
        chosen: data of the fit on train, by which everything is chosen.
        chosen_fit: that fit, with the best weights on val.
        data: data of the final fit; after a refit its train includes val.
        fit: the final fit, by which test is scored.
    """

    chosen: BarDataModule
    chosen_fit: Fit
    data: BarDataModule
    fit: Fit


@dataclass(frozen=True, slots=True)
class FoldScores:
    """Forecasts of one fold; those of val are None without a val span.

    Attributes:
        val: forecast of val by the chosen weights.
        val_metrics: metrics of that forecast.
        val_losses: its losses by trading date; those of each member that was not frozen follow.
        test: forecast of test by the final weights.
    """

    val: SpanForecast | None
    val_metrics: Mapping[str, float] | None
    val_losses: pd.DataFrame | None
    test: SpanForecast


def score_fold(fold: FoldRun, *, number: int, keep: int) -> FoldScores:
    """Score val with the chosen weights, and test once with the final weights.

    Args:
        fold: the fold with its fits.
        number: number of the fold.
        keep: members of a population whose test scores are kept.
    """
    val = metrics = losses = None
    if fold.chosen.has_val():
        data, fitted = fold.chosen, fold.chosen_fit
        yardstick, daily = span_yardstick(data, "val"), span_daily_losses(data, "val")
        val = SpanForecast.score(fitted.nets, data.x("val"), yardstick, keep=0, daily=daily)
        metrics = yardstick.metrics(val.forecast.score)
        members = [k for k, member in enumerate(fitted.members) if member.frozen_at is None]
        by_member = dict(zip(members, val.losses, strict=True)) if members else {}
        losses = daily.table(daily.losses(val.forecast.score), by_member, fold=number)
    test = span_yardstick(fold.data, "test")
    scored = SpanForecast.score(fold.fit.nets, fold.data.x("test"), test, keep=keep)
    return FoldScores(val, metrics, losses, scored)


def span_yardstick(data: BarDataModule, span: str) -> Yardstick:
    """Return the yardstick of a span: targets, outcomes and the training constants."""
    target = data.fitted.target
    return Yardstick(
        data.target(span),
        data.outcome(span),
        train_median=target.median,
        train_mean=target.mean,
    )


def span_daily_losses(data: BarDataModule, span: str) -> DailyLosses:
    """Return the losses of a span by trading date, for any score."""
    dates = data.market.examples.trading_date[data.fitted.span(span)]
    return DailyLosses(data.target(span), dates, train_median=data.fitted.target.median)


def test_predictions(
    folds: Sequence[FoldRun], scores: Sequence[FoldScores], *, baselines: Baselines
) -> pd.DataFrame:
    """Return the predictions table: the net and every baseline on the same rows, by fold.

    A split that tests rows several times adds the column path, the backtest path of each row.
    """
    parts = []
    for number, (fold, scored) in enumerate(zip(folds, scores, strict=True)):
        examples, target = fold.data.market.examples, fold.data.fitted.target
        rows = fold.data.fitted.span("test")
        forecasts = {"net": scored.test.forecast}
        for name, score in baselines.forecasts(fold.data).items():
            forecasts[name] = Forecast.single(score)
        path = fold.data.fitted.fold.test_path()
        table = predictions_table(examples, rows, forecasts, target=target, fold=number)
        parts.append(table.assign(path=np.tile(path.astype(np.int32), len(forecasts))))
    table = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
    return table if table["path"].any() else table.drop(columns="path")


def write_results(
    config: DictConfig,
    settings: FitSettings,
    run: Path,
    folds: Sequence[FoldRun],
    *,
    fits: Sequence[Fit],
) -> tuple[dict[str, Any], Judgement]:
    """Score test once and write every result into the run folder, metrics.json last.

    Args:
        config: composed by Hydra.
        settings: settings of the fits.
        run: the run folder.
        folds: every fold with its fits.
        fits: one fit of each stage, for the numbers of steps and seconds.
    """
    keep = config.predictions.members
    scores = [score_fold(fold, number=k, keep=keep) for k, fold in enumerate(folds)]
    last = folds[-1]
    finish_bundle(
        run,
        nets=last.fit.nets,
        transform=last.data.fitted.transform,
        target=last.data.fitted.target,
        names=last.data.features,
    )
    predictions = test_predictions(folds, scores, baselines=instantiate(config.baselines))
    with replacing(run / PREDICTIONS) as part:
        predictions.to_parquet(part, index=False)
    losses = [part.val_losses for part in scores if part.val_losses is not None]
    if losses:
        with replacing(run / VAL_LOSSES) as part:
            pd.concat(losses, ignore_index=True).to_parquet(part, index=False)
    write_json(run / ROWS, row_ledgers(folds))
    if last.fit.members:
        write_members(run, folds, scores)
    judgement = judge(
        predictions,
        instrument=instantiate(config.instrument),
        accepted=last.data.market.bars.accepted,
        planted=planted_rank_ic(config.source),
    )
    metrics = run_metrics(settings, folds, fits) | judgement_metrics(judgement)
    metrics |= span_metrics(folds, scores, predictions)
    metrics |= path_metrics(backtest_paths(predictions))
    metrics |= member_metrics(scores) if last.fit.members else {}
    metrics = null_for_nan(metrics)
    publish(run, predictions, judgement, metrics=metrics, pictures=config.report.pictures)
    write_json(run / METRICS, metrics)
    return metrics, judgement


def publish(
    run: Path,
    predictions: pd.DataFrame,
    judgement: Judgement,
    *,
    metrics: dict[str, Any],
    pictures: bool,
    notes: Sequence[str] = (),
) -> Path:
    """Write report.html, and the same results into the run's TensorBoard folder.

    Args:
        run: the run folder.
        predictions: its predictions table.
        judgement: of that table.
        metrics: contents of metrics.json.
        pictures: draw plots, if matplotlib is installed.
        notes: paragraphs below the verdict.

    Returns:
        Path of report.html.
    """
    curves = read_curves(run / FOLDER)
    plots = write_report(
        run,
        predictions,
        judgement,
        metrics=metrics,
        curves=curves,
        pictures=pictures,
        notes=notes,
    )
    show_results(
        run,
        predictions,
        judgement,
        metrics=metrics,
        curves=curves,
        plots=plots,
        with_test=may_show_test(run),
    )
    return run / REPORT


def may_show_test(run: Path) -> bool:
    """Return False for a job of a sweep, unless the sweep's table says that it is the chosen one.

    Args:
        run: the run folder.
    """
    sweep = next((path for path in run.absolute().parents if (path / SWEEP).is_file()), None)
    if sweep is None:
        return True
    if not (sweep / SWEEP_TABLE).is_file():
        return False
    table = read_table(sweep / SWEEP_TABLE, {"chosen": "", "run": ""}, only=True)
    chosen = table.loc[table["chosen"].fillna(False).astype(bool), "run"]
    return run.absolute().relative_to(sweep).as_posix() in set(chosen)


def row_ledgers(folds: Sequence[FoldRun]) -> dict[str, Any]:
    """Return the row ledger, or one per fold if there are several."""
    ledgers = [fold.chosen.row_ledger().as_dict() for fold in folds]
    if len(ledgers) == 1:
        return ledgers[0]
    return {f"fold_{number}": ledger for number, ledger in enumerate(ledgers)}


def run_metrics(
    settings: FitSettings, folds: Sequence[FoldRun], fits: Sequence[Fit]
) -> dict[str, Any]:
    """Return the sizes, steps and seconds of the run."""
    ledgers = [fold.chosen.row_ledger() for fold in folds]
    spans = {f"{k}_rows": sum(ledger.spans[k] for ledger in ledgers) for k in ledgers[0].spans}
    sizes = {
        "parameters": parameter_count(folds[0].fit.nets.net),
        "rows": ledgers[0].rows_in,
        **spans,
        "fit_rows": sum(int(fold.data.fitted.fold.train.size) for fold in folds),
        "folds": len(folds),
        "members": max(1, sum(len(fold.fit.members) for fold in folds)),
        "train/outcome_excess_kurtosis": excess_kurtosis(folds[0].chosen.outcome("train")),
    }
    frozen = sum(m.frozen_at is not None for fold in folds for m in fold.fit.members)
    trivial = {TRIVIAL_TAG: trivial_objective(settings, [fold.chosen for fold in folds])}
    return sizes | fit_metrics(fits, frozen=frozen) | trivial | {"seed": settings.seed}


def fit_metrics(fits: Sequence[Fit], *, frozen: int) -> dict[str, float]:
    """Return the steps and seconds of all stages, and the number of non-finite steps."""
    stages = [fitted.summary for fitted in fits]
    seconds = sum(stage.seconds for stage in stages)
    steps_now = [stage.seconds * stage.steps_per_second for stage in stages]  # of this session
    metrics = {
        "steps": sum(stage.steps for stage in stages),
        "steps_per_second": sum(steps_now) / seconds,
        "fit_seconds": seconds,
        "nonfinite_steps": frozen + sum(stage.nonfinite_steps for stage in stages),
        "rollbacks": sum(stage.rollbacks for stage in stages),
        "train/objective": stages[-1].objective,
        "train/gradient_norm_max": max(stage.gradient_norm_max for stage in stages),
    }
    if fits[-1].members:
        per_step = [stage.member_steps / stage.steps for stage in stages]
        metrics |= {
            "members_frozen": frozen,
            "member_steps": sum(stage.member_steps for stage in stages),
            "member_steps_per_second": sum(map(operator.mul, per_step, steps_now)) / seconds,
        }
    return metrics


def span_metrics(
    folds: Sequence[FoldRun], scores: Sequence[FoldScores], predictions: pd.DataFrame
) -> dict[str, float]:
    """Return val/*, test/* and baseline/*; folds are pooled on test and averaged on val."""
    targets = [fold.data.fitted.target for fold in folds]
    models = model_metrics(
        predictions,
        train_median=[target.median for target in targets],
        train_mean=[target.mean for target in targets],
    )
    net = models.pop("net")
    val = [fold.val_metrics for fold in scores if fold.val_metrics is not None]
    figures = {f"val/{k}": _mean([metrics[k] for metrics in val]) for k in net}
    figures |= {f"test/{k}": value for k, value in net.items()}
    for name in BASELINE_NAMES:  # a baseline that was not asked for is null
        baseline = models.get(name, dict.fromkeys(net, math.nan))
        figures |= {f"baseline/{name}/{k}": value for k, value in baseline.items()}
    return figures


def member_metrics(scores: Sequence[FoldScores]) -> dict[str, float]:
    """Return members/SPAN/NAME_mean, _std, _low and _high over the members of all folds."""
    metrics: dict[str, float] = {}
    for span in ("val", "test"):
        parts = [part for fold in scores if (part := getattr(fold, span)) is not None]
        members = tuple(figures for part in parts for figures in part.members)
        if members:
            spread = member_spread(members)
            metrics |= {f"members/{span}/{name}": value for name, value in spread.items()}
    return metrics


def write_members(run: Path, folds: Sequence[FoldRun], scores: Sequence[FoldScores]) -> None:
    """Write members.json (settings and metrics per member), and the scores that are kept."""
    entries = []
    for number, (fold, scored) in enumerate(zip(folds, scores, strict=True)):
        val = iter(scored.val.members if scored.val is not None else ())
        test = iter(scored.test.members)
        for chosen, final in zip(fold.chosen_fit.members, fold.fit.members, strict=True):
            entry = {**final.settings, "fold": number, "chosen_step": chosen.chosen_step}
            frozen = final.frozen_at if chosen.frozen_at is None else chosen.frozen_at
            entry |= {"frozen_at": frozen, "gradient_norm_max": final.gradient_norm_max}
            figures = next(val, {}) if chosen.frozen_at is None else {}
            entry |= {f"val/{name}": value for name, value in figures.items()}
            figures = next(test) if final.frozen_at is None else {}
            entry |= {f"test/{name}": value for name, value in figures.items()}
            entries.append(null_for_nan(entry))
    write_json(run / MEMBERS, {"members": entries})
    kept = {f"fold_{number}": fold.test.kept for number, fold in enumerate(scores)}
    with replacing(run / MEMBER_SCORES) as part:
        save_file(kept, str(part))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
