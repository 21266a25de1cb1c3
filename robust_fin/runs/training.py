"""The story of one training job, from the bars to metrics.json, and the parts its config builds."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from robust_fin.bundle.config import BUNDLE
from robust_fin.bundle.folder import start_bundle, write_config
from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.data.folds import cut_folds
from robust_fin.data.targets import KEPT
from robust_fin.errors import ConfigError
from robust_fin.evaluation.report.report import REPORT
from robust_fin.evaluation.significance import Judgement
from robust_fin.evaluation.tables import (
    judgement_tables,
    metric_tables,
    summary_table,
    target_table,
)
from robust_fin.evaluation.tensorboard.dashboard import mark_failure, start_session
from robust_fin.evaluation.verdict import verdict
from robust_fin.ledger.record import record_trial
from robust_fin.runs.job import Job, record_failure
from robust_fin.runs.results import METRICS, FoldRun, write_results
from robust_fin.runs.schema import check_settings, get_verbosity, plain_values, with_absolute_ledger
from robust_fin.runtime.files import explain_full_disk
from robust_fin.runtime.rank_info import first_local_rank_first, is_first, require_equal_on_ranks
from robust_fin.runtime.terminal import (
    DETAILS,
    RESULT,
    hide_progress,
    show,
    tensorboard_hint,
    verbosity,
)
from robust_fin.training.fitting import Fit, FitPlan, fit
from robust_fin.training.losses import check_warmup
from robust_fin.training.population.fit import fit_population
from robust_fin.training.population.members import is_population
from robust_fin.training.recovery.checkpoint_files import (
    can_resume_refit,
    check_same_bars,
    prepare_resume,
    remove_checkpoints,
)
from robust_fin.training.settings import (
    CheckpointSettings,
    EngineSettings,
    FitSettings,
    PopulationSettings,
    StabilitySettings,
    TrainerSettings,
)

TRAIN_MODULE = "robust_fin.train"  # the module that a rank is started with
_EXPECTED_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning 2.6 on torch 2.13
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "The number of training batches .* is smaller than the logging interval",  # of calls
    "`LightningModule.configure_optimizers` returned `None`",  # members have their own
    "It is recommended to use `self.log.'val/",  # already reduced over the ranks
    "Total length of `ScoreBatches` across ranks is zero",  # there is no val span
    r"Detected call of `lr_scheduler.step\(\)` before",  # the fp16 scaler skips the first step
)


def run_training(job: Job) -> None:
    """Do the work of one rank: train, or run the debug check of the config."""
    hide_known_warnings()
    with (
        explain_full_disk(job.run),
        record_failure(job.run),
        mark_failure(job.run),
        verbosity(get_verbosity(job.config)),
        hide_progress(when=not job.config.trainer.enable_progress_bar),
    ):
        if OmegaConf.select(job.config, "debug.check") is None:
            train(job.config, job.run, resume=job.resume)
        else:
            run_debug_check(job.config, job.run)


def hide_known_warnings() -> None:
    """Silence Lightning's hardware report, which the bundle has, and warnings without meaning."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def train(config: DictConfig, run: Path, *, resume: bool = False) -> dict[str, Any]:
    """Run a training job: read the bars, fit on every fold, score test once, write the results.

    Args:
        config: composed by Hydra, or read from the bundle of the run that is resumed.
        run: the run folder.
        resume: continue from the checkpoints in `run`.

    Returns:
        The content of metrics.json; empty on all ranks but rank 0.
    """
    if is_first() and not resume:
        (run / METRICS).unlink(missing_ok=True)
    check_settings(config)
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
    _prepare_run_folder(config, run, folds, settings=settings, resume=resume)
    plan = FitPlan(run, stage="", max_steps=None, resume=resume)
    fold_runs, stages = _fit_stages(settings, folds, plan, refit=config.split.refit)
    if not is_first():
        return {}
    metrics, judgement = write_results(config, settings, run, fold_runs, fits=stages)
    _show_results(config, run, metrics, judgement, origin=folds[0].market.bars.origin)
    return metrics


def _prepare_run_folder(
    config: DictConfig,
    run: Path,
    folds: Sequence[BarDataModule],
    *,
    settings: FitSettings,
    resume: bool,
) -> None:
    """Check that the bars are the right ones, and start the bundle and the TensorBoard session."""
    bars = folds[0].market.bars
    require_equal_on_ranks(f"{bars.rows_in} rows with sha256 {bars.sha256}", what="the bars")
    if resume:
        check_same_bars(run, bars)
    if not is_first():
        return
    (run / METRICS).unlink(missing_ok=True)  # its presence says that the run is finished
    if not resume:
        remove_checkpoints(run)
    start_bundle(run, config, bars=bars)
    start_session(run, members=is_population(settings.population, folds=len(folds)))
    show(target_table(folds[0].outcome("train"), folds[0].target("train")))


def _fit_stages(
    settings: FitSettings, folds: Sequence[BarDataModule], plan: FitPlan, *, refit: bool
) -> tuple[list[FoldRun], list[Fit]]:
    """Fit on train and, with `split.refit`, once more on train + val.

    Returns:
        Every fold with its fits, and the first fit of each stage.
    """
    chosen = final = fit_folds(settings, folds, plan)
    final_folds, stages = folds, [chosen[0]]
    if refit:
        final_folds = [fold.for_refit() for fold in folds]
        resume = plan.resume and can_resume_refit(plan.folder)
        longer = refit_plan(plan.folder, chosen, folds, final_folds, resume=resume)
        final = fit_folds(settings, final_folds, longer)
        stages.append(final[0])
    every = zip(folds, chosen, final_folds, final, strict=True)
    return [FoldRun(*parts) for parts in every], stages


def fit_folds(
    settings: FitSettings, folds: Sequence[BarDataModule], plan: FitPlan
) -> tuple[Fit, ...]:
    """Fit one net on one fold, or the members of all folds in one population."""
    if is_population(settings.population, folds=len(folds)):
        return fit_population(settings, folds, plan)
    (data,) = folds
    return (fit(settings, data, plan),)


def refit_plan(
    run: Path,
    chosen: Sequence[Fit],
    folds: Sequence[BarDataModule],
    final_folds: Sequence[BarDataModule],
    *,
    resume: bool,
) -> FitPlan:
    """Plan as many epochs on train + val as the chosen weights had on train, member by member.

    Args:
        run: the run folder.
        chosen: fits on train.
        folds: data of those fits.
        final_folds: the same folds with val as part of train.
        resume: continue from the checkpoint of the refit.
    """
    steps, longest = [], max(fold.steps_per_epoch(1) for fold in final_folds)
    needed = 1
    for fitted, before, after in zip(chosen, folds, final_folds, strict=True):
        for done in _chosen_steps(fitted):
            epochs = done / before.steps_per_epoch(1)
            steps.append(max(1, round(epochs * after.steps_per_epoch(1))) if done else 0)
            needed = max(needed, math.ceil(steps[-1] * longest / after.steps_per_epoch(1)))
    members = tuple(steps) if chosen[0].members else None
    return FitPlan(run, stage="refit", max_steps=needed, resume=resume, member_steps=members)


def _chosen_steps(fitted: Fit) -> list[int]:
    """Return the step of the chosen weights, per member; 0 leaves a frozen member out."""
    if not fitted.members:
        return [fitted.summary.chosen_step]
    return [0 if m.frozen_at is not None else m.chosen_step for m in fitted.members]


def _show_results(
    config: DictConfig, run: Path, metrics: dict[str, Any], judgement: Judgement, *, origin: str
) -> None:
    """Print the tables, add the run to the ledger, and print where the files are."""
    title = f"{config.name} on {origin}"
    show(*metric_tables(metrics, title=title), *judgement_tables(judgement), level=DETAILS)
    show(summary_table(metrics, judgement, title=title), record_trial(run))
    show(
        f"report       {run / REPORT}",
        f"TensorBoard  {tensorboard_hint(run)}",
        f"bundle       {run / BUNDLE}",
    )
    if config.debug.labels != KEPT:
        show(f"This is a control: the net was trained on {config.debug.labels} labels.")
    show(verdict(judgement), level=RESULT)


def run_debug_check(config: DictConfig, run: Path) -> None:
    """Run the check of `debug=` in place of a training; it leaves no result and no trial."""
    (run / METRICS).unlink(missing_ok=True)
    check_settings(config)
    config = with_absolute_ledger(config)
    write_config(run, config)
    torch.set_num_threads(config.threads)
    data = load_first_fold(config)
    start_bundle(run, config, bars=data.market.bars)
    instantiate(config.debug.check).run(config, data, run)


def load_folds(config: DictConfig) -> list[BarDataModule]:
    """Read the bars, compute features and labels, and return every fold of the split."""
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


def load_first_fold(config: DictConfig) -> BarDataModule:
    """Return the first fold of the split; a holdout has no other."""
    return load_folds(config)[0]


def fit_settings(config: DictConfig) -> FitSettings:
    """Build the settings of a fit from the config of a run.

    Raises:
        ConfigError: a value is out of range.
    """
    schedule = bound_function(config.schedule)
    check_warmup(schedule.keywords.get("warmup", 0))
    return FitSettings(
        seed=config.seed,
        batch_size=config.batch_size,
        net=net_factory(config.model),
        link=bound_function(config.link),
        loss=bound_function(config.loss),
        optimizer=bound_function(config.optimizer),
        schedule=schedule,
        engine=EngineSettings.checked(plain_values(config.engine)),
        population=PopulationSettings.checked(plain_values(config.population)),
        trainer=TrainerSettings.checked(
            plain_values(config.trainer), build=partial(instantiate, config.trainer)
        ),
        checkpoint=CheckpointSettings.checked(plain_values(config.checkpoint)),
        stability=StabilitySettings.checked(plain_values(config.stability)),
        callbacks=partial(_callbacks, config.callbacks),
        logger=partial(instantiate, config.logger),
        config=OmegaConf.to_yaml(config, resolve=True),
    )


def bound_function(config: DictConfig) -> partial[Any]:
    """Return the target of a YAML with `_partial_: true`, with its arguments bound.

    Hydra's own partial checks its policy on every call, which takes 0.1 ms: as long as a step of a
    small net. Here the check runs once.

    Raises:
        ConfigError: `_partial_: true` is missing.
    """
    part = instantiate(config)
    if not isinstance(part, partial):
        raise ConfigError(f"{config.get('_target_')} needs _partial_: true; it is called by step")
    return partial(part.func, *part.args, **part.keywords)


def net_factory(config: DictConfig) -> Callable[..., nn.Module]:
    """Return a function that builds the net; called with `features=n`.

    The first call goes through Hydra, which reports wrong arguments. Later calls skip its checks,
    which take milliseconds, unless the net has parts with a `_target_` that it must not share.
    """
    through_hydra = partial(instantiate, config)
    if str(OmegaConf.to_container(config)).count("'_target_'") > 1:
        return through_hydra
    direct: list[Callable[..., nn.Module]] = []

    def build(*, features: int) -> nn.Module:
        if direct:
            return direct[0](features=features)
        net: nn.Module = through_hydra(features=features)
        part = instantiate(config, _partial_=True)
        direct.append(partial(part.func, *part.args, **part.keywords))
        return net

    return build


def _callbacks(config: DictConfig) -> list[L.Callback]:
    return [instantiate(callback) for callback in config.values()]
