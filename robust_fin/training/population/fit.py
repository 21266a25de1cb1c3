"""One fit of a population: the Trainer run from the config's parts to every member's weights."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from robust_fin.data.datamodule import BarDataModule, MemberData, PopulationDataModule
from robust_fin.errors import ConfigError, NonFiniteError
from robust_fin.runtime.terminal import progress_seconds
from robust_fin.training.assembly import (
    function_of,
    limited,
    make_trainer,
    step_limit,
    steps_in_all,
)
from robust_fin.training.baselines import TrivialObjective, trivial_objective
from robust_fin.training.engine.build import (
    call_plan,
    check_trainer,
    compiled_loop,
    step_settings,
    trainer_settings,
    wants_compiled,
)
from robust_fin.training.engine.loop_library import usual_seconds
from robust_fin.training.engine.step_state import Layout, only_group
from robust_fin.training.engine.steps import TrainingStep
from robust_fin.training.fitting import Fit, FitPlan, FitSummary, MemberFate, steps_in
from robust_fin.training.losses import check_warmup
from robust_fin.training.population.members import (
    NEVER,
    Member,
    MemberStates,
    check_lists,
    check_validation,
    members_of,
)
from robust_fin.training.population.module import PopulationForecaster
from robust_fin.training.population.steps import (
    AUTO,
    LoopedMembers,
    MemberEngine,
    MemberPace,
    StackedMembers,
)
from robust_fin.training.recovery.checkpoints import LastCheckpoint
from robust_fin.training.recovery.guard import StopOnNonFiniteWeights


def fit_population(
    config: DictConfig, folds: Sequence[BarDataModule], plan: FitPlan
) -> tuple[Fit, ...]:
    """Train the members of every fold in one run; of each fold the living ones, as chosen on val.

    Args:
        config: as composed; its parts are built here.
        folds: each with `population.members` members.
        plan: how long, and where; `member_steps` has the limit of each member.

    Raises:
        ConfigError: a setting that a population does not follow.
        NonFiniteError: every member is frozen.
    """
    check_trainer(config, what="a population", processes=True)
    check_validation(config)
    module = make_population(config, [MemberData.from_datamodule(one) for one in folds], plan)
    has_val = any(len(one.val.target) for one in module.sets)
    last = LastCheckpoint(plan.checkpoints, every_n_steps=config.checkpoint.every_n_steps)
    settings = trainer_settings(config, module.pace.plan)
    if plan.max_steps is not None:
        settings |= step_limit(plan.max_steps, an_epoch=module.pace.plan.steps)
    trainer = make_trainer(
        config,
        plan.folder,
        [StopOnNonFiniteWeights(), TrivialObjective(trivial_objective(config, folds)), last],
        stage=plan.stage,
        has_val=has_val,
        settings=settings,
    )
    data = PopulationDataModule(module.sets, module.pace.plan)
    began, first = time.perf_counter(), steps_in(plan.resume_path)
    trainer.fit(module, data, ckpt_path=plan.resume_path, weights_only=True)
    seconds = time.perf_counter() - began
    return tuple(
        _fit_of(module, number, _summary(module, trainer.global_step, first, seconds))
        for number in range(len(folds))
    )


def check_optimizer(config: DictConfig, net: nn.Module) -> None:
    """Refuse all but AdamW, and what AdamW refuses.

    Raises:
        ConfigError: says which.
    """
    try:
        optimizer = instantiate(config.optimizer)(net.parameters())
    except ValueError as error:
        raise ConfigError(f"the optimizer refuses its settings: {error}") from error
    only_group(optimizer)


def make_population(
    config: DictConfig, sets: Sequence[MemberData], plan: FitPlan
) -> PopulationForecaster:
    """The LightningModule of the members that the config asks for.

    Args:
        config: as composed.
        sets: what they train on, all of the same features.
        plan: its `member_steps` end members early; one with 0 steps is left out.
    """
    check_warmup(config.schedule.warmup)
    members = members_of(config, sets=len(sets))
    features = sets[0].x.shape[1]
    nets = initial_nets(config, members, features=features)
    check_lists(config, nets[0])
    states = MemberStates(nets)
    states.leave_out([k for k, limit in enumerate(plan.member_steps or ()) if limit == 0])
    check_optimizer(config, nets[0])
    link = function_of(config.link)
    return PopulationForecaster(
        nets[0],
        members,
        states=states,
        sets=sets,
        link=link,
        engine=member_engine(config, nets[0], features=features, link=link),
        pace=make_pace(config, members, sets, limits=plan.member_steps),
        monitor=config.checkpoint.monitor,
        mode=config.checkpoint.mode,
        workers=_workers(config),
    )


def initial_nets(
    config: DictConfig, members: Sequence[Member], *, features: int
) -> list[nn.Module]:
    """Each member's net as a run with its seed starts it."""
    build = _net_maker(config)
    nets = []
    for one in members:
        L.seed_everything(one.seed, verbose=False)
        nets.append(build(features=features))
    L.seed_everything(config.seed, verbose=False)
    return nets


def _net_maker(config: DictConfig) -> Callable[..., nn.Module]:
    """What makes a net from its config; Hydra's own checks, which take milliseconds, run once."""
    if str(OmegaConf.to_container(config.model)).count("'_target_'") > 1:
        return partial(instantiate, config.model)  # or all would share the parts it names
    make = instantiate(config.model, _partial_=True)
    return partial(make.func, *make.args, **make.keywords)


def member_engine(
    config: DictConfig, net: nn.Module, *, features: int, link: Callable[[Tensor], Tensor]
) -> MemberEngine:
    """The compiled loop where it is asked for and can be had, else stacked steps."""
    asked = _block(config)
    own_delta, own_dropout = (config.population[k] is not None for k in ("delta", "dropout"))
    loss = function_of(config.loss)
    objective = _with_delta(loss) if own_delta else loss
    net = copy.deepcopy(net).train()
    if wants_compiled(config):
        loop = compiled_loop(
            config,
            net,
            features=features,
            link=link,
            loss=objective,
            loss_takes_setting=own_delta,
            own_dropout=own_dropout,
        )
        if loop is not None:
            with progress_seconds("compiling, once", usual=usual_seconds()):
                return LoopedMembers(loop, block=asked or 1)
    step = TrainingStep(
        net, Layout(net), link, objective, step_settings(config), own_delta, own_dropout
    )
    return StackedMembers(step, block=asked or AUTO)


def make_pace(
    config: DictConfig,
    members: Sequence[Member],
    sets: Sequence[MemberData],
    *,
    limits: Sequence[int] | None,
) -> MemberPace:
    """What each member does when.

    Raises:
        ConfigError: a data set has fewer rows than a batch.
    """
    for number, one in enumerate(sets):
        if one.size < config.batch_size:
            raise ConfigError(
                f"data set {number} has {one.size} training rows, fewer than "
                f"batch_size={config.batch_size}; lower it"
            )
    steps = [max(1, limited(config, one.size // config.batch_size)) for one in sets]
    most = max(steps)
    epochs = steps_in_all(config, most) / most
    schedule = function_of(config.schedule)
    return MemberPace(
        members,
        sets,
        batch_size=config.batch_size,
        epoch_steps=steps,
        schedules=[partial(schedule, total=max(1, round(epochs * one))) for one in steps],
        plan=call_plan(config, most, group="population"),
        limits=limits,
    )


def _with_delta(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def objective(score: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        return loss(score, target, delta=delta)

    return objective


def _block(config: DictConfig) -> int | str | None:
    block = config.population.block
    if block is not None and block != AUTO and not (isinstance(block, int) and block >= 1):
        raise ConfigError(f"population.block={block} must be a whole number above 0, auto or null")
    return block


def _workers(config: DictConfig) -> int:
    workers = config.population.workers
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"population.workers={workers} must be a whole number above 0")
    return workers


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
    """The members of one data set."""
    states = module.states
    own = [k for k, one in enumerate(module.members) if one.data == data]
    frozen = states.frozen_at.tolist()
    fates = tuple(
        MemberFate(
            module.members[k].described(),
            int(states.best_count[k]),
            None if frozen[k] == NEVER else int(frozen[k]),
            float(states.norm_max[k]),
        )
        for k in own
    )
    living = [k for k in own if frozen[k] == NEVER]
    if not living:
        raise NonFiniteError(
            f"all members of fold {data} are frozen: a loss or gradient of each was not finite. "
            "Lower optimizer.lr, or tame the features with transform=robust_clip"
        )
    return Fit(module.nets(living, data=data), summary, fates)
