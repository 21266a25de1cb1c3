"""The story of one training: from bars to metrics.json in the run folder."""

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle.folder import BUNDLE, start_bundle, write_config
from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.data.folds import cut_folds
from robust_fin.data.targets import KEPT
from robust_fin.evaluation.report.report import REPORT
from robust_fin.evaluation.tables import (
    judgement_tables,
    metric_tables,
    summary_table,
    target_table,
)
from robust_fin.evaluation.tensorboard.dashboard import mark_failure, start_session
from robust_fin.evaluation.verdict import verdict
from robust_fin.ledger.record import record_trial
from robust_fin.runs.job import Job, reason_kept
from robust_fin.runs.results import METRICS, FoldRun, write_results
from robust_fin.runs.schema import get_verbosity
from robust_fin.runs.settings import check_ranges, fit_settings, with_absolute_ledger
from robust_fin.runtime.atomic_files import explain_full_disk
from robust_fin.runtime.rank_info import first_local_rank_first, is_first, require_equal_on_ranks
from robust_fin.runtime.terminal import DETAILS, RESULT, hide_progress, show, verbosity
from robust_fin.training.fitting import Fit, FitPlan, fit
from robust_fin.training.population.fit import fit_population
from robust_fin.training.population.members import is_population
from robust_fin.training.recovery.checkpoint_files import (
    can_resume_refit,
    check_same_bars,
    prepare_resume,
    remove_checkpoints,
)
from robust_fin.training.settings import FitSettings

MODULE = "robust_fin.train"  # whatever name this process runs it under


def train(config: DictConfig, run: Path, *, resume: bool = False) -> dict[str, Any]:
    """The whole job: bars to metrics.json in the run folder.

    Args:
        config: composed by Hydra, or read from the bundle of the run that is resumed.
        run: the run folder.
        resume: go on from the checkpoints in `run`.

    Returns:
        What metrics.json holds.
    """
    if is_first() and not resume:
        (run / METRICS).unlink(missing_ok=True)
    check_ranges(config)
    config = with_absolute_ledger(config)
    settings = fit_settings(config)
    with first_local_rank_first():
        if is_first() and resume:
            prepare_resume(run, max_epochs=config.trainer.max_epochs)
        elif is_first():
            write_config(run, config)
    torch.set_num_threads(config.threads)
    with first_local_rank_first():
        folds = load_folds(config)
    bars = folds[0].market.bars
    require_equal_on_ranks(f"{bars.rows_in} rows with sha256 {bars.sha256}", what="the bars")
    if resume:
        check_same_bars(run, bars)
    if is_first():
        (run / METRICS).unlink(missing_ok=True)  # its presence would say that the run is finished
        if not resume:
            remove_checkpoints(run)
        start_bundle(run, config, bars=bars)
        start_session(run, members=is_population(settings.population, folds=len(folds)))
        show(target_table(folds[0].outcome("train"), folds[0].target("train")))
    plan = FitPlan(run, stage="", max_steps=None, resume=resume)
    chosen = final = fit_folds(settings, folds, plan)
    final_folds, stages = folds, [chosen[0]]
    if config.split.refit:
        final_folds = [one.for_refit() for one in folds]
        goes_on = resume and can_resume_refit(run)
        final = fit_folds(
            settings, final_folds, refit_plan(run, chosen, folds, final_folds, resume=goes_on)
        )
        stages.append(final[0])
    if not is_first():
        return {}
    every = zip(folds, chosen, final_folds, final, strict=True)
    runs = [FoldRun(*one) for one in every]
    metrics, tested = write_results(config, settings, run, runs, fits=stages)
    title = f"{config.name} on {bars.origin}"
    show(*metric_tables(metrics, title=title), *judgement_tables(tested), level=DETAILS)
    show(summary_table(metrics, tested, title=title), record_trial(run))
    show_places(run)
    if config.debug.labels != KEPT:
        show(f"This is a control: the net was trained on {config.debug.labels} labels.")
    show(verdict(tested), level=RESULT)
    return metrics


def show_places(run: Path) -> None:
    """Where to look next: three paths."""
    show(
        f"report       {run / REPORT}",
        f"TensorBoard  tensorboard --logdir {run}",
        f"bundle       {run / BUNDLE}",
    )


def look(config: DictConfig, run: Path) -> None:
    """A debugging run: no result comes of it, and no trial."""
    (run / METRICS).unlink(missing_ok=True)
    check_ranges(config)
    config = with_absolute_ledger(config)
    write_config(run, config)
    torch.set_num_threads(config.threads)
    data = load_data(config)
    start_bundle(run, config, bars=data.market.bars)
    instantiate(config.debug.check).look(config, data, run)


def fit_folds(
    settings: FitSettings, folds: Sequence[BarDataModule], plan: FitPlan
) -> tuple[Fit, ...]:
    """One net on one fold, or the members of all folds in one run."""
    if is_population(settings.population, folds=len(folds)):
        return fit_population(settings, folds, plan)
    (data,) = folds
    return (fit(settings, data, plan),)


def load_folds(config: DictConfig) -> list[BarDataModule]:
    """Bars, features, labels, and every fold of the split."""
    features, split = instantiate(config.features), instantiate(config.split)
    source, target, cache = (instantiate(config[key]) for key in ("source", "target", "cache"))
    market = Market.read(source, features=features, target=target, cache=cache)
    return [
        BarDataModule(
            market,
            features=features,
            transform=instantiate(config.transform),
            split=split,
            scale=instantiate(config.target_scale),
            batch_size=config.batch_size,
            score_batch_size=config.score_batch_size,
            seed=config.seed,
            cache=cache,
            number=number,
            labels=config.debug.labels,
        )
        for number in range(len(cut_folds(market.examples, split).folds))
    ]


def load_data(config: DictConfig) -> BarDataModule:
    """The first fold; the only one of a holdout."""
    return load_folds(config)[0]


def refit_plan(
    run: Path,
    chosen: Sequence[Fit],
    folds: Sequence[BarDataModule],
    whole: Sequence[BarDataModule],
    *,
    resume: bool,
) -> FitPlan:
    """As many epochs on train + val as the chosen weights had on train, member by member.

    A refit goes on from its own checkpoint only where the choice before it is as it was then.
    """
    steps, longest = [], max(one.steps_per_epoch(1) for one in whole)
    needed = 1
    for fitted, data, more in zip(chosen, folds, whole, strict=True):
        for done in _chosen_steps(fitted):
            epochs = done / data.steps_per_epoch(1)
            steps.append(max(1, round(epochs * more.steps_per_epoch(1))) if done else 0)
            needed = max(needed, math.ceil(steps[-1] * longest / more.steps_per_epoch(1)))
    members = tuple(steps) if chosen[0].members else None
    return FitPlan(run, stage="refit", max_steps=needed, resume=resume, member_steps=members)


def _chosen_steps(fitted: Fit) -> list[int]:
    """Of the net, or of each member; 0 of a frozen one, which is left out from then on."""
    if not fitted.members:
        return [fitted.summary.chosen_step]
    return [0 if one.frozen_at is not None else one.chosen_step for one in fitted.members]


def quiet() -> None:
    """Lightning's hardware report is in the bundle; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for expected in (
        r".*isinstance\(treespec, LeafSpec\)",  # Lightning 2.6 on torch 2.13
        "Checkpoint directory .* exists and is not empty",  # a resumed run
        "The number of training batches .* is smaller than the logging interval",  # of calls
        "`LightningModule.configure_optimizers` returned `None`",  # members have their own
        "It is recommended to use `self.log.'val/",  # figures of all processes already
        "Total length of `ScoreBatches` across ranks is zero",  # no val span was asked for
        r"Detected call of `lr_scheduler.step\(\)` before",  # fp16's scaler skips the first step
    ):
        warnings.filterwarnings("ignore", message=expected)


def work(job: Job) -> None:
    """What each process of a run does."""
    quiet()
    with (
        explain_full_disk(job.run),
        reason_kept(job.run),
        mark_failure(job.run),
        verbosity(get_verbosity(job.config)),
        hide_progress(when=not job.config.trainer.enable_progress_bar),
    ):
        if OmegaConf.select(job.config, "debug.check") is None:
            train(job.config, job.run, resume=job.resume)
        else:
            look(job.config, job.run)
