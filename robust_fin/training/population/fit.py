"""One fit of a population, from the settings to every member's weights."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import lightning as L
from torch import Tensor, nn

from robust_fin.data.datamodule import BarDataModule, MemberData, PopulationDataModule
from robust_fin.errors import ConfigError, NonFiniteError
from robust_fin.runtime.terminal import progress_seconds
from robust_fin.training.assembly import limit_batches, make_trainer, step_limit, total_steps
from robust_fin.training.baselines import TrivialObjective, trivial_objective
from robust_fin.training.engine.build import (
    call_plan,
    check_trainer,
    compiled_loop,
    step_settings,
    trainer_arguments,
)
from robust_fin.training.engine.loop_library import expected_build_seconds
from robust_fin.training.engine.step_state import ParameterLayout, adamw_group
from robust_fin.training.engine.steps import TrainingStep
from robust_fin.training.fitting import Fit, FitPlan, FitSummary, MemberResult, checkpoint_step
from robust_fin.training.population.members import (
    NEVER,
    Member,
    MemberStates,
    check_member_lists,
    check_val_limit,
    make_members,
)
from robust_fin.training.population.module import PopulationForecaster
from robust_fin.training.population.steps import (
    LoopedMembers,
    MemberEngine,
    MemberPace,
    StackedMembers,
)
from robust_fin.training.recovery.checkpoints import LastCheckpoint
from robust_fin.training.recovery.guard import StopOnNonFiniteWeights
from robust_fin.training.settings import AUTO, FitSettings


def fit_population(
    settings: FitSettings, folds: Sequence[BarDataModule], plan: FitPlan
) -> tuple[Fit, ...]:
    """Train the members of every fold in one run.

    Args:
        settings: of the fit.
        folds: each has `population.members` members.
        plan: duration and folder; `member_steps` has the limit of each member.

    Returns:
        Per fold, the members that are not frozen, with the weights chosen on val.

    Raises:
        ConfigError: a setting that a population does not support.
        NonFiniteError: every member is frozen.
    """
    check_trainer(settings.trainer, what="a population", processes=True)
    check_val_limit(settings.trainer)
    module = make_population(settings, [MemberData.from_datamodule(fold) for fold in folds], plan)
    has_val = any(len(data.val.target) for data in module.sets)
    last = LastCheckpoint(plan.checkpoints, every_n_steps=settings.checkpoint.every_n_steps)
    arguments = trainer_arguments(settings.trainer, module.pace.plan)
    if plan.max_steps is not None:
        arguments |= step_limit(plan.max_steps, steps_per_epoch=module.pace.plan.steps)
    trainer = make_trainer(
        settings,
        plan.folder,
        [StopOnNonFiniteWeights(), TrivialObjective(trivial_objective(settings, folds)), last],
        stage=plan.stage,
        has_val=has_val,
        arguments=arguments,
    )
    data = PopulationDataModule(module.sets, module.pace.plan)
    began, first = time.perf_counter(), checkpoint_step(plan.resume_path)
    trainer.fit(module, data, ckpt_path=plan.resume_path, weights_only=True)
    seconds = time.perf_counter() - began
    return tuple(
        _fit_of(module, number, _summary(module, trainer.global_step, first, seconds))
        for number in range(len(folds))
    )


def check_optimizer(settings: FitSettings, net: nn.Module) -> None:
    """Raise ConfigError unless the optimizer is AdamW with valid settings."""
    try:
        optimizer = settings.optimizer(net.parameters())
    except ValueError as error:
        raise ConfigError(f"the optimizer rejects its settings: {error}") from error
    adamw_group(optimizer)


def make_population(
    settings: FitSettings, sets: Sequence[MemberData], plan: FitPlan
) -> PopulationForecaster:
    """Build the LightningModule of the members that the settings ask for.

    Args:
        settings: of the fit.
        sets: data sets with the same features.
        plan: its `member_steps` end members early; members with 0 steps are left out.
    """
    members = make_members(settings, sets=len(sets))
    features = sets[0].x.shape[1]
    nets = initial_nets(settings, members, features=features)
    check_member_lists(settings, nets[0])
    states = MemberStates(nets)
    states.leave_out([k for k, limit in enumerate(plan.member_steps or ()) if limit == 0])
    check_optimizer(settings, nets[0])
    return PopulationForecaster(
        nets[0],
        members,
        states=states,
        sets=sets,
        link=settings.link,
        engine=member_engine(settings, nets[0], features=features),
        pace=make_pace(settings, members, sets, limits=plan.member_steps),
        monitor=settings.checkpoint.monitor,
        mode=settings.checkpoint.mode,
        workers=settings.population.workers,
    )


def initial_nets(
    settings: FitSettings, members: Sequence[Member], *, features: int
) -> list[nn.Module]:
    """Build each member's net as a single run with its seed would start it."""
    nets = []
    for member in members:
        L.seed_everything(member.seed, verbose=False)
        nets.append(settings.net(features=features))
    L.seed_everything(settings.seed, verbose=False)
    return nets


def member_engine(settings: FitSettings, net: nn.Module, *, features: int) -> MemberEngine:
    """Return the compiled loop if it is asked for and available, else stacked steps."""
    population = settings.population
    own_delta, own_dropout = population.delta is not None, population.dropout is not None
    objective = _with_delta(settings.loss) if own_delta else settings.loss
    net = copy.deepcopy(net).train()
    if settings.engine.compiled:
        loop = compiled_loop(
            settings,
            net,
            features=features,
            loss=objective,
            loss_takes_setting=own_delta,
            own_dropout=own_dropout,
        )
        if loop is not None:
            with progress_seconds("compiling, once", usual=expected_build_seconds()):
                return LoopedMembers(loop, block=population.block or 1)
    step = TrainingStep(
        net,
        ParameterLayout(net),
        settings.link,
        objective,
        step_settings(settings),
        own_delta,
        own_dropout,
    )
    return StackedMembers(step, block=population.block or AUTO)


def make_pace(
    settings: FitSettings,
    members: Sequence[Member],
    sets: Sequence[MemberData],
    *,
    limits: Sequence[int] | None,
) -> MemberPace:
    """Compute the steps per epoch and the schedule of each data set.

    Raises:
        ConfigError: a data set has fewer rows than a batch.
    """
    for number, data in enumerate(sets):
        if data.size < settings.batch_size:
            raise ConfigError(
                f"data set {number} has {data.size} training rows, fewer than "
                f"batch_size={settings.batch_size}; lower it"
            )
    trainer = settings.trainer
    steps = [max(1, limit_batches(trainer, data.size // settings.batch_size)) for data in sets]
    most = max(steps)
    epochs = total_steps(trainer, most) / most
    return MemberPace(
        members,
        sets,
        batch_size=settings.batch_size,
        epoch_steps=steps,
        schedules=[partial(settings.schedule, total=max(1, round(epochs * n))) for n in steps],
        plan=call_plan(trainer, most, steps_per_call=settings.population.steps_per_call),
        limits=limits,
    )


def _with_delta(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def objective(score: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        return loss(score, target, delta=delta)

    return objective


def _summary(module: PopulationForecaster, steps: int, first: int, seconds: float) -> FitSummary:
    counts = module.states.count.double()
    chosen = int(module.states.best_count.max())
    objective = module.objective
    return FitSummary(
        steps,
        chosen,
        seconds,
        (steps - first) / seconds,
        float(objective.compute()) if objective.update_called else math.nan,
        member_steps=int(counts.sum()),
        gradient_norm_max=float(module.states.norm_max.max()),
    )


def _fit_of(module: PopulationForecaster, data: int, summary: FitSummary) -> Fit:
    """Return the living members of one data set, and what became of each member."""
    states = module.states
    members = [k for k, member in enumerate(module.members) if member.data == data]
    frozen = states.frozen_at.tolist()
    fates = tuple(
        MemberResult(
            asdict(module.members[k]),
            int(states.best_count[k]),
            None if frozen[k] == NEVER else int(frozen[k]),
            float(states.norm_max[k]),
        )
        for k in members
    )
    living = [k for k in members if frozen[k] == NEVER]
    if not living:
        raise NonFiniteError(
            f"all members of fold {data} are frozen: a loss or gradient of each was not finite. "
            "Lower optimizer.lr, or limit outliers with transform=robust_clip"
        )
    return Fit(module.nets(living, data=data), summary, fates)
